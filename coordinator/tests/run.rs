//! `shoal run` and `shoal chat`: text in and out, sampling, and what happens when a worker dies.

mod common;

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Place, bad, good, numbers, processes_with, wait_for};

fn q8_0() -> std::path::PathBuf {
    common::model("Q8_0").unwrap()
}

#[test]
fn the_same_seed_says_the_same() {
    let place = Place::new();
    let run = |seed: &str, workers: &str| {
        let mut command = place.shoal();
        command.arg("run").arg(q8_0()).args([
            "--local-workers",
            workers,
            "--seed",
            seed,
            "-n",
            "24",
            "--json",
        ]);
        command.args([
            "--strategy",
            "static-layer",
            "--temperature",
            "1.2",
            "--top-k",
            "0",
            "--prompt",
            "Once upon a time",
        ]);
        good(command.args(["--repeat-penalty", "1.1", "--presence-penalty", "0.2"]))["text"].clone()
    };
    let first = run("11", "2");
    assert_eq!(first, run("11", "2"));
    // A layer split is exact, so the number of workers does not show.
    assert_eq!(first, run("11", "3"));
    assert_ne!(first, run("12", "2"));
}

#[test]
fn text_is_exact_and_cut_before_a_stop() {
    let place = Place::new();
    let mut command = place.shoal();
    command.arg("run").arg(q8_0()).args(["--local-workers", "1", "--temperature", "0", "-n", "60"]);
    let output = command.args(["--prompt", "Once upon a time"]).output().unwrap();
    let whole = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && whole.len() > 80, "{whole}");
    // Any words from the middle of the text will do as a stop string.
    let middle = whole.char_indices().nth(40).unwrap().0;
    let stop = &whole[middle..middle + 7];
    let want = &whole[..whole.find(stop).unwrap()];
    let mut command = place.shoal();
    command.arg("run").arg(q8_0()).args([
        "--local-workers",
        "2",
        "--strategy",
        "static-layer",
        "--temperature",
        "0",
    ]);
    let report = good(command.args(["-n", "60", "--json", "--stop", stop, "--prompt", "Once upon a time"]));
    assert_eq!(report["text"], want);
    assert_eq!(report["finish_reason"], "stop");
}

#[test]
fn the_context_ends_the_text_and_too_long_a_prompt_is_refused() {
    let place = Place::new();
    let mut command = place.shoal();
    command.arg("run").arg(q8_0()).args([
        "--local-workers",
        "1",
        "--context",
        "32",
        "--ignore-eos",
        "--json",
    ]);
    let report = good(command.args(["--prompt", "Once upon a time"]));
    assert_eq!(report["finish_reason"], "length");
    let all = report["prompt_tokens"].as_u64().unwrap() as usize + numbers(&report["token_ids"]).len();
    assert_eq!(all, 32);

    let long = "once upon a time ".repeat(200);
    let mut command = place.shoal();
    let said = bad(command.arg("run").arg(q8_0()).args(["--local-workers", "1", "--prompt", &long]), 3);
    assert!(said.contains("context of 512"), "{said}");
}

#[test]
fn prompts_come_from_files_and_standard_input() {
    let place = Place::new();
    let path = place.path("prompt.txt");
    std::fs::write(&path, "Once upon a time").unwrap();
    let run = |args: &[&str], input: &[u8]| {
        let mut command = place.shoal();
        command.arg("run").arg(q8_0()).args([
            "--local-workers",
            "1",
            "--temperature",
            "0",
            "-n",
            "8",
            "--json",
        ]);
        good(command.args(args).write_stdin(input))["token_ids"].clone()
    };
    let want = run(&["--prompt", "Once upon a time"], b"");
    assert_eq!(run(&["--prompt-file", path.to_str().unwrap()], b""), want);
    assert_eq!(run(&["--prompt", "-"], b"Once upon a time"), want);
    let mut command = place.shoal();
    command.arg("run").arg(q8_0()).args(["--prompt", "-"]).write_stdin(&b"\xff\xfe"[..]);
    assert!(bad(&mut command, 3).contains("utf-8"));
}

#[test]
fn a_conversation_works_without_a_terminal() {
    let place = Place::new();
    let mut command = place.shoal();
    command.arg("chat").arg(q8_0()).args(["--local-workers", "1", "--temperature", "0", "-n", "6"]);
    let output =
        command.write_stdin("Once upon a time\n/help\nThe dog\n/bye\nnever read\n").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("no chat template").count(), 1, "{said}");
    assert!(said.contains("/clear"), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    place.assert_nothing_left();
}

#[test]
fn a_worker_that_dies_ends_the_run_and_is_named() {
    let place = Place::new();
    let mut command = place.spawnable();
    command.arg("run").arg(q8_0()).args([
        "--local-workers",
        "3",
        "--strategy",
        "static-layer",
        "--ignore-eos",
    ]);
    command.args(["--prompt", "Once upon a time", "--context", "512", "-n", "500"]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    // The first text shows that all three are at work.
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut out, &mut byte).unwrap();
    let tmp = place.path("tmp");
    let victim = wait_for("the second worker", || {
        let workers = processes_with(tmp.to_str().unwrap());
        workers.into_iter().find(|(_, line)| line.contains("local-2 ")).map(|(pid, _)| pid)
    });
    let killed = Instant::now();
    assert!(std::process::Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(killed.elapsed() < Duration::from_secs(5), "it took {:?}", killed.elapsed());
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("local-2"), "{said}");
    place.assert_nothing_left();
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let place = Place::new();
    for signal in ["-INT", "-TERM"] {
        let mut command = place.spawnable();
        command.arg("run").arg(q8_0()).args(["--local-workers", "2", "--strategy", "head", "--ignore-eos"]);
        command.args(["--prompt", "Once", "-n", "500"]);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
        let mut byte = [0];
        // Held open to the end: a closed pipe would end the run as well, and in another way.
        let mut out = child.stdout.take().unwrap();
        std::io::Read::read_exact(&mut out, &mut byte).unwrap();
        assert!(
            std::process::Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status()
                .unwrap()
                .success()
        );
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status:?}");
        place.assert_nothing_left();
    }
}

#[test]
fn a_closed_pipe_ends_the_run_quietly() {
    let place = Place::new();
    let mut command = place.spawnable();
    command.arg("run").arg(q8_0()).args([
        "--local-workers",
        "1",
        "--prompt",
        "Once",
        "--ignore-eos",
        "-n",
        "400",
    ]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut byte).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    place.assert_nothing_left();
}

#[test]
fn unusable_models_and_options_have_their_exit_codes() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| {
        let path = place.path(name);
        std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    };
    let model = std::fs::read(q8_0()).unwrap();
    let mut wrong = model.clone();
    wrong[0] = b'X';
    let renamed: Vec<u8> = {
        let at = model.windows(5).position(|bytes| bytes == b"llama").unwrap();
        let mut bytes = model.clone();
        bytes[at..at + 5].copy_from_slice(b"lhama");
        bytes
    };
    for (path, part) in [
        (write("magic.gguf", &wrong), "wrong magic"),
        (write("short.gguf", &model[..1000]), "short.gguf"),
        (write("empty.gguf", b""), "empty.gguf"),
        (write("arch.gguf", &renamed), "lhama"),
        (place.path("absent.gguf"), "absent.gguf"),
    ] {
        let said =
            bad(place.shoal().arg("run").arg(&path).args(["--local-workers", "1", "--prompt", "x"]), 3);
        assert!(said.contains(part), "{part}: {said}");
    }
    let run = |args: &[&str], code| {
        bad(place.shoal().arg("run").arg(q8_0()).args(["--prompt", "x"]).args(args), code)
    };
    assert!(run(&["--local-workers", "1", "--temperature", "-1"], 2).contains("temperature"));
    assert!(run(&["--local-workers", "1", "--context", "100000"], 2).contains("512"));
    assert!(run(&["--threads", "1"], 2).contains("--local-workers"));
    assert!(run(&["--local-workers", "1", "--exclude", "nobody"], 2).contains("nobody"));
    let said = run(&["--local-workers", "2", "--strategy", "single", "--memory-reserve", "1TB"], 4);
    assert!(said.contains("missing on local-"), "{said}");
    assert!(run(&["--no-mdns", "--wait", "0.1"], 5).contains("found no worker"));
    place.assert_nothing_left();
}
