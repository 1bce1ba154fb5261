//! A device's measured figures, as prices are made of them.

use shoal_core::QuantType;
use shoal_core::profile::{BatchRate, ContextRate, DeviceProfile, Power};

use super::Device;

/// A device's measured figures by number format.
#[derive(Debug, Clone)]
pub(crate) struct Rates {
    stream: [f64; QuantType::ALL.len()],
    /// For each format `(rows, seconds for one weight and these rows)`, rows and seconds rising.
    batched: Vec<Vec<(f64, f64)>>,
    /// `(context, seconds for one KV byte of each position)`, contexts and seconds rising.
    attention: Vec<(f64, f64)>,
    pub(crate) overhead: f64,
    pub(crate) power: Option<Power>,
}

impl Rates {
    /// `None` where the profile has no rate at all.
    pub(crate) fn of(device: &Device) -> Option<Self> {
        Some(Self { power: device.power, ..Self::of_profile(&device.profile)? })
    }

    /// The same for a device of which no more is known than this.
    pub(crate) fn of_profile(profile: &DeviceProfile) -> Option<Self> {
        let entry = |entry: &ContextRate| (f64::from(entry.context), entry.rate.median.0);
        let mut out = Self {
            stream: [0.0; QuantType::ALL.len()],
            batched: Vec::with_capacity(QuantType::ALL.len()),
            attention: times(profile.attention.iter().map(entry)),
            overhead: profile.phase_overhead.median.0,
            power: None,
        };
        for kind in QuantType::ALL {
            let rate = profile.rate(kind)?;
            out.stream[kind as usize] = rate.stream.median.0;
            let entry = |entry: &BatchRate| (f64::from(entry.rows), entry.rate.median.0);
            out.batched.push(times(rate.batched.iter().map(entry)));
        }
        (!out.attention.is_empty() && out.batched.iter().all(|of| !of.is_empty())).then_some(out)
    }

    /// Seconds of a product of `rows × cols` weights of this format with `b` input rows.
    pub(crate) fn product(&self, kind: QuantType, rows: u64, cols: u64, b: f64) -> f64 {
        let values = (rows * cols) as f64;
        let bytes = values * kind.block_bytes() as f64 / kind.block_len() as f64;
        (bytes / self.stream[kind as usize]).max(values * amount_time(&self.batched[kind as usize], b))
    }

    /// KV bytes per second of attention over `s` positions.
    pub(crate) fn attention(&self, s: f64) -> f64 {
        let s = s.max(1.0);
        s / amount_time(&self.attention, s)
    }
}

/// From rates at amounts to times of these amounts. Times never fall as amounts rise, whatever was measured.
fn times(rates: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut before = 0.0_f64;
    let time = |(amount, rate): (f64, f64)| {
        before = before.max(amount / rate);
        (amount, before)
    };
    rates.map(time).collect()
}

/// The time of an amount: between two entries evenly, before the first and beyond the last at their rates.
fn amount_time(times: &[(f64, f64)], amount: f64) -> f64 {
    let above = times.partition_point(|entry| entry.0 <= amount);
    match (above.checked_sub(1).map(|at| times[at]), times.get(above)) {
        (Some((low, low_time)), Some(&(high, high_time))) => {
            low_time + (high_time - low_time) * (amount - low) / (high - low)
        }
        (Some((known, time)), None) | (None, Some(&(known, time))) => time * amount / known,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_rise_with_the_amount_and_meet_the_measured_rates() {
        let times = times([(1.0, 10.0), (4.0, 80.0), (16.0, 100.0)].into_iter());
        for (amount, time) in [(0.5, 0.05), (1.0, 0.1), (4.0, 0.1), (10.0, 0.13), (16.0, 0.16), (64.0, 0.64)]
        {
            assert!((amount_time(&times, amount) - time).abs() < 1e-12, "{amount}");
        }
    }
}
