//! Reading a file of a profile: which one a name means, and no more of it than a profile needs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{ProfileFileError, nearest_name};

/// Largest profile or cluster file: one of 500 devices, each with its link, has some 100 kB.
pub const FILE_BYTES: u64 = 1 << 20;

/// A file's text with what error messages call it and where names in it are looked for.
#[derive(Debug)]
pub(crate) struct Source {
    /// Name without folder and ending.
    pub(crate) name: String,
    /// For error messages.
    pub(crate) label: String,
    pub(crate) text: String,
    /// The folder of the file; `None` for one that is built in.
    pub(crate) folder: Option<PathBuf>,
}

impl Source {
    /// The built-in file of this name, or the one at this path (below `folder`, if it is not absolute).
    pub(crate) fn find(
        kind: &'static str,
        builtin: &[(&'static str, &'static str)],
        name: &str,
        folder: Option<&Path>,
    ) -> Result<Self, ProfileFileError> {
        if let Some((name, text)) = builtin.iter().find(|(known, _)| *known == name) {
            let (name, text) = ((*name).to_owned(), (*text).to_owned());
            return Ok(Self { label: format!("the built-in profile {name}"), name, text, folder: None });
        }
        let is_path = name.contains(['/', '\\']) || name.ends_with(".toml");
        if is_path {
            return Self::read(&folder.unwrap_or(Path::new("")).join(name));
        }
        let known = || builtin.iter().map(|(name, _)| *name);
        Err(ProfileFileError::Unknown {
            kind,
            name: name.chars().take(64).collect(),
            nearest: nearest_name(name, known()),
            known: known().collect::<Vec<_>>().join(", "),
        })
    }

    /// The file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, ProfileFileError> {
        let failed = |source| ProfileFileError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(failed)?;
        if bytes.len() as u64 > FILE_BYTES {
            return Err(ProfileFileError::TooLarge { path: path.to_owned(), most: FILE_BYTES });
        }
        let label = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
            ProfileFileError::Syntax { file: label.clone(), line, problem: "is not UTF-8 text".to_owned() }
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = Some(path.parent().unwrap_or(Path::new("")).to_owned());
        Ok(Self { name, label, text, folder })
    }

    /// The text as TOML of this type.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ProfileFileError> {
        toml::from_str(&self.text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start).min(self.text.len());
            let line = 1 + self.text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
            let problem = error.message().to_owned();
            ProfileFileError::Syntax { file: self.label.clone(), line, problem }
        })
    }
}
