//! What the switch is told: ports, clocks and paths, as one JSON object. `scripts/lab/lab` writes it.

use std::path::Path;

use serde::Deserialize;

/// Ports of one switch: namespaces of one laboratory.
pub(crate) const PORTS: usize = 128;

/// A configuration of a full laboratory is a few megabytes; a larger file is some other one.
const CONFIG_BYTES: u64 = 64 << 20;

/// Longest time a frame is held: beyond it something is wrong with a unit.
const DELAY_NS: u64 = 60_000_000_000;

/// A whole laboratory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) clocks: Vec<ClockConfig>,
    pub(crate) ports: Vec<PortConfig>,
    /// By ordered pair of ports; between ports that are not named nothing is carried.
    pub(crate) paths: Vec<PathConfig>,
}

/// Something that carries one frame after another: one direction of a cable, or the air of a room.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClockConfig {
    /// Bytes per second, on the wire.
    pub(crate) rate: f64,
    /// Bytes that may wait for it; more are lost.
    pub(crate) limit: u64,
}

/// An interface on which a device's frames arrive.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortConfig {
    pub(crate) interface: String,
    /// Clock of what the device sends.
    pub(crate) up: usize,
    /// Clock of what it receives; the same where it has but one medium for both.
    pub(crate) down: usize,
}

/// The way from one port to another.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PathConfig {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) delay_ns: u64,
    /// A clock of its own, where the way is narrower than both ends.
    pub(crate) clock: Option<usize>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("failed to read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("failed to understand {path}: {source}")]
    Parse { path: String, source: serde_json::Error },
    #[error("failed to use the configuration: {0}")]
    Wrong(String),
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let read = |source| ConfigError::Read { path: name.clone(), source };
        if std::fs::metadata(path).map_err(read)?.len() > CONFIG_BYTES {
            return Err(ConfigError::Wrong(format!("{name} is too long")));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let config: Self =
            serde_json::from_str(&text).map_err(|source| ConfigError::Parse { path: name, source })?;
        config.check()?;
        Ok(config)
    }

    /// Checks that what is named is there, and that figures are of this world.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::Wrong(text));
        if self.ports.is_empty() || self.ports.len() > PORTS {
            return wrong(format!("{} ports, not 1 to {PORTS}", self.ports.len()));
        }
        if let Some(clock) = self.clocks.iter().find(|clock| !(1.0..=1e13).contains(&clock.rate)) {
            return wrong(format!("a rate of {} bytes per second", clock.rate));
        }
        let clocks = self.ports.iter().flat_map(|port| [port.up, port.down]);
        let clocks = clocks.chain(self.paths.iter().filter_map(|path| path.clock));
        if let Some(clock) = clocks.into_iter().find(|&clock| clock >= self.clocks.len()) {
            return wrong(format!("clock {clock} of {}", self.clocks.len()));
        }
        for path in &self.paths {
            if path.from.max(path.to) >= self.ports.len() || path.from == path.to {
                return wrong(format!("a path from port {} to port {}", path.from, path.to));
            }
            if path.delay_ns > DELAY_NS {
                return wrong(format!("a delay of {} ns", path.delay_ns));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_must_be_there() {
        let text = |clock: usize, to: usize, rate: f64| {
            format!(
                "{{\"clocks\": [{{\"rate\": {rate}, \"limit\": 1}}], \
                 \"ports\": [{{\"interface\": \"a\", \"up\": 0, \"down\": {clock}}}, \
                 {{\"interface\": \"b\", \"up\": 0, \"down\": 0}}], \
                 \"paths\": [{{\"from\": 0, \"to\": {to}, \"delay_ns\": 5, \"clock\": null}}]}}"
            )
        };
        let check = |text: String| serde_json::from_str::<Config>(&text).expect("JSON").check();
        assert!(check(text(0, 1, 1e6)).is_ok());
        assert!(check(text(1, 1, 1e6)).is_err());
        assert!(check(text(0, 2, 1e6)).is_err());
        assert!(check(text(0, 0, 1e6)).is_err());
        assert!(check(text(0, 1, 0.0)).is_err());
    }
}
