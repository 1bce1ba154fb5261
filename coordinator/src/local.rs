//! Local workers: throw-away worker processes of this very program, for a command that brings its own cluster.
//!
//! Each has its own identity, port and cache folder, all in one temporary folder. They end when their standard input
//! closes, so none outlives this process however it dies; and dropping [`LocalWorkers`] ends them, waits for them, and
//! removes the folder, on the way out of an error, a panic or a signal as well.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use shoal_core::units::Bytes;
use tempfile::TempDir;

use crate::exit::{Failure, Outcome};

/// How long a worker may take to end by itself; then it is killed. It only has to close its sockets.
const GRACE: Duration = Duration::from_secs(2);

/// How often an ending worker is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How much of a worker's log is shown when it ends before its time.
const LOG_TAIL_BYTES: u64 = 2048;

/// What local workers are started with.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalOptions {
    pub(crate) workers: u32,
    /// Kernel threads of each; by default the cores are shared out.
    pub(crate) threads: Option<u32>,
    /// Memory budget of each; by default what they find.
    pub(crate) memory: Option<Bytes>,
    /// A folder with whole model files.
    pub(crate) models: Option<PathBuf>,
    /// Where they find the coordinator; `None` leaves that to mDNS.
    pub(crate) coordinator: Option<SocketAddr>,
    /// The devices they play.
    pub(crate) played: Played,
    /// How much they log.
    pub(crate) verbose: u8,
}

/// Devices that local workers play: one for each, or none at all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Played {
    pub(crate) devices: Vec<String>,
    pub(crate) dilate: Option<f64>,
    pub(crate) dry: bool,
}

/// Worker processes and their folder.
#[derive(Debug)]
pub(crate) struct LocalWorkers {
    workers: Vec<Worker>,
    // Last, so that it goes when nobody writes to it any more.
    dir: TempDir,
}

#[derive(Debug)]
struct Worker {
    name: String,
    child: Child,
    log: PathBuf,
    /// Lines of its standard output.
    lines: Receiver<String>,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// The temporary folder of a throw-away cluster.
///
/// # Errors
/// It cannot be made.
pub(crate) fn temporary_folder() -> Outcome<TempDir> {
    let dir = tempfile::Builder::new().prefix("shoal-").tempdir();
    dir.map_err(|error| Failure::machine("make a temporary folder", error))
}

impl LocalWorkers {
    /// Starts the workers in `dir`, each with `token` to join by.
    ///
    /// # Errors
    /// A process cannot be started; those that were are ended again.
    pub(crate) fn start(dir: TempDir, token: &str, options: &LocalOptions) -> Outcome<Self> {
        let token_file = dir.path().join("token");
        write_secret(&token_file, token).map_err(|error| Failure::machine("write the join token", error))?;
        let mut all = Self { workers: Vec::new(), dir };
        for number in 1..=options.workers {
            all.spawn(number, &token_file, options)
                .map_err(|error| Failure::machine("start a local worker", error))?;
        }
        Ok(all)
    }

    /// Ends all workers and starts them anew with other options, in the same folder.
    ///
    /// # Errors
    /// As [`LocalWorkers::start`].
    pub(crate) fn restart(&mut self, options: &LocalOptions) -> Outcome {
        self.end();
        let token_file = self.dir.path().join("token");
        for number in 1..=options.workers {
            self.spawn(number, &token_file, options)
                .map_err(|error| Failure::machine("start a local worker", error))?;
        }
        Ok(())
    }

    /// What each worker said on its standard output so far: where it listens.
    pub(crate) fn said(&mut self) -> Vec<(String, String)> {
        let said = self
            .workers
            .iter()
            .flat_map(|worker| worker.lines.try_iter().map(|line| (worker.name.clone(), line)));
        said.collect()
    }

    /// Fails when a worker has ended.
    ///
    /// # Errors
    /// Its name, how it ended, and the end of its log.
    pub(crate) fn check(&mut self) -> Outcome {
        for worker in &mut self.workers {
            if let Ok(Some(status)) = worker.child.try_wait() {
                let log = tail(&worker.log).unwrap_or_default();
                return Err(Failure::Lost(format!(
                    "local worker {} ended: {}{log}",
                    worker.name,
                    describe(status)
                )));
            }
        }
        Ok(())
    }

    fn spawn(&mut self, number: u32, token_file: &Path, options: &LocalOptions) -> io::Result<()> {
        let name = worker_name(number, &options.played);
        // Not by the name: a cluster file may call its devices as it likes, by a path as well.
        let folder = self.dir.path().join(format!("local-{number}"));
        std::fs::create_dir_all(&folder)?;
        let log = folder.join("log");
        let stderr: Stdio = if options.verbose > 0 { Stdio::inherit() } else { File::create(&log)?.into() };
        let mut command = Command::new(std::env::current_exe()?);
        // The user's settings for a real worker on this machine are none of theirs.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("SHOAL_") && variable != "SHOAL_LOG" {
                command.env_remove(&variable);
            }
        }
        command.args(arguments(&name, &folder, token_file, options, number));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        // Ctrl-C reaches this process alone, which then ends the workers in order.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (sender, lines) = channel();
        let reader = child.stdout.take().map(|out| {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            })
        });
        self.workers.push(Worker { name, child, log, lines, reader });
        Ok(())
    }

    /// Closes their standard input, waits, kills who is still there, and waits again.
    fn end(&mut self) {
        for worker in &mut self.workers {
            drop(worker.child.stdin.take());
        }
        let deadline = Instant::now() + GRACE;
        for worker in &mut self.workers {
            while matches!(worker.child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    tracing::debug!("{} does not end by itself and is killed", worker.name);
                    let _ = worker.child.kill();
                    break;
                }
                std::thread::sleep(POLL);
            }
            let _ = worker.child.wait();
            if let Some(reader) = worker.reader.take() {
                let _ = reader.join();
            }
        }
        self.workers.clear();
    }
}

impl Drop for LocalWorkers {
    fn drop(&mut self) {
        self.end();
    }
}

/// A device of a cluster file goes by its name there, unless two play it.
fn worker_name(number: u32, played: &Played) -> String {
    let device_of = |device: &String| device.rsplit_once('#').map(|(_, name)| name.to_owned());
    let own = played.devices.get(number as usize - 1).and_then(device_of);
    let alone = |name: &String| {
        played.devices.iter().filter_map(device_of).filter(|other| other == name).count() == 1
    };
    own.filter(alone).unwrap_or_else(|| format!("local-{number}"))
}

fn arguments(
    name: &str,
    folder: &Path,
    token_file: &Path,
    options: &LocalOptions,
    number: u32,
) -> Vec<OsString> {
    let mut out: Vec<OsString> = ["worker", "--child", "--name", name].map(OsString::from).into();
    let mut put = |flag: &str, value: OsString| out.extend([flag.into(), value]);
    put("--join-file", token_file.into());
    put("--data-dir", folder.join("data").into());
    put("--cache-dir", folder.join("cache").into());
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = options.threads.unwrap_or((cores / options.workers.max(1)).max(1));
    put("--threads", threads.to_string().into());
    if let Some(memory) = options.memory {
        put("--memory", memory.0.to_string().into());
    }
    if let Some(models) = &options.models {
        put("--models", models.into());
    }
    if let Some(device) = options.played.devices.get(number as usize - 1) {
        put("--emulate", device.into());
        if let Some(dilate) = options.played.dilate {
            put("--dilate", dilate.to_string().into());
        }
    }
    if let Some(coordinator) = options.coordinator {
        put("--coordinator", coordinator.to_string().into());
        // A throw-away cluster on one machine is nobody else's business.
        put("--listen", "127.0.0.1:0".into());
        out.push("--no-mdns".into());
    }
    if options.played.dry {
        out.push("--dry".into());
    }
    out.extend((0..options.verbose).map(|_| "-v".into()));
    out
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    io::Write::write_all(&mut options.open(path)?, text.as_bytes())
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("killed by signal {signal}");
    }
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

/// The last lines of a log, on lines of their own.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    Ok(if text.is_empty() { String::new() } else { format!("\n{text}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_called_as_the_devices_they_play() {
        let devices = ["a.toml#pi", "pi5-8gb", "b.toml#twice", "b.toml#twice"].map(str::to_owned).to_vec();
        let played = Played { devices, ..Played::default() };
        let names = (1..=5).map(|number| worker_name(number, &played)).collect::<Vec<_>>();
        assert_eq!(names, ["pi", "local-2", "local-3", "local-4", "local-5"]);
    }

    #[test]
    fn each_worker_has_folders_of_its_own() {
        let options = LocalOptions {
            workers: 2,
            threads: Some(1),
            memory: Some(Bytes(5)),
            coordinator: Some("127.0.0.1:7".parse().unwrap()),
            ..LocalOptions::default()
        };
        let text = |n: &str| {
            let args = arguments(n, &Path::new("/t").join(n), Path::new("/t/token"), &options, 1);
            args.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert!(text("a").starts_with("worker --child --name a --join-file /t/token --data-dir /t/a/data"));
        assert!(
            text("b").contains("--cache-dir /t/b/cache --threads 1 --memory 5 --coordinator 127.0.0.1:7")
        );
    }
}
