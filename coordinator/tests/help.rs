//! Help texts under snapshot: they are the first thing a newcomer reads. `SHOAL_UPDATE_HELP=1` writes them anew.

mod common;

use common::Place;

const COMMANDS: [&str; 13] = [
    "", "demo", "run", "chat", "devices", "plan", "simulate", "bench", "token", "tokenize", "template",
    "synth", "worker",
];

#[test]
fn help_reads_as_it_was_agreed() {
    let place = Place::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let update = std::env::var_os("SHOAL_UPDATE_HELP").is_some();
    for command in COMMANDS {
        let args: &[&str] = if command.is_empty() { &["--help"] } else { &[command, "--help"] };
        let output = place.shoal().args(args).env_remove("SHOAL_DATA_DIR").output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let name = if command.is_empty() { "shoal" } else { command };
        let path = folder.join(format!("{name}.txt"));
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, want, "the help of {name} changed; if it should, run with SHOAL_UPDATE_HELP=1");
    }
}

#[test]
fn every_command_explains_itself() {
    let place = Place::new();
    for command in COMMANDS.into_iter().filter(|command| !command.is_empty()) {
        let output = place.shoal().args([command, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Usage: shoal"), "{command}: {text}");
        if command != "worker" && command != "synth" {
            assert!(text.contains("Examples:"), "{command} has no example");
        }
    }
}

#[test]
fn wrong_usage_is_exit_2() {
    let place = Place::new();
    for args in [
        &["frobnicate"][..],
        &["run"],
        &["demo", "--workers", "0"],
        &["run", "m.gguf", "--prompt", "x", "--wire", "f8"],
    ] {
        let output = place.shoal().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
