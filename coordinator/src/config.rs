//! Configuration: what a service needs and nobody wants to type. An argument wins over the environment, the environment
//! over the file; an unknown key in the file is an error, since a misspelt one would be ignored in silence.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shoal_core::frame::WireType;

use crate::cli::Global;
use crate::exit::{Failure, Outcome};

/// The file's keys. All may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ConfigFile {
    /// As `--data-dir`.
    pub(crate) data_dir: Option<PathBuf>,
    /// As `--listen`: where the coordinator is reached, `ip:port`.
    pub(crate) listen: Option<SocketAddr>,
    /// As `--address`: workers to dial where multicast does not work.
    #[serde(default)]
    pub(crate) address: Vec<SocketAddr>,
    /// As `--no-mdns`.
    pub(crate) no_mdns: Option<bool>,
    /// As `--wire`.
    pub(crate) wire: Option<WireType>,
    /// As `--memory-reserve`: bytes every worker keeps free, for the planner.
    pub(crate) memory_reserve: Option<u64>,
}

/// The file's settings together with the folders they and the arguments name.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) file: ConfigFile,
    pub(crate) data_dir: PathBuf,
}

impl Config {
    /// Reads the file that `global` names, or the user's own if there is one.
    ///
    /// # Errors
    /// A named file that cannot be read, or any file with a mistake in it.
    pub(crate) fn load(global: &Global) -> Outcome<Self> {
        let dirs = directories::ProjectDirs::from("", "", "shoal");
        let file = match (&global.config, &dirs) {
            (Some(path), _) => read(path)?,
            (None, Some(dirs)) => {
                let path = dirs.config_dir().join("config.toml");
                if path.exists() { read(&path)? } else { ConfigFile::default() }
            }
            (None, None) => ConfigFile::default(),
        };
        let own = || dirs.map(|dirs| dirs.data_dir().to_owned());
        let data_dir =
            global.data_dir.clone().or_else(|| file.data_dir.clone()).or_else(own).ok_or_else(|| {
                Failure::Usage(
                    "failed to find a data folder: this user has no home; name one with --data-dir"
                        .to_owned(),
                )
            })?;
        Ok(Self { file, data_dir })
    }
}

fn read(path: &Path) -> Outcome<ConfigFile> {
    let what = || format!("read the configuration {}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| Failure::machine(what(), error))?;
    toml::from_str(&text).map_err(|error| Failure::Usage(format!("failed to {}: {error}", what())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn global(config: &Path) -> Global {
        Global { verbose: 0, config: Some(config.to_owned()), data_dir: None }
    }

    #[test]
    fn keys_are_read_and_arguments_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "data-dir = \"/from/file\"\nlisten = \"0.0.0.0:7777\"\nwire = \"q8\"\n")
            .unwrap();
        let config = Config::load(&global(&path)).unwrap();
        assert_eq!(config.data_dir, Path::new("/from/file"));
        assert_eq!(config.file.wire, Some(WireType::Q8));
        let global = Global { data_dir: Some("/from/argument".into()), ..global(&path) };
        assert_eq!(Config::load(&global).unwrap().data_dir, Path::new("/from/argument"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "lisen = \"0.0.0.0:7777\"\n").unwrap();
        let error = Config::load(&global(&path)).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)), "{error}");
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
