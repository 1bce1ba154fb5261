//! What the tests of the binary share: a clean environment, the models, and the rule for near ties.

#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::print_stdout,
    reason = "each test binary uses its own part of this; what a test saw is printed"
)]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// Longest a command of these tests may take; a hang then fails instead of holding the suite up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Below this margin between best and second logit a quantized model's greedy token may differ (design 11).
pub(crate) const NEAR_TIE: f64 = 0.15;

/// A place for one test: everything `shoal` writes goes below it.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for name in ["tmp", "home", "data"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with none of the user's settings. Measurements of local workers are kept between the runs of one
    /// test.
    pub(crate) fn shoal(&self) -> Command {
        let mut command = Command::cargo_bin("shoal").expect("the binary");
        self.clean(|name, value| {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        });
        command.timeout(PATIENCE);
        command
    }

    /// The same as a plain command, to be spawned.
    pub(crate) fn spawnable(&self) -> std::process::Command {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("shoal"));
        self.clean(|name, value| {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        });
        command
    }

    fn clean(&self, mut set: impl FnMut(&str, Option<PathBuf>)) {
        for (name, _) in std::env::vars() {
            if name.starts_with("SHOAL_") || name.starts_with("XDG_") {
                set(&name, None);
            }
        }
        set("HOME", Some(self.path("home")));
        set("TMPDIR", Some(self.path("tmp")));
        set("SHOAL_DATA_DIR", Some(self.path("data")));
    }

    /// Fails if a command left a file in the temporary folder, or a process that was started from here.
    pub(crate) fn assert_nothing_left(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).expect("the folder").flatten().collect();
        assert!(left.is_empty(), "files were left: {left:?}");
        let marker = self.path("tmp");
        let marker = marker.to_str().expect("a path of text");
        let processes = processes_with(marker);
        assert!(processes.is_empty(), "processes were left: {processes:?}");
    }
}

/// Ids and command lines of processes whose command line holds `marker`.
pub(crate) fn processes_with(marker: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(marker) {
            found.push((pid, line));
        }
    }
    found
}

/// A stories model of the test data; F16 lies beside the repository, or where SHOAL_SHARED_DIR says.
pub(crate) fn model(kind: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if kind != "F16" {
        return Some(root.join(format!("shared/engine/tests/data/models/stories-{kind}.gguf")));
    }
    let shared = std::env::var_os("SHOAL_SHARED_DIR").map_or_else(|| root.join("../shared"), PathBuf::from);
    Some(shared.join("models/stories-F16.gguf")).filter(|path| path.exists())
}

/// The reference cases of a model.
pub(crate) fn reference(kind: &str) -> Vec<Case> {
    let file = model(kind).expect("the model").with_file_name("reference").join(format!("{kind}.json"));
    let text = std::fs::read_to_string(file).expect("the reference");
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let cases = json["cases"].as_array().expect("cases").iter().map(|case| Case {
        prompt: case["prompt"].as_str().expect("a prompt").to_owned(),
        tokens: numbers(&case["greedy_tokens"]),
        margins: case["greedy_margins"]
            .as_array()
            .expect("margins")
            .iter()
            .filter_map(Value::as_f64)
            .collect(),
    });
    cases.collect()
}

/// One prompt with the reference's greedy tokens.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) prompt: String,
    pub(crate) tokens: Vec<u64>,
    pub(crate) margins: Vec<f64>,
}

impl Case {
    /// Tokens equal the reference's, or part from it at a near tie.
    pub(crate) fn check(&self, tokens: &[u64], near_tie: f64, what: &str) {
        let differs = tokens.iter().zip(&self.tokens).position(|(got, want)| got != want);
        match differs {
            Some(step) if self.margins[step] >= near_tie => panic!(
                "{what}: {:?} parts from the reference at step {step}, whose margin is {}\n got {tokens:?}\nwant {:?}",
                self.prompt, self.margins[step], self.tokens
            ),
            Some(step) => println!("{what}: parts at step {step}, a near tie of {:.3}", self.margins[step]),
            None => assert!(!tokens.is_empty(), "{what}: no token"),
        }
    }
}

pub(crate) fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().expect("a list").iter().filter_map(Value::as_u64).collect()
}

/// The one JSON object on standard output.
pub(crate) fn json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "not one line: {text}");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a command that must end well, and returns its JSON.
pub(crate) fn good(command: &mut Command) -> Value {
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    json(&output)
}

/// Runs a command that must fail with this exit code, and returns what it said.
pub(crate) fn bad(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("the command runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.lines().any(|line| line.starts_with("error: ")), "no error line: {said}");
    said
}

/// Waits until `ready` gives something.
pub(crate) fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
