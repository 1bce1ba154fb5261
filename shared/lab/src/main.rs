//! The laboratory's network in user space: a switch that carries frames between interfaces at given rates and
//! with given delays, for machines whose kernel cannot delay packets (no `netem`).
//!
//! ```text
//! shoal-lab-delay describe CLUSTER.toml    the cluster as JSON, for scripts/lab/lab
//! shoal-lab-delay run CONFIG.json          carry frames until SIGINT or SIGTERM
//! ```
//!
//! One process serves all interfaces of a laboratory. Frames are timed from the kernel's time stamps, so it need
//! not look at one before the shortest delay has passed: after the first it sleeps that long, or until a frame
//! is to leave, and then takes all that have come, 64 a system call. A quiet laboratory costs nothing: it
//! waits in `ppoll`. `scripts/lab/lab` starts it; nothing of Shoal depends on this crate.

mod config;
mod describe;
mod switch;
mod sys;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use config::{Config, ConfigError};
use switch::{Frame, Switch};

/// System calls that empty one port before the next one has its turn.
const BATCHES: usize = 4;

/// A frame leaves early by up to this part of the shortest delay, so that one waking serves several frames; it
/// is late by about as much, which is what waking takes.
const EARLY: u64 = 8;

/// And by no more than this.
const EARLIEST_NS: u64 = 20_000;

/// Why the switch cannot run.
#[derive(Debug, thiserror::Error)]
enum LabError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("failed to describe the cluster: {0}")]
    Cluster(#[from] shoal_profiles::ProfileFileError),
    #[error("failed to open {interface}: {source}")]
    Open { interface: String, source: io::Error },
    #[error("failed to carry frames: {0}")]
    Run(#[from] io::Error),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["describe", path] => describe(path),
        ["run", path] => run(path),
        _ => {
            let _ = writeln!(io::stderr(), "usage: shoal-lab-delay describe CLUSTER.toml | run CONFIG.json");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell is no reason to fail otherwise.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn describe(path: &str) -> Result<(), LabError> {
    let text = describe::describe(Path::new(path))?;
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

fn run(path: &str) -> Result<(), LabError> {
    let config = Config::read(Path::new(path))?;
    sys::prepare()?;
    let open = |port: &config::PortConfig| {
        let open = sys::Port::open(&port.interface);
        open.map_err(|source| LabError::Open { interface: port.interface.clone(), source })
    };
    let ports = config.ports.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut switch = Switch::new(&config);
    // Whoever started it waits for this.
    writeln!(io::stdout(), "ready")?;
    let refused = carry(&ports, &mut switch)?;
    let counts = switch.counts();
    writeln!(
        io::stderr(),
        "carried {} frames of {} bytes in all; lost {} in full buffers, {refused} on the way out",
        counts.carried,
        counts.bytes,
        counts.lost
    )?;
    Ok(())
}

/// Carries frames until told to stop; how many an interface did not take.
fn carry(ports: &[sys::Port], switch: &mut Switch) -> Result<u64, io::Error> {
    let mut receiver = sys::Receiver::new();
    let mut ready = Vec::new();
    let mut leaving: Vec<Vec<Frame>> = vec![Vec::new(); ports.len()];
    let (mut refused, mut busy) = (0, false);
    let (unseen, early) = (switch.least_delay_ns() / 2, (switch.least_delay_ns() / EARLY).min(EARLIEST_NS));
    while !sys::stopped() {
        let next = switch.next_due();
        if busy && unseen > 0 {
            let unseen = sys::now() + unseen;
            sys::wait(&[], Some(next.map_or(unseen, |next| next.min(unseen))), &mut ready)?;
            ready.extend(0..ports.len());
        } else {
            sys::wait(ports, next, &mut ready)?;
        }
        busy = next.is_some();
        for &at in &ready {
            // A bound, so that no port keeps the others waiting.
            for _ in 0..BATCHES {
                let mut some = false;
                let more = receiver.receive(&ports[at], |time, frame| {
                    some = true;
                    switch.arrived(time, at, frame);
                });
                busy |= some;
                if !more {
                    break;
                }
            }
        }
        let now = sys::now() + early;
        while let Some((port, frame)) = switch.leaving(now) {
            leaving[port].push(frame);
        }
        for (port, frames) in ports.iter().zip(&mut leaving) {
            refused += (frames.len() - port.send(frames)) as u64;
            frames.clear();
        }
    }
    Ok(refused)
}
