//! The laboratory's network in user space: a switch that carries frames between interfaces at given rates and
//! with given delays, for machines whose kernel cannot delay packets (no `netem`).
//!
//! ```text
//! shoal-lab-delay describe CLUSTER.toml    the cluster as JSON, for scripts/lab/lab
//! shoal-lab-delay run CONFIG.json          carry frames until SIGINT or SIGTERM
//! ```
//!
//! One process serves all interfaces of a laboratory. It waits in one `ppoll` for frames and for the next one
//! to leave, and moves up to 64 frames a system call. Frames are timed from the kernel's time stamps, so what
//! the process takes to wake up is hidden in the delay as long as that is longer. `scripts/lab/lab` starts
//! it; nothing of Shoal depends on this crate.

mod config;
mod describe;
mod switch;
mod sys;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use config::{Config, ConfigError};
use switch::{Frame, Switch};

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
    let mut refused = 0;
    while !sys::stopped() {
        sys::wait(ports, switch.next_due(), &mut ready)?;
        for &at in &ready {
            // One batch each, so that no port keeps the others waiting.
            receiver.receive(&ports[at], |time, frame| switch.arrived(time, at, frame));
        }
        let now = sys::now();
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
