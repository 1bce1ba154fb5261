//! Quantities with their units.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` binary megabytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The difference, or zero where it would be negative.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Bytes {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self(0), Add::add)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}

/// A text that is no size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a size: {0:?} (expected a number with an optional unit, such as 500MB, 1.5GB or 2GiB)")]
pub struct BytesError(pub String);

impl FromStr for Bytes {
    type Err = BytesError;

    /// Reads `500MB`, `1.5 GB`, `2GiB`, `2G` or a bare number of bytes. `k`, `M`, `G`, `T` count by
    /// 1,000 (as this type prints), with `i` by 1,024; letters may be of any case.
    fn from_str(text: &str) -> Result<Self, BytesError> {
        let error = || BytesError(text.chars().take(64).collect());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start().to_ascii_lowercase();
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let (unit, base) = unit.strip_suffix('i').map_or((unit, 1000_u64), |unit| (unit, 1024));
        let power = match (unit, base) {
            ("", 1000) => 0,
            ("k", _) => 1,
            ("m", _) => 2,
            ("g", _) => 3,
            ("t", _) => 4,
            _ => return Err(error()),
        };
        let factor = base.pow(power);
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(error);
        }
        let bytes = number.parse::<f64>().map_err(|_| error())? * factor as f64;
        // Above 2^63 a float no longer tells sizes apart; nobody means one.
        if bytes.is_finite() && bytes < 9.2e18 { Ok(Self(bytes.round() as u64)) } else { Err(error()) }
    }
}

/// Bytes per second, finite and positive where a constructor of a profile has checked it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct BytesPerSec(pub f64);

/// Multiply-accumulates per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct MacsPerSec(pub f64);

/// Watts, finite and positive where a constructor of a profile has checked it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Watts(pub f64);

/// A duration in seconds, for arithmetic in the cost model (wall clocks use `std::time::Duration`).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
pub struct Seconds(pub f64);

impl Add for Seconds {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Seconds {
    /// The same duration in milliseconds.
    pub fn as_ms(self) -> f64 {
        self.0 * 1e3
    }

    /// The longer of two.
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_with_a_fitting_unit() {
        let text: Vec<String> = [999, 1_500, 5_648_512, 4_220_000_000].map(|n| Bytes(n).to_string()).into();
        assert_eq!(text, ["999 B", "1.5 kB", "5.6 MB", "4.22 GB"]);
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        let sizes = [
            ("0", 0),
            ("4096", 4096),
            ("500MB", 500_000_000),
            ("1.5 gb", 1_500_000_000),
            (" 2GiB ", 2 << 30),
            ("2g", 2_000_000_000),
            ("3Ki", 3072),
            ("0.5MiB", 1 << 19),
            ("7B", 7),
        ];
        for (text, bytes) in sizes {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in
            ["", "GB", "-1", "1e9", "1.2.3G", "5XB", "5iB", "20 GB of it", "99999999999T", "NaN", "inf"]
        {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_never_wrap() {
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes(1) - Bytes(2), Bytes(0));
    }
}
