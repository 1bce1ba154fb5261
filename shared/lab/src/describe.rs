//! A cluster file as the laboratory needs it: resolved, in plain units, as JSON.

use std::path::Path;

use serde::Serialize;
use shoal_core::profile::LinkFigures;
use shoal_profiles::{ClusterFile, ProfileFileError};

#[derive(Debug, Serialize)]
struct Described {
    name: String,
    devices: Vec<Device>,
    links: Vec<Link>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    profile: String,
    network: Option<String>,
    usable_bytes: u64,
    /// Of one processor's time.
    cpu_quota: Option<f64>,
}

/// One direction between two devices.
#[derive(Debug, Serialize)]
struct Link {
    from: usize,
    to: usize,
    shared: bool,
    /// Bytes per second of payload.
    bandwidth: f64,
    message_cpu_s: f64,
    round_trips: Vec<RoundTrip>,
}

#[derive(Debug, Serialize)]
struct RoundTrip {
    bytes: u32,
    s: f64,
}

/// The file at `path`, described.
pub(crate) fn describe(path: &Path) -> Result<String, ProfileFileError> {
    let file = ClusterFile::read(path)?;
    let device = |at: usize| Device {
        name: file.boards[at].0.clone(),
        profile: file.boards[at].1.name.clone(),
        network: file.networks[at].clone(),
        usable_bytes: file.boards[at].1.usable.0,
        cpu_quota: file.cpu_quota[at],
    };
    let link = |(from, to, figures): &(usize, usize, LinkFigures)| Link {
        from: *from,
        to: *to,
        shared: figures.shared,
        bandwidth: figures.bandwidth.median.0,
        message_cpu_s: figures.message_cpu.median.0,
        round_trips: figures
            .round_trips
            .iter()
            .map(|trip| RoundTrip { bytes: trip.bytes, s: trip.time.median.0 })
            .collect(),
    };
    let described = Described {
        name: file.name.clone(),
        devices: (0..file.boards.len()).map(device).collect(),
        links: file.links.iter().map(link).collect(),
    };
    // Plain data with text keys: it cannot fail to be JSON.
    Ok(serde_json::to_string(&described).unwrap_or_default())
}
