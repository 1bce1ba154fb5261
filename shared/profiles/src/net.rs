//! A network: what a link through it can do.

use serde::Deserialize;
use shoal_core::profile::{LinkFigures, RoundTrip};
use shoal_core::units::{BytesPerSec, Seconds};

use crate::builtin::NETS;
use crate::error::ProfileFileError;
use crate::figure::{BANDWIDTH, Check, OVERHEAD, RawFigure, RawSeries, TRIP};
use crate::file::Source;

/// A network by which boards are attached. Its figures are those of a link between two boards attached by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    /// The name of its file.
    pub name: String,
    /// For people.
    pub title: String,
    /// Checked by [`LinkFigures::check`].
    pub figures: LinkFigures,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NetFile {
    title: Option<String>,
    bandwidth: Option<RawFigure>,
    round_trips: Option<RawSeries>,
    message_cpu: Option<RawFigure>,
    #[serde(default)]
    shared: bool,
}

/// The network of this built-in name, or the one in the file of this path.
///
/// # Errors
/// There is no such network, or a figure of it cannot be used.
pub fn net(name_or_path: &str) -> Result<Net, ProfileFileError> {
    find(name_or_path, None)
}

pub(crate) fn find(name: &str, folder: Option<&std::path::Path>) -> Result<Net, ProfileFileError> {
    let source = Source::find("network", NETS, name, folder)?;
    let raw: NetFile = source.parse()?;
    let check = Check { file: &source.label };
    let title = raw.title.as_deref().ok_or_else(|| check.missing("title"))?;
    let (bandwidth, _) = check.figure("bandwidth", raw.bandwidth.as_ref(), BANDWIDTH)?;
    let (trips, _) = check.series("round-trips", "bytes", raw.round_trips.as_ref(), TRIP)?;
    let (cpu, _) = check.figure("message-cpu", raw.message_cpu.as_ref(), OVERHEAD)?;
    let trip = |(bytes, time): (u32, shoal_core::profile::Measured<f64>)| RoundTrip {
        bytes,
        time: map(time, Seconds),
    };
    let figures = LinkFigures {
        round_trips: trips.into_iter().map(trip).collect(),
        bandwidth: map(bandwidth, BytesPerSec),
        message_cpu: map(cpu, Seconds),
        shared: raw.shared,
    };
    figures.check().map_err(|error| check.value("figures", &source.name, error.to_string()))?;
    Ok(Net {
        name: source.name.clone(),
        title: check.text("title", title, crate::board::TITLE_CHARS)?,
        figures,
    })
}

/// The same figure in a unit.
pub(crate) fn map<T>(
    figure: shoal_core::profile::Measured<f64>,
    unit: fn(f64) -> T,
) -> shoal_core::profile::Measured<T> {
    shoal_core::profile::Measured { median: unit(figure.median), spread: figure.spread }
}
