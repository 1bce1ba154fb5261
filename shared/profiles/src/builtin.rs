//! The files of `profiles/`, as they were when the program was built.

macro_rules! files {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../profiles/", $folder, "/", $name, ".toml")))),*]
    };
}

/// Names and texts of boards, weak ones first.
pub(crate) const BOARDS: &[(&str, &str)] = files!("boards":
    "pi4-4gb", "pi4-8gb", "pi5-4gb", "pi5-8gb", "pi5-16gb",
    "orin-nano", "orin-nano-gpu", "orin-nx", "agx-orin", "n100", "macbook-m3-pro",
);

/// Names and texts of networks, slow ones first.
pub(crate) const NETS: &[(&str, &str)] = files!("nets":
    "wifi-5", "wifi-6", "100m-switch", "gigabit-switch", "2.5g-switch", "loopback",
);

/// Names of the built-in boards.
pub fn boards() -> &'static [&'static str] {
    const NAMES: [&str; BOARDS.len()] = names(BOARDS);
    &NAMES
}

/// Names of the built-in networks.
pub fn nets() -> &'static [&'static str] {
    const NAMES: [&str; NETS.len()] = names(NETS);
    &NAMES
}

const fn names<const N: usize>(files: &[(&'static str, &'static str)]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = files[at].0;
        at += 1;
    }
    names
}
