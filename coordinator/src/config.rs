//! Configuration: what a service needs and nobody wants to type. An argument wins over the environment, the environment
//! over the file; an unknown key in the file is an error, since a misspelt one would be ignored in silence.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};
use shoal_core::frame::WireType;
use shoal_core::units::Bytes;

use crate::cli::HomeArgs;
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
    /// As `--memory-reserve`: what every worker keeps free, as text with a unit or a number of bytes.
    #[serde(default, deserialize_with = "size")]
    pub(crate) memory_reserve: Option<Bytes>,
}

/// The file's settings together with the folders they and the arguments name.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) file: ConfigFile,
    pub(crate) data_dir: PathBuf,
}

impl Config {
    /// Reads the file that `home` names, or the user's own if there is one.
    ///
    /// # Errors
    /// A named file that cannot be read, or any file with a mistake in it.
    pub(crate) fn load(home: &HomeArgs) -> Outcome<Self> {
        let dirs = directories::ProjectDirs::from("", "", "shoal");
        let file = match (&home.config, &dirs) {
            (Some(path), _) => read(path)?,
            (None, Some(dirs)) => {
                let path = dirs.config_dir().join("config.toml");
                if path.exists() { read(&path)? } else { ConfigFile::default() }
            }
            (None, None) => ConfigFile::default(),
        };
        let own = || dirs.map(|dirs| dirs.data_dir().to_owned());
        let data_dir =
            home.data_dir.clone().or_else(|| file.data_dir.clone()).or_else(own).ok_or_else(|| {
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

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Number(bytes) => Ok(Some(Bytes(bytes))),
        Size::Text(text) => text.parse().map(Some).map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(config: &Path) -> HomeArgs {
        HomeArgs { config: Some(config.to_owned()), data_dir: None }
    }

    #[test]
    fn keys_are_read_and_arguments_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(
            &path,
            "data-dir = \"/from/file\"\nlisten = \"0.0.0.0:7777\"\nwire = \"q8\"\nmemory-reserve = \"2MB\"\n",
        )
        .unwrap();
        let config = Config::load(&home(&path)).unwrap();
        assert_eq!(config.data_dir, Path::new("/from/file"));
        assert_eq!(config.file.wire, Some(WireType::Q8));
        assert_eq!(config.file.memory_reserve, Some(Bytes(2_000_000)));
        let home = HomeArgs { data_dir: Some("/from/argument".into()), ..home(&path) };
        assert_eq!(Config::load(&home).unwrap().data_dir, Path::new("/from/argument"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "lisen = \"0.0.0.0:7777\"\n").unwrap();
        let error = Config::load(&home(&path)).unwrap_err();
        assert!(matches!(error, Failure::Usage(_)), "{error}");
        assert!(error.to_string().contains("lisen"), "{error}");
    }
}
