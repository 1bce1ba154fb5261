//! The worker: the process on a board that holds a shard of a model and computes with it.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | what a worker can be told: command line, environment, file |
//! | [`machine`] | what it knows of its machine without measuring |
//! | [`measure`] | what its machine can do with a model |
//! | [`store`] | weights on this machine: local copies, the chunk cache |
//! | [`runtime`] | the compute thread: steps, the output head, the all-reduce |
//! | [`emulate`] | playing another device |
//! | [`driver`] | the control side: joining, the coordinator's connection, the state machine |
//!
//! Both binaries call [`start_logs`] first, and then [`main`] (`shoal` for `shoal worker` alone). Everything
//! that computes is on plain threads; the async runtime only moves messages.

pub mod args;
pub mod driver;
pub mod emulate;
pub mod machine;
pub mod measure;
pub mod runtime;
pub mod store;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use shoal_net::control::{EndpointError, JoinError};
use shoal_net::data::DataError;
use shoal_net::token::TokenParseError;
use shoal_net::trust::TrustError;
use tokio::signal::unix::{SignalKind, signal};

use args::{SettingsError, WorkerArgs};

/// How long the process may take to end after it was told to.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// The last lines of `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  told to stop, and stopped
  1  this machine failed (a folder, a port, a lock)
  2  wrong usage
  3  the token, the identity or the configuration cannot be used";

/// Why a worker cannot run. Messages name what was tried; [`WorkerError::exit_code`] says whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("failed to use the join token")]
    Token(#[from] TokenParseError),
    #[error(
        "this worker belongs to no cluster yet: run `shoal token` on the coordinator, \
         then start this worker once with --join-file or --join"
    )]
    NoCluster,
    #[error("failed to join: without mDNS the coordinator must be named with --coordinator")]
    NoWay,
    #[error("failed to join the cluster")]
    Join(#[source] JoinError),
    #[error("failed to use this worker's identity")]
    Trust(#[from] TrustError),
    #[error("another worker (process {holder}) uses the data folder {}: give each its own --data-dir", dir.display())]
    Held { dir: PathBuf, holder: String },
    #[error("failed to {what} {}", path.display())]
    Folder { what: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to listen")]
    Listen(#[source] EndpointError),
    #[error("failed to open the data plane")]
    DataPlane(#[source] DataError),
    #[error("failed to go on: the compute thread has panicked")]
    Compute,
    #[error("failed to start threads")]
    Threads(#[source] io::Error),
}

impl WorkerError {
    /// The process's exit code: 3 for input that cannot be used, 1 for a machine that fails.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_)
            | Self::Token(_)
            | Self::NoCluster
            | Self::NoWay
            | Self::Join(_)
            | Self::Trust(_) => 3,
            Self::Compute
            | Self::Held { .. }
            | Self::Folder { .. }
            | Self::Listen(_)
            | Self::DataPlane(_)
            | Self::Threads(_) => 1,
        }
    }
}

/// Runs a worker until a signal (or, for a child, the end of its standard input) stops it. Errors are
/// printed to standard error.
pub fn main(args: WorkerArgs) -> ExitCode {
    match try_main(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell is no reason to fail otherwise.
            let _ = writeln!(io::stderr(), "error: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn try_main(args: WorkerArgs) -> Result<(), WorkerError> {
    let settings = args.settle()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(WorkerError::Threads)?;
    let child = settings.child;
    let result = runtime.block_on(async {
        let stop = stop_signal(child).map_err(WorkerError::Threads)?;
        driver::run(settings, stop).await
    });
    // Reads of a slow disk are not waited for.
    runtime.shutdown_background();
    result
}

/// Logs to standard error: warnings only: warnings only, unless `-v` or SHOAL_LOG asks for more.
pub fn start_logs(verbose: u8) {
    let asked = std::env::var("SHOAL_LOG").ok().filter(|_| verbose == 0);
    // A second subscriber cannot be set, and there is none before this one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(asked.unwrap_or_else(|| log_filter(verbose))))
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .try_init();
}

/// What is logged at this many `-v`. Warnings of the libraries below (a network that cannot be reached, a
/// foreign packet) are retried or reported by Shoal itself, so they are shown only to who asks for more.
fn log_filter(verbose: u8) -> String {
    let (own, libraries) = match verbose {
        0 => ("warn", "error"),
        1 => ("info", "warn"),
        2 => ("debug", "warn"),
        _ => ("trace", "warn"),
    };
    let own_targets =
        ["shoal", "worker", "shoal_net", "shoal_cluster", "shoal_engine"].map(|target| (target, own));
    let below = ["quinn", "quinn_proto", "quinn_udp", "mdns_sd", "rustls"].map(|target| (target, libraries));
    let mut filter = "warn".to_owned();
    for (target, level) in own_targets.into_iter().chain(below) {
        filter.push_str(&format!(",{target}={level}"));
    }
    filter
}

/// Completes at SIGTERM, SIGINT, or, for a child, when standard input ends. From then on the process has
/// [`LAST_MOMENT`]: whatever hangs, it is gone after it.
fn stop_signal(child: bool) -> io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (closed, input_closed) = tokio::sync::oneshot::channel();
    if child {
        std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
            let mut input = io::stdin().lock();
            let mut buffer = [0; 256];
            while input.read(&mut buffer).is_ok_and(|n| n > 0) {}
            // A driver that has ended already needs no word.
            let _ = closed.send(());
            last_moment();
        })?;
    } else {
        std::mem::forget(closed);
    }
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = input_closed => {}
        }
        // Best effort: without the thread the ordinary end must do.
        let _ = std::thread::Builder::new().name("last-moment".to_owned()).spawn(last_moment);
    })
}

fn last_moment() {
    std::thread::sleep(LAST_MOMENT);
    std::process::exit(0);
}

/// An error with its causes, each said once: some messages name their cause already.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::EnvFilter;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("log").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn warnings_of_libraries_are_for_who_asks() {
        let logged = |verbose| {
            let (log, filter) = (Log::default(), EnvFilter::new(log_filter(verbose)));
            let writer = log.clone();
            let subscriber =
                tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || writer.clone());
            tracing::subscriber::with_default(subscriber.finish(), || {
                tracing::warn!(target: "quinn_udp", "sendmsg error");
                tracing::warn!(target: "shoal::driver", "own warning");
                tracing::info!(target: "shoal_net::gate", "own news");
            });
            let text = String::from_utf8(log.0.lock().expect("log").clone()).expect("text");
            ["sendmsg error", "own warning", "own news"].map(|part| text.contains(part))
        };
        assert_eq!(logged(0), [false, true, false]);
        assert_eq!(logged(1), [true, true, true]);
    }
}
