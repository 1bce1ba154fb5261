//! A board: what a device can do and how much it holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shoal_core::profile::{BatchRate, ContextRate, DeviceProfile, KindRate, Power};
use shoal_core::units::{BytesPerSec, MacsPerSec, Seconds, Watts};
use shoal_core::{Bytes, QuantType};

use crate::builtin::BOARDS;
use crate::cluster::ClusterFile;
use crate::error::ProfileFileError;
use crate::figure::{Check, MACS, Mark, OVERHEAD, POWER, RawFigure, RawSeries, STREAM};
use crate::file::Source;
use crate::net::map;

/// Longest title, hardware prefix or name of a kernel set.
pub(crate) const TITLE_CHARS: usize = 128;

/// Files that may stand on each other by `like`; a longer chain is a circle.
const LIKE_DEPTH: usize = 4;

/// Prefixes of hardware texts one board may have.
const HARDWARE: usize = 16;

/// Id of the kernels where a file says none: on paper all boards run the same.
const KERNEL_SET: &str = "shoal-1";

/// A board on paper, or one that was measured and kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    /// The name of its file.
    pub name: String,
    /// For people.
    pub title: String,
    /// How the hardware text of a live board of this kind begins: its device-tree model.
    pub hardware: Vec<String>,
    /// Checked by [`DeviceProfile::check`].
    pub profile: DeviceProfile,
    /// What the board carries.
    pub memory: Bytes,
    /// What weights, KV and buffers may take.
    pub usable: Bytes,
    pub power: Option<Power>,
    /// Where each figure comes from, by its key in the file; rates are named as `rates.Q4_0.stream`.
    pub sources: BTreeMap<String, Mark>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BoardFile {
    /// Another board, of which all holds that this file does not say.
    like: Option<String>,
    title: Option<String>,
    hardware: Option<Vec<String>>,
    memory: Option<RawFigure>,
    usable: Option<RawFigure>,
    threads: Option<i64>,
    kernel_set: Option<String>,
    phase_overhead: Option<RawFigure>,
    attention: Option<RawSeries>,
    rates: Option<Vec<RawRates>>,
    power: Option<RawPower>,
}

/// Formats with the same figures.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRates {
    kinds: Option<Vec<String>>,
    stream: Option<RawFigure>,
    batched: Option<RawSeries>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawPower {
    idle: Option<RawFigure>,
    busy: Option<RawFigure>,
}

/// The board of this built-in name (`pi5-8gb`), the one in the file of this path (`my-board.toml`), or a device of
/// a cluster file as that file makes it (`cluster.toml#device`).
///
/// # Errors
/// There is no such board, or a figure of it cannot be used.
pub fn board(name_or_path: &str) -> Result<Board, ProfileFileError> {
    if let Some((path, device)) = name_or_path.rsplit_once('#') {
        let cluster = ClusterFile::read(Path::new(path))?;
        let found = cluster.boards.iter().find(|(name, _)| name == device);
        return found.map(|(_, board)| board.clone()).ok_or_else(|| ProfileFileError::Cluster {
            file: path.to_owned(),
            problem: format!("has no device {device:?}; its devices are {}", cluster.device_names()),
        });
    }
    find(name_or_path, None)
}

pub(crate) fn find(name: &str, folder: Option<&Path>) -> Result<Board, ProfileFileError> {
    let (source, raw) = load(name, folder)?;
    let check = Check { file: &source.label };
    let mut sources = BTreeMap::new();
    let title = raw.title.as_deref().ok_or_else(|| check.missing("title"))?;
    let title = check.text("title", title, TITLE_CHARS)?;
    let hardware = raw.hardware.unwrap_or_default();
    if hardware.len() > HARDWARE {
        return Err(check.value("hardware", hardware.len(), format!("at most {HARDWARE} prefixes")));
    }
    for prefix in &hardware {
        check.text("hardware", prefix, TITLE_CHARS)?;
    }
    let mut take = |key: &str, mark| {
        sources.insert(key.to_owned(), mark);
    };
    let (memory, mark) = check.size("memory", raw.memory.as_ref())?;
    take("memory", mark);
    let (usable, mark) = check.size("usable", raw.usable.as_ref())?;
    take("usable", mark);
    if usable > memory {
        return Err(check.value("usable", usable, format!("is more than the memory, {memory}")));
    }
    let (overhead, mark) = check.figure("phase-overhead", raw.phase_overhead.as_ref(), OVERHEAD)?;
    take("phase-overhead", mark);
    let (attention, mark) = check.series("attention", "context", raw.attention.as_ref(), STREAM)?;
    take("attention", mark);
    let power = power(&check, raw.power.as_ref(), &mut take)?;
    let threads = raw.threads.ok_or_else(|| check.missing("threads"))?;
    let threads = u32::try_from(threads).ok().filter(|threads| (1..=1024).contains(threads));
    let threads =
        threads.ok_or_else(|| check.value("threads", raw.threads.unwrap_or(0), "must be 1 to 1024"))?;
    let kernel_set = raw.kernel_set.as_deref().unwrap_or(KERNEL_SET);
    let profile = DeviceProfile {
        rates: rates(&check, raw.rates.as_deref(), &mut take)?,
        attention: attention
            .into_iter()
            .map(|(context, rate)| ContextRate { context, rate: map(rate, BytesPerSec) })
            .collect(),
        phase_overhead: map(overhead, Seconds),
        threads,
        kernel_set: check.text("kernel-set", kernel_set, TITLE_CHARS)?,
    };
    profile.check().map_err(|error| check.value("figures", &source.name, error.to_string()))?;
    Ok(Board { name: source.name.clone(), title, hardware, profile, memory, usable, power, sources })
}

/// The file, and what it says together with those it is like.
fn load(name: &str, folder: Option<&Path>) -> Result<(Source, BoardFile), ProfileFileError> {
    let source = Source::find("board", BOARDS, name, folder)?;
    let mut file: BoardFile = source.parse()?;
    let mut folder: Option<PathBuf> = source.folder.clone();
    for _ in 0..LIKE_DEPTH {
        let Some(like) = file.like.take() else { return Ok((source, file)) };
        let base = Source::find("board", BOARDS, &like, folder.as_deref())?;
        let other: BoardFile = base.parse()?;
        folder = base.folder;
        file = BoardFile {
            like: other.like,
            title: file.title.or(other.title),
            hardware: file.hardware.or(other.hardware),
            memory: file.memory.or(other.memory),
            usable: file.usable.or(other.usable),
            threads: file.threads.or(other.threads),
            kernel_set: file.kernel_set.or(other.kernel_set),
            phase_overhead: file.phase_overhead.or(other.phase_overhead),
            attention: file.attention.or(other.attention),
            rates: file.rates.or(other.rates),
            power: file.power.or(other.power),
        };
    }
    let check = Check { file: &source.label };
    Err(check.value("like", name, format!("leads through more than {LIKE_DEPTH} files, or in a circle")))
}

fn power(
    check: &Check<'_>,
    raw: Option<&RawPower>,
    take: &mut impl FnMut(&str, Mark),
) -> Result<Option<Power>, ProfileFileError> {
    let Some(raw) = raw else { return Ok(None) };
    let (idle, mark) = check.figure("power.idle", raw.idle.as_ref(), POWER)?;
    take("power.idle", mark);
    let (busy, mark) = check.figure("power.busy", raw.busy.as_ref(), POWER)?;
    take("power.busy", mark);
    if busy.median < idle.median {
        let expected = format!("is less than power.idle = {}", idle.median);
        return Err(check.value("power.busy", busy.median, expected));
    }
    Ok(Some(Power { idle: Watts(idle.median), busy: Watts(busy.median) }))
}

fn rates(
    check: &Check<'_>,
    raw: Option<&[RawRates]>,
    take: &mut impl FnMut(&str, Mark),
) -> Result<Vec<KindRate>, ProfileFileError> {
    let mut rates: Vec<KindRate> = Vec::new();
    let raw = raw.filter(|raw| !raw.is_empty()).ok_or_else(|| check.missing("rates"))?;
    for (at, raw) in raw.iter().enumerate() {
        let key = |name: &str| format!("rates[{at}].{name}");
        let kinds = raw.kinds.as_ref().filter(|kinds| !kinds.is_empty());
        let kinds = kinds.ok_or_else(|| check.missing(key("kinds")))?;
        let (stream, stream_mark) = check.figure(&key("stream"), raw.stream.as_ref(), STREAM)?;
        let (batched, batched_mark) = check.series(&key("batched"), "rows", raw.batched.as_ref(), MACS)?;
        let entry = |&(rows, rate)| BatchRate { rows, rate: map(rate, MacsPerSec) };
        let batched: Vec<BatchRate> = batched.iter().map(entry).collect();
        for name in kinds {
            let kind = QuantType::from_name(name).ok_or_else(|| {
                let known = QuantType::ALL.map(QuantType::name).join(", ");
                check.value(
                    key("kinds"),
                    format!("{name:?}"),
                    format!("is no number format; known are {known}"),
                )
            })?;
            if rates.iter().any(|known| known.kind == kind) {
                return Err(check.value(key("kinds"), format!("{name:?}"), "has rates already"));
            }
            take(&format!("rates.{kind}.stream"), stream_mark.clone());
            take(&format!("rates.{kind}.batched"), batched_mark.clone());
            rates.push(KindRate { kind, stream: map(stream, BytesPerSec), batched: batched.clone() });
        }
    }
    Ok(rates)
}

impl Board {
    /// The same board `factor` times as fast: rates rise, the overhead falls. Memory and power stay.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        for rate in &mut self.profile.rates {
            rate.stream.median.0 *= factor;
            for entry in &mut rate.batched {
                entry.rate.median.0 *= factor;
            }
        }
        for entry in &mut self.profile.attention {
            entry.rate.median.0 *= factor;
        }
        self.profile.phase_overhead.median.0 /= factor;
        self
    }
}
