//! Where test data lies, and a vocabulary to start from.

#![expect(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use shoal_engine::gguf::{Gguf, Metadata};

/// The models that the project carries.
pub(crate) fn test_models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/data/models")
}

/// Data that is not free to carry: the folder that `SHOAL_SHARED_DIR` names, or `shared` beside the project. `None`
/// when it is not there, which is said.
pub(crate) fn shared_dir() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let dir = std::env::var_os("SHOAL_SHARED_DIR").map_or_else(beside, PathBuf::from);
    if dir.join("vocab").is_dir() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no folder {}/vocab (SHOAL_SHARED_DIR names another)", dir.display());
    None
}

/// The metadata of a model file.
pub(crate) fn metadata(path: &Path) -> Metadata {
    Gguf::open_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The vocabulary of the stories model.
pub(crate) fn stories() -> Metadata {
    metadata(&test_models_dir().join("stories-Q4_0.gguf"))
}

/// The character that stands for each byte in byte-level vocabularies.
pub(crate) fn byte_alphabet() -> Vec<char> {
    let mut spare = (256..).filter_map(char::from_u32);
    let prints = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    (0..=255).map(|byte| if prints(byte) { char::from(byte) } else { spare.next().unwrap_or('\0') }).collect()
}
