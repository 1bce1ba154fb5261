//! One figure of a file with where it comes from, and the checks every figure must pass.

use std::fmt;

use serde::Deserialize;
use shoal_core::Bytes;
use shoal_core::profile::{Measured, PROFILE_ENTRIES};

use crate::error::ProfileFileError;

/// Where a figure comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// By this command.
    Measured(String),
    /// By somebody else: the maker's data sheet or a report, as the text says.
    Published(String),
    /// By this arithmetic on published or measured figures.
    Derived(String),
}

impl Mark {
    /// The key that marks it in a file.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Measured(_) => "measured",
            Self::Published(_) => "published",
            Self::Derived(_) => "derived",
        }
    }

    /// Command, source or arithmetic.
    pub fn text(&self) -> &str {
        match self {
            Self::Measured(text) | Self::Published(text) | Self::Derived(text) => text,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key(), self.text())
    }
}

/// `{ value = …, spread = …, measured | published | derived = "…" }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawFigure {
    value: Option<toml::Value>,
    spread: Option<f64>,
    #[serde(default)]
    measured: Option<String>,
    #[serde(default)]
    published: Option<String>,
    #[serde(default)]
    derived: Option<String>,
}

/// The same for a list: `{ rows | context | bytes = […], value = […], spread = […], … }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawSeries {
    rows: Option<Vec<i64>>,
    context: Option<Vec<i64>>,
    bytes: Option<Vec<i64>>,
    value: Option<Vec<toml::Value>>,
    spread: Option<Vec<f64>>,
    measured: Option<String>,
    published: Option<String>,
    derived: Option<String>,
}

/// The least and the most a figure may be.
pub(crate) type Range = (f64, f64);

/// Figures over rising amounts.
pub(crate) type Series = Vec<(u32, Measured<f64>)>;

/// What the figures of a file are checked with: the name of the file for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check<'a> {
    pub(crate) file: &'a str,
}

impl Check<'_> {
    pub(crate) fn missing(&self, key: impl Into<String>) -> ProfileFileError {
        ProfileFileError::Missing { file: self.file.to_owned(), key: key.into() }
    }

    pub(crate) fn value(
        &self,
        key: impl Into<String>,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> ProfileFileError {
        // What is quoted from a file is bounded.
        let value: String = value.to_string().chars().take(80).collect();
        ProfileFileError::Value {
            file: self.file.to_owned(),
            key: key.into(),
            value,
            expected: expected.into(),
        }
    }

    /// A number within bounds.
    pub(crate) fn number(&self, key: &str, value: f64, range: Range) -> Result<f64, ProfileFileError> {
        let (least, most) = range;
        if value.is_finite() && (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(self.value(key, value, format!("must be a finite number from {least:e} to {most:e}")))
    }

    fn read_number(&self, key: &str, value: &toml::Value, range: Range) -> Result<f64, ProfileFileError> {
        let number = match value {
            toml::Value::Float(float) => *float,
            toml::Value::Integer(integer) => *integer as f64,
            other => return Err(self.value(key, other, "must be a number")),
        };
        self.number(key, number, range)
    }

    fn spread(&self, key: &str, spread: Option<f64>) -> Result<f32, ProfileFileError> {
        let spread = self.number(&format!("{key}.spread"), spread.unwrap_or(0.0), (0.0, 1e6))?;
        Ok(spread as f32)
    }

    fn mark(&self, key: &str, marks: [&Option<String>; 3]) -> Result<Mark, ProfileFileError> {
        let one_of = "one of measured = \"command\", published = \"source\" and derived = \"arithmetic\"";
        let mark = match marks {
            [Some(text), None, None] => Mark::Measured(text.clone()),
            [None, Some(text), None] => Mark::Published(text.clone()),
            [None, None, Some(text)] => Mark::Derived(text.clone()),
            [None, None, None] => return Err(self.missing(format!("the mark of {key} ({one_of})"))),
            _ => return Err(self.value(key, "several marks", format!("must have {one_of}"))),
        };
        if mark.text().trim().is_empty() {
            return Err(self.value(
                format!("{key}.{}", mark.key()),
                "\"\"",
                "must say where the figure is from",
            ));
        }
        Ok(mark)
    }

    /// A figure that must be there.
    pub(crate) fn figure(
        &self,
        key: &str,
        raw: Option<&RawFigure>,
        range: Range,
    ) -> Result<(Measured<f64>, Mark), ProfileFileError> {
        let raw = raw.ok_or_else(|| self.missing(key))?;
        let value = raw.value.as_ref().ok_or_else(|| self.missing(format!("{key}.value")))?;
        let median = self.read_number(key, value, range)?;
        let spread = self.spread(key, raw.spread)?;
        Ok((Measured { median, spread }, self.mark(key, [&raw.measured, &raw.published, &raw.derived])?))
    }

    /// A size that must be there: text with a unit, or a number of bytes.
    pub(crate) fn size(&self, key: &str, raw: Option<&RawFigure>) -> Result<(Bytes, Mark), ProfileFileError> {
        let raw = raw.ok_or_else(|| self.missing(key))?;
        let value = raw.value.as_ref().ok_or_else(|| self.missing(format!("{key}.value")))?;
        let bytes = match value {
            toml::Value::String(text) => self.bytes(key, text)?,
            number => Bytes(self.read_number(key, number, MEMORY)? as u64),
        };
        Ok((bytes, self.mark(key, [&raw.measured, &raw.published, &raw.derived])?))
    }

    /// A size as text.
    pub(crate) fn bytes(&self, key: &str, text: &str) -> Result<Bytes, ProfileFileError> {
        let bytes: Bytes = text
            .parse()
            .map_err(|error: shoal_core::units::BytesError| self.value(key, text, error.to_string()))?;
        self.number(key, bytes.0 as f64, MEMORY)?;
        Ok(bytes)
    }

    /// A list of figures over rising amounts, which stand under the name `over`.
    pub(crate) fn series(
        &self,
        key: &str,
        over: &str,
        raw: Option<&RawSeries>,
        range: Range,
    ) -> Result<(Series, Mark), ProfileFileError> {
        let raw = raw.ok_or_else(|| self.missing(key))?;
        for (name, list) in [("rows", &raw.rows), ("context", &raw.context), ("bytes", &raw.bytes)] {
            if name != over && list.is_some() {
                return Err(self.value(
                    format!("{key}.{name}"),
                    "a list",
                    format!("has no place here: {over} is meant"),
                ));
            }
        }
        let amounts = raw.rows.as_ref().or(raw.context.as_ref()).or(raw.bytes.as_ref());
        let amounts = amounts.ok_or_else(|| self.missing(format!("{key}.{over}")))?;
        let values = raw.value.as_ref().ok_or_else(|| self.missing(format!("{key}.value")))?;
        let lengths = format!("{} of {over}, {} of value", amounts.len(), values.len());
        let spreads = raw.spread.as_ref();
        if amounts.len() != values.len() || spreads.is_some_and(|spreads| spreads.len() != values.len()) {
            return Err(self.value(key, lengths, "the lists must be of equal length"));
        }
        if values.is_empty() || values.len() > PROFILE_ENTRIES {
            return Err(self.value(key, lengths, format!("must have 1 to {PROFILE_ENTRIES} entries")));
        }
        let mut entries = Vec::with_capacity(values.len());
        let mut before = 0;
        for (at, (&amount, value)) in amounts.iter().zip(values).enumerate() {
            let amount = u32::try_from(amount).ok().filter(|&amount| amount > before).ok_or_else(|| {
                self.value(
                    format!("{key}.{over}[{at}]"),
                    amount,
                    "must be a positive number above the one before",
                )
            })?;
            before = amount;
            let key = format!("{key}.value[{at}]");
            let spread = self.spread(&key, spreads.and_then(|spreads| spreads.get(at).copied()))?;
            entries.push((amount, Measured { median: self.read_number(&key, value, range)?, spread }));
        }
        Ok((entries, self.mark(key, [&raw.measured, &raw.published, &raw.derived])?))
    }

    /// A name for people: not empty, not long, of one line.
    pub(crate) fn text(&self, key: &str, text: &str, most: usize) -> Result<String, ProfileFileError> {
        if text.trim().is_empty() || text.chars().count() > most || text.chars().any(char::is_control) {
            return Err(self.value(
                key,
                format!("{text:?}"),
                format!("must be one line of 1 to {most} characters"),
            ));
        }
        Ok(text.to_owned())
    }
}

/// Bounds of this world, as `DeviceProfile::check` and `LinkFigures::check` have them.
pub(crate) const STREAM: Range = (1e3, 1e14);
pub(crate) const MACS: Range = (1e3, 1e17);
pub(crate) const OVERHEAD: Range = (1e-9, 10.0);
pub(crate) const POWER: Range = (1e-3, 1e5);
pub(crate) const TRIP: Range = (1e-8, 120.0);
pub(crate) const BANDWIDTH: Range = (1.0, 1e13);
/// A board with less than a megabyte holds no model, one with more than an exabyte is a slip of the pen.
const MEMORY: Range = (1e6, 1e18);
