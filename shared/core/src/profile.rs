//! What was measured of devices and links, with its spread: the planner's inputs.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::quant::QuantType;
use crate::units::{Bytes, BytesPerSec, MacsPerSec, Seconds, Watts};

/// A figure with how far its repetitions lay apart: `(largest − smallest) ÷ median`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured<T> {
    pub median: T,
    pub spread: f32,
}

impl<T> Measured<T> {
    /// A figure of which no repetitions are known.
    pub const fn exact(median: T) -> Self {
        Self { median, spread: 0.0 }
    }
}

/// The rate of a product at one number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchRate {
    pub rows: u32,
    pub rate: Measured<MacsPerSec>,
}

/// Rates of one number format on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRate {
    pub kind: QuantType,
    /// Weight bytes per second of a product with one row, beyond the cache.
    pub stream: Measured<BytesPerSec>,
    /// Multiply-accumulates per second of a product with several rows, rows rising. Between two entries
    /// the time of a product is taken to grow evenly, before the first and beyond the last the rate holds.
    pub batched: Vec<BatchRate>,
}

impl KindRate {
    /// A format with one rate for all numbers of rows, of which no repetitions are known.
    pub fn flat(kind: QuantType, stream: BytesPerSec, batched: MacsPerSec) -> Self {
        let batched = vec![BatchRate { rows: 1, rate: Measured::exact(batched) }];
        Self { kind, stream: Measured::exact(stream), batched }
    }
}

/// The rate of attention at one context.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ContextRate {
    /// Positions attended to.
    pub context: u32,
    /// KV bytes per second.
    pub rate: Measured<BytesPerSec>,
}

/// What a device can do, as it measured itself with the real kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// One entry for each number format that was measured.
    pub rates: Vec<KindRate>,
    /// KV bytes per second in attention, contexts rising.
    pub attention: Vec<ContextRate>,
    /// Fixed cost of one phase (attention or feed-forward) of one layer.
    pub phase_overhead: Measured<Seconds>,
    /// Kernel threads that were used.
    pub threads: u32,
    /// Workers with the same id give the same bits.
    pub kernel_set: String,
}

impl ContextRate {
    /// One rate for all contexts, of which no repetitions are known.
    pub fn flat(rate: BytesPerSec) -> Vec<Self> {
        vec![Self { context: 1, rate: Measured::exact(rate) }]
    }
}

/// What a device draws from its supply.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// While it waits.
    pub idle: Watts,
    /// With all kernel threads at work.
    pub busy: Watts,
}

/// The round trip of one size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundTrip {
    /// Payload in each direction.
    pub bytes: u32,
    pub time: Measured<Seconds>,
}

/// What a link can do, whichever nodes it connects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// Payloads rising, the smallest of 64 bytes. At least one.
    pub round_trips: Vec<RoundTrip>,
    pub bandwidth: Measured<BytesPerSec>,
    /// Processor time of one small message on each of its two ends.
    pub message_cpu: Measured<Seconds>,
    /// Whether all transmissions share one medium, as on Wi-Fi.
    pub shared: bool,
}

/// What a directed link can do, as its two ends measured it with the real transport.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkProfile {
    pub from: NodeId,
    pub to: NodeId,
    pub figures: LinkFigures,
}

/// A profile that no planner may use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProfileError {
    #[error(
        "the profile's {what} is {value}, which is not a positive finite number from {least:e} to {most:e}"
    )]
    Figure { what: &'static str, value: f64, least: f64, most: f64 },
    #[error("the profile has no {what}")]
    Missing { what: &'static str },
    #[error("the profile has {count} entries of {what}, more than {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error("the profile's entries of {what} do not rise")]
    Order { what: &'static str },
}

/// By how much a figure may be better than another of the same device that bounds it, before it is doubted: noise
/// and cost models explain factors of two.
const BELIEVED: f64 = 4.0;

/// By how much batches may be faster than one row: some thousand times on the largest accelerators.
const BATCH_GAIN: f64 = 1000.0;

/// Entries of a list in a profile: formats, batch sizes, contexts, message sizes. None needs more.
pub const PROFILE_ENTRIES: usize = 64;

impl DeviceProfile {
    /// Checks that every figure is there, finite, positive and of this world, and that lists rise.
    ///
    /// # Errors
    /// The first figure that is not.
    pub fn check(&self) -> Result<(), ProfileError> {
        list("weight streaming rate", &self.rates)?;
        for rate in &self.rates {
            within("weight streaming rate", rate.stream.median.0, 1e3, 1e14)?;
            list("batched rate", &rate.batched)?;
            rising("batched rate", rate.batched.iter().map(|entry| entry.rows))?;
            for entry in &rate.batched {
                within("batched rate", entry.rate.median.0, 1e3, 1e17)?;
            }
        }
        list("attention rate", &self.attention)?;
        rising("attention rate", self.attention.iter().map(|entry| entry.context))?;
        for entry in &self.attention {
            within("attention rate", entry.rate.median.0, 1e3, 1e14)?;
        }
        within("overhead per phase", self.phase_overhead.median.0, 1e-9, 10.0)?;
        let rates = self
            .rates
            .iter()
            .flat_map(|rate| rate.batched.iter().map(|entry| entry.rate.spread).chain([rate.stream.spread]));
        let attention = self.attention.iter().map(|entry| entry.rate.spread);
        spreads(rates.chain(attention).chain([self.phase_overhead.spread]))
    }

    /// What of a sound profile is hardly that of any machine: a person should look at it.
    pub fn doubt(&self) -> Option<String> {
        for rate in &self.rates {
            let weights =
                rate.stream.median.0 * rate.kind.block_len() as f64 / rate.kind.block_bytes() as f64;
            let best = rate.batched.iter().map(|entry| entry.rate.median.0).fold(0.0, f64::max);
            if weights > BELIEVED * best {
                return Some(format!(
                    "it says that it streams {:.1e} {} weights a second and multiplies no more than {best:.1e}",
                    weights, rate.kind
                ));
            }
            if best > BELIEVED * BATCH_GAIN * weights {
                return Some(format!(
                    "it says that it multiplies {best:.1e} {} weights a second in batches and streams no more than \
                     {weights:.1e}",
                    rate.kind
                ));
            }
        }
        let fastest = self.rates.iter().map(|rate| rate.stream.median.0).fold(0.0, f64::max);
        let attention = self.attention.iter().map(|entry| entry.rate.median.0).fold(0.0, f64::max);
        (attention > BELIEVED * BELIEVED * fastest).then(|| {
            format!(
                "it says that attention reads {attention:.1e} bytes a second and weights only {fastest:.1e}"
            )
        })
    }

    /// The rates of a format: its own, or else those of the slowest that was measured.
    pub fn rate(&self, kind: QuantType) -> Option<&KindRate> {
        let slowest = || self.rates.iter().min_by(|a, b| a.stream.median.0.total_cmp(&b.stream.median.0));
        self.rates.iter().find(|rate| rate.kind == kind).or_else(slowest)
    }
}

impl Power {
    /// Checks that both figures are finite, positive and of this world.
    ///
    /// # Errors
    /// The first figure that is not.
    pub fn check(&self) -> Result<(), ProfileError> {
        within("idle power", self.idle.0, 1e-3, 1e5)?;
        within("busy power", self.busy.0, self.idle.0, 1e5)
    }
}

impl LinkFigures {
    /// Checks that the figures are there, finite, positive and of this world, and that payloads rise.
    ///
    /// # Errors
    /// The first figure that is not.
    pub fn check(&self) -> Result<(), ProfileError> {
        list("round trip", &self.round_trips)?;
        rising("round trip", self.round_trips.iter().map(|trip| trip.bytes))?;
        for trip in &self.round_trips {
            within("round trip", trip.time.median.0, 1e-8, 120.0)?;
        }
        within("link bandwidth", self.bandwidth.median.0, 1.0, 1e13)?;
        within("processor time of a message", self.message_cpu.median.0, 1e-9, 10.0)?;
        let trips = self.round_trips.iter().map(|trip| trip.time.spread);
        spreads(trips.chain([self.bandwidth.spread, self.message_cpu.spread]))
    }
}

impl LinkProfile {
    /// Checks the figures, and that the two ends differ.
    ///
    /// # Errors
    /// The first figure that is not of this world.
    pub fn check(&self) -> Result<(), ProfileError> {
        if self.from == self.to {
            return Err(ProfileError::Missing { what: "second end of the link" });
        }
        self.figures.check()
    }
}

fn within(what: &'static str, value: f64, least: f64, most: f64) -> Result<(), ProfileError> {
    if value.is_finite() && (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ProfileError::Figure { what, value, least, most })
    }
}

fn spreads(mut of: impl Iterator<Item = f32>) -> Result<(), ProfileError> {
    of.try_for_each(|spread| within("spread", spread.into(), 0.0, f32::MAX.into()))
}

fn list<T>(what: &'static str, entries: &[T]) -> Result<(), ProfileError> {
    match entries.len() {
        0 => Err(ProfileError::Missing { what }),
        1..=PROFILE_ENTRIES => Ok(()),
        count => Err(ProfileError::TooMany { what, count, most: PROFILE_ENTRIES }),
    }
}

fn rising(what: &'static str, values: impl Iterator<Item = u32>) -> Result<(), ProfileError> {
    let mut before = 0;
    for value in values {
        if value <= before {
            return Err(ProfileError::Order { what });
        }
        before = value;
    }
    Ok(())
}

/// What a worker says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub node: NodeId,
    /// Name for people: the host's, unless told otherwise.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Processor and build, for the cache of profiles.
    pub hardware: String,
    /// Workers with the same id give the same bits.
    pub kernel_set: String,
    pub threads: u32,
    /// Memory of the machine (or of the process's control group, if less).
    pub memory: Bytes,
    /// Free of it when the worker started, file caches that can be dropped included.
    pub available: Bytes,
    /// What the worker leaves to everything else.
    pub reserve: Bytes,
    /// What weights, KV and buffers may take: what is available less the reserve, unless a person said a number.
    pub usable: Bytes,
    /// Resident set of the process at the greeting, when it holds nothing of any model; zero where the
    /// system does not tell.
    pub resident: Bytes,
    /// Port of the data plane.
    pub data_port: u16,
    /// The device this worker plays, if it is not itself.
    pub emulation: Option<Emulation>,
}

/// A worker that plays another device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Emulation {
    /// Name of the profile it plays.
    pub profile: String,
    pub grade: Grade,
    /// By how much every clock of the laboratory is slowed, in thousandths: 1000 is real time.
    pub dilation_milli: u32,
}

impl Emulation {
    /// By how much every clock of the laboratory is slowed.
    pub fn dilation(&self) -> f64 {
        f64::from(self.dilation_milli) / 1000.0
    }
}

/// How much of an emulated device's work is real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// (a) Real arithmetic in real time, then sleep up to what the profile predicts.
    Real,
    /// (b) The same with every clock slowed.
    Dilated,
    /// (c) No weights, no arithmetic: the time is slept, texts mean nothing.
    Dry,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> DeviceProfile {
        DeviceProfile {
            rates: vec![KindRate {
                kind: QuantType::Q8_0,
                stream: Measured::exact(BytesPerSec(8.5e9)),
                batched: [(1, 8e9), (16, 40e9)]
                    .map(|(rows, rate)| BatchRate { rows, rate: Measured::exact(MacsPerSec(rate)) })
                    .to_vec(),
            }],
            attention: ContextRate::flat(BytesPerSec(4e9)),
            phase_overhead: Measured::exact(Seconds(5e-6)),
            threads: 4,
            kernel_set: "k".to_owned(),
        }
    }

    fn link() -> LinkFigures {
        LinkFigures {
            round_trips: [(64, 1e-4), (4096, 2e-4)]
                .map(|(bytes, time)| RoundTrip { bytes, time: Measured::exact(Seconds(time)) })
                .to_vec(),
            bandwidth: Measured::exact(BytesPerSec(1e8)),
            message_cpu: Measured::exact(Seconds(1e-5)),
            shared: false,
        }
    }

    const ABSURD: [f64; 6] = [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300];

    #[test]
    fn absurd_figures_of_a_device_are_refused_wherever_they_are() {
        assert_eq!(profile().check(), Ok(()));
        for value in ABSURD {
            let places: [fn(&mut DeviceProfile, f64); 4] = [
                |profile, value| profile.rates[0].stream.median.0 = value,
                |profile, value| profile.rates[0].batched[1].rate.median.0 = value,
                |profile, value| profile.attention[0].rate.median.0 = value,
                |profile, value| profile.phase_overhead.median.0 = value,
            ];
            for place in places {
                let mut absurd = profile();
                place(&mut absurd, value);
                assert!(matches!(absurd.check(), Err(ProfileError::Figure { .. })), "{absurd:?}");
            }
        }
        for spread in [-1.0, f32::NAN, f32::INFINITY] {
            let mut absurd = profile();
            absurd.rates[0].batched[0].rate.spread = spread;
            assert!(absurd.check().is_err(), "{spread}");
        }
    }

    #[test]
    fn lists_of_a_device_are_there_and_rise_and_end() {
        let mut none = profile();
        none.rates.clear();
        assert!(matches!(none.check(), Err(ProfileError::Missing { .. })));
        let mut falling = profile();
        falling.rates[0].batched.reverse();
        assert!(matches!(falling.check(), Err(ProfileError::Order { .. })));
        let mut zero = profile();
        zero.attention[0].context = 0;
        assert!(matches!(zero.check(), Err(ProfileError::Order { .. })));
        let mut many = profile();
        let entry = many.attention[0];
        many.attention =
            (1..=PROFILE_ENTRIES as u32 + 1).map(|context| ContextRate { context, ..entry }).collect();
        assert!(matches!(many.check(), Err(ProfileError::TooMany { .. })));
    }

    #[test]
    fn absurd_figures_of_a_link_are_refused() {
        assert_eq!(link().check(), Ok(()));
        for value in ABSURD {
            let places: [fn(&mut LinkFigures, f64); 3] = [
                |link, value| link.round_trips[0].time.median.0 = value,
                |link, value| link.bandwidth.median.0 = value,
                |link, value| link.message_cpu.median.0 = value,
            ];
            for place in places {
                let mut absurd = link();
                place(&mut absurd, value);
                assert!(absurd.check().is_err(), "{absurd:?}");
            }
        }
        let mut falling = link();
        falling.round_trips.reverse();
        assert!(falling.check().is_err());
        let same = LinkProfile { from: NodeId([1; 16]), to: NodeId([1; 16]), figures: link() };
        assert!(same.check().is_err());
    }

    #[test]
    fn what_outdoes_its_own_hardware_is_doubted() {
        assert_eq!(profile().doubt(), None);
        let mut fast = profile();
        // Sound, but it would multiply in streaming what it cannot multiply in batches.
        fast.rates[0].stream.median.0 = 1e12;
        assert_eq!(fast.check(), Ok(()));
        assert!(fast.doubt().is_some_and(|reason| reason.contains("streams")));
        let mut batches = profile();
        batches.rates[0].batched[1].rate.median.0 = 1e16;
        assert!(batches.doubt().is_some_and(|reason| reason.contains("batches")));
        let mut attention = profile();
        attention.attention[0].rate.median.0 = 1e13;
        assert!(attention.doubt().is_some_and(|reason| reason.contains("attention")));
    }
}
