//! What a worker can be told, and by whom: command line, environment, configuration file, in this
//! order of precedence. [`WorkerArgs`] is mounted by `shoal worker` and by `shoal-worker`;
//! [`WorkerArgs::settle`] makes the [`Settings`] that the rest of the crate obeys.

use std::io::BufRead;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use shoal_core::units::Bytes;
use shoal_profiles::ProfileFileError;

use crate::emulate::{DILATION, Emulated};

/// Bound of the model cache when nothing else is said: several models of small boards, and a part of
/// the smallest card anyone puts into one.
pub const DEFAULT_CACHE_SIZE: Bytes = Bytes(20_000_000_000);

/// A join token and its line break are a few dozen characters; a longer "token" is some other file.
const TOKEN_BYTES: u64 = 4096;

/// A configuration of a dozen keys; a larger file is some other one.
const CONFIG_BYTES: u64 = 1 << 20;

/// Most kernel threads anyone may ask for: far above the cores of a board.
const THREADS: u32 = 1024;

/// Offer this machine to a cluster: hold a part of a model and compute with it.
///
/// The first start needs a join token from the coordinator (`shoal token` prints one). Afterwards the
/// worker knows its cluster and only needs to be started.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkerArgs {
    /// Join the cluster that printed this token; `-` reads it from the first line of standard input.
    /// A token given here shows in the process list: prefer --join-file, `-` or SHOAL_JOIN.
    #[arg(long, value_name = "TOKEN")]
    pub join: Option<String>,

    /// Join with the token in this file [else: the token in the environment variable SHOAL_JOIN]
    #[arg(long, value_name = "FILE", conflicts_with = "join")]
    pub join_file: Option<PathBuf>,

    /// Call the coordinator at this address (host:port or ip:port) instead of searching the local
    /// network for it. May be given several times.
    #[arg(long, value_name = "ADDR", env = "SHOAL_COORDINATOR", value_delimiter = ',')]
    pub coordinator: Vec<String>,

    /// Accept connections at this address [default: any address, a free port]
    #[arg(long, value_name = "IP:PORT", env = "SHOAL_WORKER_LISTEN")]
    pub listen: Option<SocketAddr>,

    /// Name under which people see this machine [default: its host name]
    #[arg(long, env = "SHOAL_WORKER_NAME")]
    pub name: Option<String>,

    /// Folder of Shoal's data; identity and membership go to its subfolder `worker` [default: the
    /// user's data folder]
    #[arg(long, value_name = "DIR", env = "SHOAL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// Folder for the parts of models that were fetched [default: the user's cache folder]
    #[arg(long, value_name = "DIR", env = "SHOAL_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,

    /// Most disk space for those parts, such as 20GB; models not used for longest go first [default:
    /// 20GB]
    #[arg(long, value_name = "BYTES", env = "SHOAL_CACHE_SIZE")]
    pub cache_size: Option<Bytes>,

    /// Memory for weights, KV cache and buffers, such as 6GB [default: what is free now, less a
    /// reserve for everything else]
    #[arg(long, value_name = "BYTES", env = "SHOAL_MEMORY")]
    pub memory: Option<Bytes>,

    /// Threads that compute [default: one for each core]
    #[arg(long, value_name = "N", env = "SHOAL_THREADS", value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS)))]
    pub threads: Option<u32>,

    /// Folder in which whole model files may lie already, so that they need not be fetched. May be
    /// given several times.
    #[arg(long, value_name = "DIR", env = "SHOAL_MODELS", value_delimiter = ',')]
    pub models: Vec<PathBuf>,

    /// Play another device: the name of a built-in board such as pi5-8gb, a board's TOML file, or a device
    /// of a cluster file (cluster.toml#device). The arithmetic is done, and then slept up to what that
    /// device would take.
    #[arg(long, value_name = "FILE", help_heading = "Emulation")]
    pub emulate: Option<String>,

    /// Slow every clock of the played device K times, where this machine is slower than what it plays; all
    /// workers of a cluster must say the same K, and the network must be slowed as much
    #[arg(long, value_name = "K", requires = "emulate", value_parser = dilation, help_heading = "Emulation")]
    pub dilate: Option<f64>,

    /// Load no weights and do no arithmetic: only sleep as long as the played device would compute. Texts
    /// mean nothing.
    #[arg(long, requires = "emulate", help_heading = "Emulation")]
    pub dry: bool,

    /// TOML file with the same settings (join-file = "…", memory = "6GB", …); arguments and
    /// environment go before it
    #[arg(long, value_name = "FILE", env = "SHOAL_WORKER_CONFIG")]
    pub config: Option<PathBuf>,

    /// Neither announce this worker on the local network nor search it
    #[arg(long)]
    pub no_mdns: bool,

    /// Log more: once what happens, twice details (SHOAL_LOG takes a filter such as `debug`)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// A worker of the command that started it: says on one line of standard output where it listens,
    /// and ends when its standard input closes.
    #[arg(long, hide = true)]
    pub child: bool,
}

/// The same settings in a file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ConfigFile {
    join_file: Option<PathBuf>,
    coordinator: Option<Vec<String>>,
    listen: Option<SocketAddr>,
    name: Option<String>,
    data_dir: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    cache_size: Option<Size>,
    memory: Option<Size>,
    threads: Option<u32>,
    models: Option<Vec<PathBuf>>,
    no_mdns: Option<bool>,
}

/// A size as text with a unit, or as a bare number of bytes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

/// What the worker obeys.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The token's text, if one was given.
    pub join: Option<String>,
    /// Addresses to dial without discovery, as given.
    pub coordinators: Vec<String>,
    pub listen: SocketAddr,
    pub name: String,
    /// Identity, membership, locks and small caches of this worker.
    pub data_dir: PathBuf,
    pub cache_dir: PathBuf,
    pub cache_size: Bytes,
    /// Budget of weights, KV and buffers; `None` asks the system.
    pub memory: Option<Bytes>,
    pub threads: u32,
    pub models: Vec<PathBuf>,
    /// The device to play.
    pub emulated: Option<Arc<Emulated>>,
    pub mdns: bool,
    pub child: bool,
    pub verbose: u8,
}

/// Settings that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("failed to read the join token from {from}")]
    Token { from: String, source: std::io::Error },
    #[error("{0} holds no join token")]
    NoToken(String),
    #[error("failed to read the configuration {path}")]
    ReadConfig { path: PathBuf, source: std::io::Error },
    #[error("failed to understand the configuration {path}: {message}")]
    Config { path: PathBuf, message: String },
    #[error("no folder for {0} is known for this user: name one with {1}")]
    NoFolder(&'static str, &'static str),
    #[error("failed to read the device to play")]
    Emulate(#[from] ProfileFileError),
}

impl WorkerArgs {
    /// Adds what the configuration file says and the defaults, and reads the join token.
    ///
    /// # Errors
    /// An unreadable or wrong configuration or token, or a user without a home.
    pub fn settle(self) -> Result<Settings, SettingsError> {
        let file = self.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
        // Not the parser's `env`: a variable that is set must not conflict with `--join-file`.
        let variable = || std::env::var("SHOAL_JOIN").ok().filter(|text| !text.trim().is_empty());
        let join = match (self.join, self.join_file) {
            (Some(text), _) if text == "-" => Some(token_line("standard input", std::io::stdin().lock())?),
            (Some(text), _) => Some(text.trim().to_owned()),
            (None, Some(path)) => Some(token_file(&path)?),
            (None, None) => match (variable(), file.join_file) {
                (Some(text), _) => Some(text.trim().to_owned()),
                (None, Some(path)) => Some(token_file(&path)?),
                (None, None) => None,
            },
        };
        let folders = directories::ProjectDirs::from("", "", "shoal");
        let folder =
            |get: fn(&directories::ProjectDirs) -> &Path| folders.as_ref().map(|dirs| get(dirs).into());
        let data_dir: PathBuf = (self.data_dir.or(file.data_dir))
            .or_else(|| folder(directories::ProjectDirs::data_dir))
            .ok_or(SettingsError::NoFolder("data", "--data-dir"))?;
        let cache_dir = (self.cache_dir.or(file.cache_dir))
            .or_else(|| folder(directories::ProjectDirs::cache_dir))
            .ok_or(SettingsError::NoFolder("caches", "--cache-dir"))?;
        let emulated = |file: String| Emulated::new(&file, self.dilate.unwrap_or(1.0), self.dry);
        let emulated = self.emulate.map(emulated).transpose()?.map(Arc::new);
        let listen = self.listen.or(file.listen);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Ok(Settings {
            join,
            coordinators: or_file(self.coordinator, file.coordinator),
            listen: listen.unwrap_or(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)),
            name: self.name.or(file.name).unwrap_or_else(crate::machine::host_name),
            data_dir: data_dir.join("worker"),
            cache_dir,
            cache_size: self.cache_size.or(bytes(file.cache_size)).unwrap_or(DEFAULT_CACHE_SIZE),
            memory: self.memory.or(bytes(file.memory)),
            threads: self.threads.or(file.threads).unwrap_or(cores).clamp(1, THREADS),
            models: or_file(self.models, file.models),
            emulated,
            mdns: !(self.no_mdns || file.no_mdns == Some(true)),
            child: self.child,
            verbose: self.verbose,
        })
    }
}

/// A factor of `--dilate`.
///
/// # Errors
/// It is no number within [`DILATION`].
pub fn dilation(text: &str) -> Result<f64, String> {
    let (least, most) = DILATION;
    let factor = text.parse::<f64>().ok().filter(|factor| (least..=most).contains(factor));
    factor.ok_or_else(|| format!("{text:?} is no number from {least} to {most}"))
}

/// A list of the command line or environment replaces the file's.
fn or_file<T>(given: Vec<T>, file: Option<Vec<T>>) -> Vec<T> {
    if given.is_empty() { file.unwrap_or_default() } else { given }
}

fn bytes(size: Option<Size>) -> Option<Bytes> {
    match size? {
        Size::Number(bytes) => Some(Bytes(bytes)),
        // Its text was checked by `read_config`.
        Size::Text(text) => text.parse().ok(),
    }
}

fn read_config(path: &Path) -> Result<ConfigFile, SettingsError> {
    let source = |source| SettingsError::ReadConfig { path: path.to_owned(), source };
    let wrong = |message: String| SettingsError::Config { path: path.to_owned(), message };
    if std::fs::metadata(path).map_err(source)?.len() > CONFIG_BYTES {
        return Err(wrong("it is too long to be a configuration".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(source)?;
    let config: ConfigFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for size in [&config.cache_size, &config.memory] {
        if let Some(Size::Text(text)) = size {
            text.parse::<Bytes>().map_err(|error| wrong(error.to_string()))?;
        }
    }
    Ok(config)
}

fn token_file(path: &Path) -> Result<String, SettingsError> {
    let from = path.display().to_string();
    let file = std::fs::File::open(path);
    let file = file.map_err(|source| SettingsError::Token { from: from.clone(), source })?;
    token_line(&from, std::io::BufReader::new(file))
}

fn token_line(from: &str, reader: impl BufRead) -> Result<String, SettingsError> {
    let mut line = String::new();
    let read = reader.take(TOKEN_BYTES).read_line(&mut line);
    read.map_err(|source| SettingsError::Token { from: from.to_owned(), source })?;
    let token = line.trim();
    if token.is_empty() { Err(SettingsError::NoToken(from.to_owned())) } else { Ok(token.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: WorkerArgs,
    }

    fn settle(args: &[&str]) -> Result<Settings, SettingsError> {
        Cli::try_parse_from([&["worker"], args].concat()).expect("usage").args.settle()
    }

    #[test]
    fn arguments_go_before_the_file() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("worker.toml");
        let text = "memory = \"6GB\"\ncache-size = 1000\nname = \"pi\"\nthreads = 3\nmodels = [\"/a\"]\n";
        std::fs::write(&path, text).expect("write");
        let path = path.to_str().expect("path");
        let settings = settle(&["--config", path, "--memory", "1GiB", "--data-dir", "/d"]).expect("settings");
        assert_eq!(settings.memory, Some(Bytes(1 << 30)));
        assert_eq!(settings.cache_size, Bytes(1000));
        assert_eq!((settings.name.as_str(), settings.threads), ("pi", 3));
        assert_eq!(settings.models, [PathBuf::from("/a")]);
        assert_eq!(settings.data_dir, Path::new("/d/worker"));
        let settings = settle(&["--config", path, "--models", "/b", "--models", "/c"]).expect("settings");
        assert_eq!(settings.models, [PathBuf::from("/b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_wrong_configuration_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("worker.toml");
        for (text, part) in
            [("memry = 1", "memry"), ("memory = \"six\"", "six"), ("threads = \"x\"", "threads")]
        {
            std::fs::write(&path, text).expect("write");
            let error = settle(&["--config", path.to_str().expect("path")]).expect_err(text).to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(matches!(settle(&["--config", "/no/such"]), Err(SettingsError::ReadConfig { .. })));
    }

    #[test]
    fn a_token_is_the_first_line_of_its_file() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("token");
        let name = path.to_str().expect("path");
        std::fs::write(&path, " shoal-abc \nrest").expect("write");
        assert_eq!(settle(&["--join-file", name]).expect("settings").join.as_deref(), Some("shoal-abc"));
        std::fs::write(&path, "\n").expect("write");
        assert!(matches!(settle(&["--join-file", name]), Err(SettingsError::NoToken(_))));
        assert!(Cli::try_parse_from(["worker", "--join", "a", "--join-file", "b"]).is_err());
    }

    #[test]
    fn a_device_to_play_is_read_at_once() {
        let settings = settle(&["--emulate", "pi5-8gb", "--dilate", "3"]).expect("settings");
        assert_eq!(settings.emulated.expect("device").dilation(), 3.0);
        assert!(matches!(settle(&["--emulate", "no-such-board"]), Err(SettingsError::Emulate(_))));
    }

    #[test]
    fn usage_errors_are_the_parsers() {
        for bad in [
            &["--memory", "lots"][..],
            &["--threads", "0"],
            &["--listen", "nowhere"],
            &["--frob"],
            &["--dry"],
            &["--emulate", "pi5-8gb", "--dilate", "0.5"],
        ] {
            assert!(Cli::try_parse_from([&["worker"], bad].concat()).is_err(), "{bad:?}");
        }
    }
}
