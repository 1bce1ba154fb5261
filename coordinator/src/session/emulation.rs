//! What a report says of workers that play other devices: in which grade, slowed by how much, and whether they could
//! keep up. Times that are measured on a slowed cluster are divided by the factor before anybody sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::message::EmulationCounters;
use shoal_core::profile::{Emulation, Grade, NodeInfo};

use super::Snapshot;

/// Part of the played devices' time by which real work may outlast it: beyond, the figures are the machine's own.
pub(crate) const OVERRUN_TOLERATED: f64 = 0.02;

/// Workers that cannot be used together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MixedClocks {
    #[error("the clocks of {0} and {1} are slowed by different factors: give all workers the same --dilate")]
    Dilation(String, String),
    #[error("{0} has no weights and {1} has some: either all workers are --dry, or none is")]
    Dry(String, String),
}

/// The emulation of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EmulationView {
    /// `real`, `dilated` or `dry`; of several the least real one.
    pub(crate) grade: &'static str,
    /// By how much every clock was slowed. All times and rates that are reported are those of the played devices: they
    /// have been divided, or multiplied, by this.
    pub(crate) dilation: f64,
    /// What each worker plays; null for one that plays nobody.
    pub(crate) devices: Vec<PlayedDevice>,
    /// Time by which real work outlasted the played devices', as a part of theirs, of the worst worker; null before
    /// anything ran.
    pub(crate) emulation_overrun: Option<f64>,
    /// By how much sleeps missed their deadlines, on average, in milliseconds of the played devices; null where nothing
    /// was slept.
    pub(crate) sleep_error_ms: Option<f64>,
    /// Whether the played devices' time was kept, within [`OVERRUN_TOLERATED`]. Figures of a run that did not are not
    /// those of the played devices.
    pub(crate) kept_time: Option<bool>,
}

/// One worker and what it plays.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PlayedDevice {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) profile: Option<String>,
}

impl EmulationView {
    /// The emulation of these workers; `None` where none plays another device.
    pub(crate) fn of<'a>(workers: impl Iterator<Item = &'a NodeInfo>) -> Option<Self> {
        let workers: Vec<&NodeInfo> = workers.collect();
        let grade = |info: &&NodeInfo| info.emulation.as_ref().map(|emulation| emulation.grade);
        let least = workers.iter().filter_map(grade).max_by_key(|grade| match grade {
            Grade::Real => 0,
            Grade::Dilated => 1,
            Grade::Dry => 2,
        })?;
        let device = |info: &&NodeInfo| PlayedDevice {
            node: info.node,
            name: info.name.clone(),
            profile: info.emulation.as_ref().map(|emulation| emulation.profile.clone()),
        };
        Some(Self {
            grade: grade_name(least),
            dilation: workers.iter().map(|info| dilation(info)).fold(1.0, f64::max),
            devices: workers.iter().map(device).collect(),
            emulation_overrun: None,
            sleep_error_ms: None,
            kept_time: None,
        })
    }

    /// The same, with how well time was kept between two looks at the counters.
    pub(crate) fn between(mut self, before: &Snapshot, after: &Snapshot) -> Self {
        let then = |node: &NodeId| before.get(node).map_or_else(Default::default, |(c, _)| c.emulation);
        let grown: Vec<EmulationCounters> =
            after.iter().map(|(node, (now, _))| since(&now.emulation, &then(node))).collect();
        let played = grown.iter().filter(|counters| counters.predicted_us > 0);
        let overrun = played.map(|counters| counters.overrun_us as f64 / counters.predicted_us as f64);
        self.emulation_overrun = overrun.reduce(f64::max);
        self.kept_time = self.emulation_overrun.map(|overrun| overrun <= OVERRUN_TOLERATED);
        let sleeps: u64 = grown.iter().map(|counters| counters.sleeps).sum();
        let missed: u64 = grown.iter().map(|counters| counters.missed_us).sum();
        self.sleep_error_ms = (sleeps > 0).then(|| missed as f64 / 1e3 / sleeps as f64 / self.dilation);
        self
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let mut profiles: BTreeMap<&str, usize> = BTreeMap::new();
        for device in &self.devices {
            *profiles.entry(device.profile.as_deref().unwrap_or("itself")).or_default() += 1;
        }
        let profiles: Vec<String> =
            profiles.iter().map(|(name, count)| format!("{count} × {name}")).collect();
        let grade = match self.grade {
            "dry" => "dry: no weights, no arithmetic, the text means nothing".to_owned(),
            "dilated" => format!("dilated: clocks slowed {} ×, figures divided by it", self.dilation),
            grade => format!("{grade} arithmetic"),
        };
        let kept = match (self.kept_time, self.emulation_overrun) {
            (Some(false), Some(overrun)) => format!(
                "; TIME NOT KEPT: this machine took {:.0} % longer than the played devices, so these figures are its own",
                overrun * 100.0
            ),
            _ => String::new(),
        };
        format!("emulated {} ({grade}){kept}", profiles.join(", "))
    }
}

/// What one worker plays, as `devices` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PlayedView {
    pub(crate) profile: String,
    pub(crate) grade: &'static str,
    pub(crate) dilation: f64,
}

impl PlayedView {
    pub(crate) fn new(emulation: &Emulation) -> Self {
        let profile = emulation.profile.clone();
        Self { profile, grade: grade_name(emulation.grade), dilation: emulation.dilation() }
    }
}

/// By how much this worker's clocks are slowed.
pub(crate) fn dilation(info: &NodeInfo) -> f64 {
    info.emulation.as_ref().map_or(1.0, |emulation| emulation.dilation())
}

/// A time of a slowed cluster in the played devices' own.
pub(crate) fn own_time(time: Duration, dilation: f64) -> Duration {
    if dilation == 1.0 { time } else { time.div_f64(dilation) }
}

/// Whether these workers' clocks go together.
///
/// # Errors
/// Two that do not.
pub(crate) fn check_clocks<'a>(workers: impl Iterator<Item = &'a NodeInfo>) -> Result<(), MixedClocks> {
    let dry =
        |info: &NodeInfo| info.emulation.as_ref().is_some_and(|emulation| emulation.grade == Grade::Dry);
    let mut first: Option<&NodeInfo> = None;
    for info in workers {
        let Some(first) = first else {
            first = Some(info);
            continue;
        };
        let names = || (first.name.clone(), info.name.clone());
        if dilation(first) != dilation(info) {
            let (one, other) = names();
            return Err(MixedClocks::Dilation(one, other));
        }
        if dry(first) != dry(info) {
            let (one, other) = if dry(first) { (first, info) } else { (info, first) };
            return Err(MixedClocks::Dry(one.name.clone(), other.name.clone()));
        }
    }
    Ok(())
}

/// The grade as reports name it.
pub(crate) const fn grade_name(grade: Grade) -> &'static str {
    match grade {
        Grade::Real => "real",
        Grade::Dilated => "dilated",
        Grade::Dry => "dry",
    }
}

fn since(now: &EmulationCounters, then: &EmulationCounters) -> EmulationCounters {
    EmulationCounters {
        predicted_us: now.predicted_us.saturating_sub(then.predicted_us),
        overrun_us: now.overrun_us.saturating_sub(then.overrun_us),
        sleeps: now.sleeps.saturating_sub(then.sleeps),
        missed_us: now.missed_us.saturating_sub(then.missed_us),
    }
}

#[cfg(test)]
mod tests {
    use shoal_core::message::{Counters, Resident};
    use shoal_core::profile::Emulation;
    use shoal_core::units::Bytes;

    use super::*;

    fn info(id: u8, emulation: Option<(Grade, u32)>) -> NodeInfo {
        NodeInfo {
            node: NodeId([id; 16]),
            name: format!("node-{id}"),
            version: String::new(),
            hardware: String::new(),
            kernel_set: String::new(),
            threads: 1,
            memory: Bytes(1),
            available: Bytes::mib(64),
            reserve: Bytes(0),
            usable: Bytes(1),
            resident: Bytes(1),
            data_port: 1,
            emulation: emulation.map(|(grade, dilation_milli)| Emulation {
                profile: "pi".to_owned(),
                grade,
                dilation_milli,
            }),
        }
    }

    #[test]
    fn clocks_must_go_together() {
        let check = |all: &[NodeInfo]| check_clocks(all.iter());
        let slowed = |id, k| info(id, Some((Grade::Dilated, k)));
        assert_eq!(check(&[info(1, None), info(2, Some((Grade::Real, 1000)))]), Ok(()));
        assert_eq!(check(&[slowed(1, 4000), slowed(2, 4000)]), Ok(()));
        assert!(matches!(check(&[slowed(1, 4000), slowed(2, 2000)]), Err(MixedClocks::Dilation(..))));
        assert!(matches!(check(&[info(1, None), slowed(2, 2000)]), Err(MixedClocks::Dilation(..))));
        let mixed = [info(1, None), info(2, Some((Grade::Dry, 1000)))];
        assert_eq!(check(&mixed), Err(MixedClocks::Dry("node-2".to_owned(), "node-1".to_owned())));
    }

    #[test]
    fn a_run_that_could_not_keep_time_says_so() {
        let counters = |predicted_us, overrun_us, sleeps, missed_us| Counters {
            emulation: EmulationCounters { predicted_us, overrun_us, sleeps, missed_us },
            ..Counters::default()
        };
        let at = |counters| Snapshot::from([(NodeId([1; 16]), (counters, Resident::default()))]);
        let workers = [info(1, Some((Grade::Dilated, 2000)))];
        let view = EmulationView::of(workers.iter()).unwrap();
        assert_eq!((view.grade, view.dilation), ("dilated", 2.0));
        let before = at(counters(1000, 500, 2, 10));
        let kept = view.clone().between(&before, &at(counters(101_000, 1_500, 12, 210)));
        assert_eq!((kept.emulation_overrun, kept.kept_time), (Some(0.01), Some(true)));
        // 200 µs over 10 sleeps, of clocks that go at half speed.
        assert_eq!(kept.sleep_error_ms, Some(0.01));
        let lost = view.between(&before, &at(counters(101_000, 10_500, 12, 210)));
        assert_eq!(lost.kept_time, Some(false));
        assert!(lost.line().contains("TIME NOT KEPT"), "{}", lost.line());
    }

    #[test]
    fn workers_that_are_themselves_are_no_emulation() {
        assert_eq!(EmulationView::of([info(1, None)].iter()), None);
        assert_eq!(own_time(Duration::from_millis(8), 4.0), Duration::from_millis(2));
    }
}
