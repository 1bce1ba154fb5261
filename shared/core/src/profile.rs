//! What was measured of devices and links, with its spread: the planner's inputs.

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::quant::QuantType;
use crate::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};

/// A figure with how far its repetitions lay apart: `(largest − smallest) ÷ median`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured<T> {
    pub median: T,
    pub spread: f32,
}

/// Rates of one number format on one device.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KindRate {
    pub kind: QuantType,
    /// Weight bytes per second of a product with one row, beyond the cache.
    pub stream: Measured<BytesPerSec>,
    /// Multiply-accumulates per second of a product with many rows.
    pub batched: Measured<MacsPerSec>,
}

/// What a device can do, as it measured itself with the real kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// One entry for each number format that was measured.
    pub rates: Vec<KindRate>,
    /// KV bytes per second in attention.
    pub attention: Measured<BytesPerSec>,
    /// Fixed cost of one phase (attention or feed-forward) of one layer.
    pub phase_overhead: Measured<Seconds>,
    /// Kernel threads that were used.
    pub threads: u32,
    /// Workers with the same id give the same bits.
    pub kernel_set: String,
}

/// What a directed link can do, as its two ends measured it with the real transport.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkProfile {
    pub from: NodeId,
    pub to: NodeId,
    /// Half of the round trip of 64 bytes.
    pub latency: Measured<Seconds>,
    pub bandwidth: Measured<BytesPerSec>,
}

/// A profile that no planner may use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the profile's {what} is {value}, which is not a positive finite number within bounds")]
pub struct ProfileError {
    pub what: &'static str,
    pub value: f64,
}

impl DeviceProfile {
    /// Checks that every figure is finite, positive and of this world.
    ///
    /// # Errors
    /// The first figure that is not.
    pub fn check(&self) -> Result<(), ProfileError> {
        for rate in &self.rates {
            within("weight streaming rate", rate.stream.median.0, 1e3, 1e14)?;
            within("batched rate", rate.batched.median.0, 1e3, 1e17)?;
        }
        within("attention rate", self.attention.median.0, 1e3, 1e14)?;
        within("overhead per phase", self.phase_overhead.median.0, 1e-9, 10.0)
    }

    /// The rates of a format: its own, or else those of the slowest that was measured.
    pub fn rate(&self, kind: QuantType) -> Option<&KindRate> {
        let slowest = || self.rates.iter().min_by(|a, b| a.stream.median.0.total_cmp(&b.stream.median.0));
        self.rates.iter().find(|rate| rate.kind == kind).or_else(slowest)
    }
}

impl LinkProfile {
    /// Checks that the figures are finite, positive and of this world.
    ///
    /// # Errors
    /// The first figure that is not.
    pub fn check(&self) -> Result<(), ProfileError> {
        within("link latency", self.latency.median.0, 1e-8, 60.0)?;
        within("link bandwidth", self.bandwidth.median.0, 1.0, 1e13)
    }
}

fn within(what: &'static str, value: f64, least: f64, most: f64) -> Result<(), ProfileError> {
    if value.is_finite() && (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(ProfileError { what, value })
    }
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
    /// What weights, KV and buffers may take.
    pub usable: Bytes,
    /// Resident set of the process at the greeting, when it holds nothing of any model; zero where the
    /// system does not tell.
    pub resident: Bytes,
    /// Port of the data plane.
    pub data_port: u16,
}
