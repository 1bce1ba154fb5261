//! The async runtime of a command, and what ends it early: a signal.

use std::time::Duration;

use crate::exit::{Failure, Outcome};

/// Threads for sockets; computing happens in workers.
const THREADS: usize = 2;

/// How long background tasks may take to notice the end.
const WIND_UP: Duration = Duration::from_millis(500);

/// Runs `work` to its end, or until Ctrl-C or a termination signal; `work` is then dropped, and with it whatever it
/// started.
///
/// # Errors
/// Those of `work`, or the signal.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::machine("start the async runtime", error))?;
    let result = runtime.block_on(async {
        let signal = signal();
        tokio::select! {
            result = work => result,
            number = signal => Err(Failure::Signal(number)),
        }
    });
    runtime.shutdown_timeout(WIND_UP);
    result
}

#[cfg(unix)]
async fn signal() -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut stream) => stream.recv().await,
            // Without a handler the signal ends the process, and the workers with it.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = wait(SignalKind::interrupt()) => 2,
        _ = wait(SignalKind::hangup()) => 1,
        _ = wait(SignalKind::terminate()) => 15,
    }
}

#[cfg(not(unix))]
async fn signal() -> u8 {
    match tokio::signal::ctrl_c().await {
        Ok(()) => 2,
        Err(_) => std::future::pending().await,
    }
}
