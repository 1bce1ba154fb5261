//! Writing a board as the file it can be read from again.

use std::collections::BTreeMap;
use std::fmt::Write;

use shoal_core::Bytes;
use shoal_core::profile::{DeviceProfile, Measured, Power};

use crate::board::Board;
use crate::figure::Mark;

impl Board {
    /// A board whose figures were all measured by `command`.
    pub fn measured(
        name: &str,
        title: &str,
        profile: DeviceProfile,
        (memory, usable): (Bytes, Bytes),
        power: Option<(Power, Mark)>,
        command: &str,
    ) -> Self {
        let mut sources = BTreeMap::new();
        let mut keys = vec!["memory".to_owned(), "usable".to_owned()];
        keys.extend(["phase-overhead", "attention"].map(str::to_owned));
        for rate in &profile.rates {
            keys.extend(["stream", "batched"].map(|name| format!("rates.{}.{name}", rate.kind)));
        }
        sources.extend(keys.into_iter().map(|key| (key, Mark::Measured(command.to_owned()))));
        let power = power.map(|(power, mark)| {
            sources.extend(["power.idle", "power.busy"].map(|key| (key.to_owned(), mark.clone())));
            power
        });
        let (name, title) = (name.to_owned(), title.to_owned());
        Self { name, title, hardware: Vec::new(), profile, memory, usable, power, sources }
    }

    /// The board as TOML. Read again it has the same figures, to the last bit, and the same marks.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let profile = &self.profile;
        writeln!(out, "# A board of Shoal; the schema is profiles/README.md.")?;
        writeln!(out, "title = {}", quoted(&self.title))?;
        if !self.hardware.is_empty() {
            let prefixes: Vec<String> = self.hardware.iter().map(|prefix| quoted(prefix)).collect();
            writeln!(out, "hardware = [{}]", prefixes.join(", "))?;
        }
        writeln!(out, "threads = {}", profile.threads)?;
        writeln!(out, "kernel-set = {}", quoted(&profile.kernel_set))?;
        let mark = |key: &str| self.mark(key);
        writeln!(out, "memory = {{ value = {}, {} }}", self.memory.0, mark("memory"))?;
        writeln!(out, "usable = {{ value = {}, {} }}", self.usable.0, mark("usable"))?;
        let overhead = profile.phase_overhead;
        writeln!(
            out,
            "phase-overhead = {}",
            figure(overhead.median.0, overhead.spread, &mark("phase-overhead"))
        )?;
        let entries = profile.attention.iter().map(|entry| (entry.context, of(entry.rate, |rate| rate.0)));
        writeln!(out, "attention = {}", series("context", entries, &mark("attention")))?;
        if let Some(power) = &self.power {
            writeln!(out, "\n[power]")?;
            writeln!(out, "idle = {}", figure(power.idle.0, 0.0, &mark("power.idle")))?;
            writeln!(out, "busy = {}", figure(power.busy.0, 0.0, &mark("power.busy")))?;
        }
        for rate in &profile.rates {
            let key = |name: &str| mark(&format!("rates.{}.{name}", rate.kind));
            writeln!(out, "\n[[rates]]\nkinds = [{}]", quoted(rate.kind.name()))?;
            writeln!(out, "stream = {}", figure(rate.stream.median.0, rate.stream.spread, &key("stream")))?;
            let entries = rate.batched.iter().map(|entry| (entry.rows, of(entry.rate, |rate| rate.0)));
            writeln!(out, "batched = {}", series("rows", entries, &key("batched")))?;
        }
        Ok(())
    }

    /// The mark of a figure, as it stands in a file.
    fn mark(&self, key: &str) -> String {
        let unknown = Mark::Derived("not said".to_owned());
        let mark = self.sources.get(key).unwrap_or(&unknown);
        format!("{} = {}", mark.key(), quoted(mark.text()))
    }
}

/// Median and spread of a figure as plain numbers.
fn of<T>(figure: Measured<T>, number: fn(T) -> f64) -> (f64, f32) {
    (number(figure.median), figure.spread)
}

fn figure(value: f64, spread: f32, mark: &str) -> String {
    if spread == 0.0 {
        format!("{{ value = {value:e}, {mark} }}")
    } else {
        format!("{{ value = {value:e}, spread = {spread:e}, {mark} }}")
    }
}

fn series(over: &str, entries: impl Iterator<Item = (u32, (f64, f32))>, mark: &str) -> String {
    let (mut amounts, mut values, mut spreads) = (Vec::new(), Vec::new(), Vec::new());
    for (amount, (value, spread)) in entries {
        amounts.push(amount.to_string());
        values.push(format!("{value:e}"));
        spreads.push(format!("{spread:e}"));
    }
    format!(
        "{{ {over} = [{}], value = [{}], spread = [{}], {mark} }}",
        amounts.join(", "),
        values.join(", "),
        spreads.join(", ")
    )
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
