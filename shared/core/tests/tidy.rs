//! What a machine can check of ARCHITECTURE.md: who may depend on whom, which crate names which
//! library, how long a file may be, and that what the README promises is what the manifest says.

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files are two ideas; the few that pass 500 lines are tests or tables.
const FILE_LINES: usize = 600;

/// Each crate of ours with those of ours it may depend on.
const EDGES: &[(&str, &[&str])] = &[
    ("shared/core", &[]),
    ("shared/cluster", &["shoal-core"]),
    ("shared/net", &["shoal-core"]),
    ("shared/engine", &["shoal-core"]),
    ("shared/profiles", &["shoal-core"]),
    ("shared/text", &["shoal-core", "shoal-engine"]),
    ("shared/lab", &["shoal-core", "shoal-profiles"]),
    ("worker", &["shoal-core", "shoal-cluster", "shoal-net", "shoal-engine", "shoal-profiles"]),
    (
        "coordinator",
        &[
            "shoal-core",
            "shoal-cluster",
            "shoal-net",
            "shoal-engine",
            "shoal-profiles",
            "shoal-text",
            "worker",
        ],
    ),
];

/// Libraries with the only crates that may depend on them.
const OWNERS: &[(&str, &[&str])] = &[
    ("quinn", &["shared/net"]),
    ("quinn-proto", &["shared/net"]),
    ("bincode", &["shared/net"]),
    ("mdns-sd", &["shared/net"]),
    ("rustls", &["shared/net"]),
    ("rcgen", &["shared/net"]),
    ("candle-core", &["shared/engine"]),
    ("tokenizers", &["shared/text"]),
    ("minijinja", &["shared/text"]),
    ("tokio", &["shared/net", "worker", "coordinator"]),
    ("clap", &["worker", "coordinator"]),
];

/// Sources of time and chance, which the pure crates get as arguments.
const IMPURE: &[&str] = &[
    "std::net",
    "std::thread",
    "std::fs",
    "Instant::now",
    "SystemTime",
    "thread_rng",
    "rand::rng(",
    "OsRng",
    "from_os_rng",
    "getrandom",
];

/// Crates that must not enter the tree: C, C++ or a second TLS.
const BANNED: &[&str] =
    &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "onig", "onig_sys", "native-tls"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("failed to read {}: {e}", path.display()))
}

/// Names in the sections of a manifest that make edges: dependencies of the library and the program.
fn dependencies(member: &str) -> Vec<String> {
    let manifest = read(format!("{member}/Cargo.toml"));
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || line.ends_with(".dependencies]");
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name: String =
                line.chars().take_while(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
            names.push(name);
        }
    }
    names
}

fn sources(below: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap_or_else(|e| panic!("failed to list {}: {e}", below.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, out);
        } else if name.ends_with(".rs") {
            out.push(path);
        }
    }
}

#[test]
fn crates_depend_only_upward() {
    for (member, allowed) in EDGES {
        for name in dependencies(member) {
            let ours = name.starts_with("shoal-") || name == "worker" || name == "coordinator";
            assert!(!ours || allowed.contains(&name.as_str()), "{member} must not depend on {name}");
        }
    }
}

#[test]
fn libraries_stay_in_their_rooms() {
    for (library, owners) in OWNERS {
        for (member, _) in EDGES {
            let named = dependencies(member).iter().any(|name| name == library);
            assert!(!named || owners.contains(member), "{member} must not name {library}");
        }
    }
}

#[test]
fn the_core_has_no_clock_socket_or_entropy() {
    let mut files = Vec::new();
    sources(&root().join("shared/core/src"), &mut files);
    sources(&root().join("shared/cluster/src"), &mut files);
    assert!(files.len() > 10, "the crates have moved");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for word in IMPURE {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn files_are_one_idea_each() {
    let mut files = Vec::new();
    for member in ["shared", "worker", "coordinator"] {
        sources(&root().join(member), &mut files);
    }
    for file in files {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= FILE_LINES, "{} has {lines} lines", file.display());
    }
}

#[test]
fn nothing_banned_is_in_the_tree() {
    let lock = read("Cargo.lock");
    for name in BANNED {
        assert!(!lock.contains(&format!("name = \"{name}\"\n")), "{name} entered the tree");
    }
    // bincode 3 is only a compile error; one major version is used.
    assert!(lock.contains("name = \"bincode\"\nversion = \"2."));
}

#[test]
fn the_readme_names_the_toolchain_of_the_manifest() {
    let manifest = read("Cargo.toml");
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(read("README.md").contains(&format!("Rust {version}")), "README.md does not name Rust {version}");
}
