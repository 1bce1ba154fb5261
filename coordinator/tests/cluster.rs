//! A cluster of workers that joined by token, as on boards, but on one machine and without multicast.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Place, bad, good, json, wait_for};

/// A worker of its own, ended with the test.
struct Board(Child);

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn board(place: &Place, name: &str, token: Option<&str>, coordinator: &str) -> Board {
    let mut command = place.spawnable();
    command.args(["worker", "--no-mdns", "--name", name, "--threads", "1", "--coordinator", coordinator]);
    command.args(["--listen", "127.0.0.1:0", "--memory", "20MB"]);
    command.arg("--data-dir").arg(place.path(name)).arg("--cache-dir").arg(place.path(name).join("cache"));
    if let Some(token) = token {
        command.env("SHOAL_JOIN", token);
    }
    Board(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn free_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn boards_join_by_token_and_serve_one_command_after_another() {
    let place = Place::new();
    let listen = format!("127.0.0.1:{}", free_port());
    // `token --wait` prints the token and listens until both boards have used it.
    let mut command = place.spawnable();
    command.args(["token", "--uses", "2", "--wait", "--json", "--no-mdns", "--listen", &listen]);
    let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(waiting.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let view: serde_json::Value = serde_json::from_str(&line).unwrap();
    let token = view["token"].as_str().unwrap().to_owned();
    assert_eq!(view["command"], format!("shoal worker --join {token}"));
    let _boards =
        [board(&place, "anna", Some(&token), &listen), board(&place, "bert", Some(&token), &listen)];
    assert!(waiting.wait().unwrap().success());

    // Another command of the same cluster finds them again: they dial the address they know.
    let devices = wait_for("both boards", || {
        let mut command = place.shoal();
        let found =
            good(command.args(["devices", "--json", "--no-mdns", "--wait", "4", "--listen", &listen]));
        let devices = found["devices"].as_array().unwrap().clone();
        (devices.iter().filter(|device| device["state"] == "idle").count() == 2).then_some(devices)
    });
    let mut names: Vec<&str> = devices.iter().map(|device| device["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["anna", "bert"]);
    assert!(devices.iter().all(|device| device["usable_bytes"] == 20_000_000));
    // Idle, they hold nothing of a model, but are processes all the same.
    assert!(devices.iter().all(|device| device["accounted_bytes"] == 0));
    assert!(devices.iter().all(|device| device["resident_bytes"].as_u64().unwrap() > 1 << 20), "{devices:?}");

    // A run over both, and then the same without one of them.
    let model = common::model("Q4_0").unwrap();
    let run = |args: &[&str]| {
        let mut command = place.shoal();
        command.arg("run").arg(&model).args(["--json", "--no-mdns", "--wait", "4", "--listen", &listen]);
        good(command.args(["--temperature", "0", "-n", "8", "--prompt", "Once upon a time"]).args(args))
    };
    let both = run(&["--strategy", "static-layer"]);
    assert_eq!(both["workers"], 2);
    let one = run(&["--strategy", "single", "--exclude", "anna"]);
    assert_eq!(one["ranks"][0]["name"], "bert");
    assert_eq!(both["token_ids"], one["token_ids"]);
    assert!(one["plan"]["term"].as_u64() > both["plan"]["term"].as_u64());

    // What each one holds is what the plan lists.
    let mut command = place.shoal();
    command
        .args(["devices", "--json", "--no-mdns", "--wait", "4", "--listen", &listen, "--load"])
        .arg(&model);
    let loaded = good(&mut command);
    let ready: Vec<_> =
        loaded["devices"].as_array().unwrap().iter().filter(|d| d["state"] == "ready").collect();
    assert!(!ready.is_empty());
    for device in ready {
        let bytes = |field: &str| device[field].as_u64().unwrap();
        assert!(
            bytes("accounted_bytes") > 0 && bytes("accounted_bytes") <= bytes("planned_bytes"),
            "{device}"
        );
        assert!(bytes("resident_bytes") > 0, "{device}");
    }
}

#[test]
fn a_board_that_dies_ends_the_run_and_the_other_takes_the_next() {
    let place = Place::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let output = place.shoal().args(["token", "--uses", "2", "--json"]).output().unwrap();
    let token = json(&output)["token"].as_str().unwrap().to_owned();
    let mut anna = board(&place, "anna", Some(&token), &listen);
    let _bert = board(&place, "bert", Some(&token), &listen);
    let model = common::model("Q8_0").unwrap();
    let mut command = place.spawnable();
    command.arg("run").arg(&model).args(["--no-mdns", "--wait", "5", "--listen", &listen, "--ignore-eos"]);
    command.args(["--strategy", "head", "--prompt", "Once", "-n", "500"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut [0]).unwrap();
    anna.0.kill().unwrap();
    let killed = Instant::now();
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(killed.elapsed() < Duration::from_secs(5), "it took {:?}", killed.elapsed());
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("anna"), "{said}");

    let mut command = place.shoal();
    command.arg("run").arg(&model).args(["--no-mdns", "--wait", "4", "--listen", &listen, "--json"]);
    let report = good(command.args(["--prompt", "Once", "-n", "4"]));
    assert_eq!(report["ranks"][0]["name"], "bert");
}

#[test]
fn only_one_command_coordinates_at_a_time() {
    let place = Place::new();
    let mut command = place.spawnable();
    command.args(["token", "--wait", "--json", "--no-mdns", "--listen", "127.0.0.1:0"]);
    let mut first = Board(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(first.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let said = bad(place.shoal().args(["devices", "--no-mdns", "--listen", "127.0.0.1:0"]), 1);
    assert!(said.contains(&format!("process {}", first.0.id())), "{said}");
    // Printing another token needs no lock.
    let output = place.shoal().args(["token", "--json", "--ttl", "90s"]).output().unwrap();
    assert_eq!(json(&output)["expires_in_s"], 90);
}

#[test]
fn a_port_in_use_is_named() {
    let place = Place::new();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = socket.local_addr().unwrap().to_string();
    let said = bad(place.shoal().args(["devices", "--no-mdns", "--listen", &listen]), 1);
    assert!(said.contains(&listen), "{said}");
}

#[test]
fn a_plan_names_the_five_strategies() {
    let place = Place::new();
    let model = common::model("Q8_0").unwrap();
    let plan = good(place.shoal().arg("plan").arg(&model).args(["--local-workers", "3", "--json"]));
    let names: Vec<&str> =
        plan["strategies"].as_array().unwrap().iter().map(|s| s["strategy"].as_str().unwrap()).collect();
    assert_eq!(names, ["single", "static-layer", "adaptive-layer", "head", "hybrid"]);
    assert!(names.contains(&plan["chosen"].as_str().unwrap()));
    assert_eq!(plan["cluster"].as_array().unwrap().len(), 3);
    for strategy in plan["strategies"].as_array().unwrap() {
        assert_eq!(strategy["feasible"], true, "{strategy}");
        assert!(strategy["decode_ms"].as_f64().unwrap() > 0.0);
        assert!(strategy["plan"]["stages"].is_array());
    }
    let output = place.shoal().arg("plan").arg(&model).args(["--local-workers", "3"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("→ ") && text.contains("optimal") && text.contains("adaptive-layer"), "{text}");
    // Nothing fits: still five strategies, and exit code 4.
    let mut command = place.shoal();
    command.arg("plan").arg(&model).args(["--local-workers", "2", "--json", "--memory-reserve", "1TB"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let none = json(&output);
    assert!(none["chosen"].is_null());
    assert!(
        none["strategies"]
            .as_array()
            .unwrap()
            .iter()
            .all(|s| s["feasible"] == false && s["reason"].is_string())
    );
    place.assert_nothing_left();
}
