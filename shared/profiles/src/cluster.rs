//! A cluster on paper: named devices and what lies between each two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use shoal_core::Bytes;
use shoal_core::profile::{LinkFigures, Measured, RoundTrip};
use shoal_core::units::Seconds;

use crate::board::{self, Board};
use crate::error::{ProfileFileError, nearest_name};
use crate::figure::Check;
use crate::file::Source;
use crate::net::{self, Net};

/// Devices of a cluster file: as many as the planner takes.
pub const CLUSTER_DEVICES: usize = 500;

/// Longest name of a device.
const NAME_CHARS: usize = 64;

/// What `speed` may be: beyond that it is another board.
const SPEED: (f64, f64) = (1e-3, 1e3);

/// A cluster file as it is meant.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterFile {
    /// What the file calls the cluster, or else the file's name.
    pub name: String,
    /// Devices with their names: profiles already scaled by `speed`, usable memory as the file says.
    pub boards: Vec<(String, Board)>,
    /// Every ordered pair of devices, by their indices.
    pub links: Vec<(usize, usize, LinkFigures)>,
    /// The speed of each device as a part of its profile's: what the file says by `speed`.
    pub speeds: Vec<f64>,
    /// By which network each device is attached; `None` where only links of its own are given.
    pub networks: Vec<Option<String>>,
    /// The networks of that, each with the name by which the file calls it.
    attached: Vec<Option<Net>>,
    /// The network of devices that name none, and of boards that are added on paper.
    pub network: Option<Net>,
    /// Devices that name no network, so that the cluster's is taken for them.
    pub defaulted: Vec<String>,
    /// Share of one processor's time a worker of the laboratory gets, where that is said.
    pub cpu_quota: Vec<Option<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawCluster {
    name: Option<String>,
    network: Option<String>,
    #[serde(default)]
    device: Vec<RawDevice>,
    #[serde(default)]
    link: Vec<RawLink>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawDevice {
    name: Option<String>,
    /// As many devices of this kind, named `name-1` and so on.
    count: Option<i64>,
    profile: Option<String>,
    speed: Option<f64>,
    memory: Option<String>,
    network: Option<String>,
    cpu_quota: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLink {
    between: Option<Vec<String>>,
    profile: Option<String>,
}

impl ClusterFile {
    /// Reads the file at `path`. Profiles in it are built-in names, or paths below its folder.
    ///
    /// # Errors
    /// It cannot be read, or something in it cannot be meant: an unknown profile or device, two devices of one
    /// name, a figure that is none, two devices with nothing said of what lies between them.
    pub fn read(path: &Path) -> Result<Self, ProfileFileError> {
        let source = Source::read(path)?;
        let raw: RawCluster = source.parse()?;
        let check = Check { file: &source.label };
        let folder = source.folder.as_deref();
        let mut nets = Nets { known: BTreeMap::new(), folder };
        let name = match &raw.name {
            Some(name) => check.text("name", name, NAME_CHARS)?,
            None => source.name.clone(),
        };
        let network = raw.network.as_deref().map(|name| nets.get(name)).transpose()?;
        let mut file = Self {
            name,
            boards: Vec::new(),
            links: Vec::new(),
            speeds: Vec::new(),
            networks: Vec::new(),
            attached: Vec::new(),
            network,
            defaulted: Vec::new(),
            cpu_quota: Vec::new(),
        };
        for (at, device) in raw.device.iter().enumerate() {
            file.add(&check, at, device, &mut nets)?;
        }
        if file.boards.is_empty() {
            return Err(check.missing("[[device]]"));
        }
        let own = file.own_links(&check, &raw.link, &mut nets)?;
        file.connect(&check, &own)?;
        Ok(file)
    }

    /// One `[[device]]` entry: one device, or `count` of them.
    fn add(
        &mut self,
        check: &Check<'_>,
        at: usize,
        raw: &RawDevice,
        nets: &mut Nets<'_>,
    ) -> Result<(), ProfileFileError> {
        let key = |name: &str| format!("device[{at}].{name}");
        let name = raw.name.as_deref().ok_or_else(|| check.missing(key("name")))?;
        let name = check.text(&key("name"), name, NAME_CHARS)?;
        let profile = raw.profile.as_deref().ok_or_else(|| check.missing(key("profile")))?;
        let mut board = board::find(profile, nets.folder)?;
        if let Some(speed) = raw.speed {
            board = board.scaled(check.number(&key("speed"), speed, SPEED)?);
        }
        if let Some(memory) = &raw.memory {
            let usable: Bytes = check.bytes(&key("memory"), memory)?;
            if usable > board.memory {
                let expected = format!("is more than the {} of {}", board.memory, board.name);
                return Err(check.value(key("memory"), memory, expected));
            }
            board.usable = usable;
        }
        // More than all processors of the laboratory's machine is no quota; a thousandth of one does nothing.
        let quota =
            raw.cpu_quota.map(|quota| check.number(&key("cpu-quota"), quota, (1e-3, 1024.0))).transpose()?;
        let own = raw.network.as_deref().map(|name| nets.get(name)).transpose()?;
        let net = own.clone().or_else(|| self.network.clone());
        let names: Vec<String> = match raw.count {
            None => vec![name],
            Some(count) => {
                let count = usize::try_from(count).ok().filter(|count| (1..=CLUSTER_DEVICES).contains(count));
                let count = count.ok_or_else(|| {
                    check.value(
                        key("count"),
                        raw.count.unwrap_or(0),
                        format!("must be 1 to {CLUSTER_DEVICES}"),
                    )
                })?;
                (1..=count).map(|number| format!("{name}-{number}")).collect()
            }
        };
        for name in names {
            if self.boards.iter().any(|(known, _)| *known == name) {
                return Err(check.value(
                    key("name"),
                    format!("{name:?}"),
                    "is the name of another device, too",
                ));
            }
            if self.boards.len() == CLUSTER_DEVICES {
                return Err(check.value(
                    "device",
                    "a list",
                    format!("has more than {CLUSTER_DEVICES} devices"),
                ));
            }
            if own.is_none() && net.is_some() {
                self.defaulted.push(name.clone());
            }
            self.boards.push((name, board.clone()));
            self.speeds.push(raw.speed.unwrap_or(1.0));
            self.networks.push(net.as_ref().map(|net| net.name.clone()));
            self.cpu_quota.push(quota);
            self.attached.push(net.clone());
        }
        Ok(())
    }

    /// The `[[link]]` entries, by pairs of devices in rising order.
    fn own_links(
        &self,
        check: &Check<'_>,
        raw: &[RawLink],
        nets: &mut Nets<'_>,
    ) -> Result<BTreeMap<(usize, usize), Net>, ProfileFileError> {
        let mut own = BTreeMap::new();
        for (at, link) in raw.iter().enumerate() {
            let key = |name: &str| format!("link[{at}].{name}");
            let between = link.between.as_deref().ok_or_else(|| check.missing(key("between")))?;
            let [a, b] = between else {
                return Err(check.value(key("between"), format!("{between:?}"), "must name two devices"));
            };
            let profile = link.profile.as_deref().ok_or_else(|| check.missing(key("profile")))?;
            let pair = (self.device(check, &key("between"), a)?, self.device(check, &key("between"), b)?);
            if pair.0 == pair.1 {
                return Err(check.value(
                    key("between"),
                    format!("{between:?}"),
                    "must name two different devices",
                ));
            }
            let pair = (pair.0.min(pair.1), pair.0.max(pair.1));
            if own.insert(pair, nets.get(profile)?).is_some() {
                return Err(check.value(key("between"), format!("{between:?}"), "has a link already"));
            }
        }
        Ok(own)
    }

    fn device(&self, check: &Check<'_>, key: &str, name: &str) -> Result<usize, ProfileFileError> {
        let found = self.boards.iter().position(|(known, _)| known == name);
        found.ok_or_else(|| {
            let near = nearest_name(name, self.boards.iter().map(|(known, _)| known.as_str()));
            let near = near.map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
            let devices = self.device_names();
            check.value(key, format!("{name:?}"), format!("is no device here{near}; devices are {devices}"))
        })
    }

    /// Every ordered pair: its own link, or the worse of both attachments.
    fn connect(
        &mut self,
        check: &Check<'_>,
        own: &BTreeMap<(usize, usize), Net>,
    ) -> Result<(), ProfileFileError> {
        let attached = &self.attached;
        // Few networks serve many pairs.
        let mut worse: BTreeMap<(&str, &str), LinkFigures> = BTreeMap::new();
        let n = self.boards.len();
        for (a, b) in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))).filter(|(a, b)| a != b) {
            let figures = match (own.get(&(a.min(b), a.max(b))), &attached[a], &attached[b]) {
                (Some(net), ..) => net.figures.clone(),
                (None, Some(one), Some(other)) => worse
                    .entry((&one.name, &other.name))
                    .or_insert_with(|| worse_of(&one.figures, &other.figures))
                    .clone(),
                (None, one, _) => {
                    let lone = if one.is_none() { a } else { b };
                    return Err(ProfileFileError::Cluster {
                        file: check.file.to_owned(),
                        problem: format!(
                            "nothing says what lies between {:?} and {:?}: give device {:?} a network, give the pair a \
                             [[link]], or give the cluster a network",
                            self.boards[a].0, self.boards[b].0, self.boards[lone].0
                        ),
                    });
                }
            };
            self.links.push((a, b, figures));
        }
        Ok(())
    }

    /// Names of the devices, for messages.
    pub fn device_names(&self) -> String {
        let most = 20;
        let mut names: Vec<&str> = self.boards.iter().take(most).map(|(name, _)| name.as_str()).collect();
        if self.boards.len() > most {
            names.push("…");
        }
        names.join(", ")
    }

    /// Adds a board under a name nobody has yet, attached by `net`, or by the cluster's network; its index.
    ///
    /// # Errors
    /// There is no network to attach it by.
    pub fn attach(&mut self, board: Board, net: Option<&Net>) -> Result<usize, ProfileFileError> {
        let missing = || ProfileFileError::Cluster {
            file: self.name.clone(),
            problem: format!("no network to attach {} by: give the cluster file a `network`", board.name),
        };
        let net = net.or(self.network.as_ref()).cloned().ok_or_else(missing)?;
        let at = self.boards.len();
        for other in 0..at {
            let figures = match &self.attached[other] {
                Some(theirs) => worse_of(&net.figures, &theirs.figures),
                None => net.figures.clone(),
            };
            self.links.push((at, other, figures.clone()));
            self.links.push((other, at, figures));
        }
        let name = (1..)
            .map(|number| format!("{}+{number}", board.name))
            .find(|name| self.boards.iter().all(|(known, _)| known != name));
        self.boards.push((name.unwrap_or_else(|| board.name.clone()), board));
        self.speeds.push(1.0);
        self.networks.push(Some(net.name.clone()));
        self.attached.push(Some(net));
        self.cpu_quota.push(None);
        Ok(at)
    }
}

/// Networks by the names a file uses, each read once.
struct Nets<'a> {
    known: BTreeMap<String, Net>,
    folder: Option<&'a Path>,
}

impl Nets<'_> {
    fn get(&mut self, name: &str) -> Result<Net, ProfileFileError> {
        if let Some(net) = self.known.get(name) {
            return Ok(net.clone());
        }
        let mut net = net::find(name, self.folder)?;
        // Two files of one name in different folders are two networks.
        net.name = name.to_owned();
        self.known.insert(name.to_owned(), net.clone());
        Ok(net)
    }
}

/// A link between a device attached by one network and one attached by another: of each figure the worse.
pub fn worse_of(one: &LinkFigures, other: &LinkFigures) -> LinkFigures {
    let slower = |a: Measured<Seconds>, b: Measured<Seconds>| if b.median.0 > a.median.0 { b } else { a };
    let sizes: BTreeSet<u32> =
        one.round_trips.iter().chain(&other.round_trips).map(|trip| trip.bytes).collect();
    let trip = |bytes| RoundTrip { bytes, time: slower(at_size(one, bytes), at_size(other, bytes)) };
    let narrow = other.bandwidth.median.0 < one.bandwidth.median.0;
    LinkFigures {
        round_trips: sizes.into_iter().map(trip).collect(),
        bandwidth: if narrow { other.bandwidth } else { one.bandwidth },
        message_cpu: slower(one.message_cpu, other.message_cpu),
        shared: one.shared || other.shared,
    }
}

/// The round trip of this size: given, or else between its neighbours evenly, beyond the last at the bandwidth.
fn at_size(figures: &LinkFigures, bytes: u32) -> Measured<Seconds> {
    let trips = &figures.round_trips;
    let above = trips.partition_point(|trip| trip.bytes < bytes);
    match (above.checked_sub(1).map(|at| trips[at]), trips.get(above)) {
        (_, Some(high)) if high.bytes == bytes => high.time,
        (Some(low), Some(high)) => {
            let part = f64::from(bytes - low.bytes) / f64::from(high.bytes - low.bytes);
            let (from, to) = (low.time.median.0, high.time.median.0);
            Measured {
                median: Seconds(from + (to - from) * part),
                spread: low.time.spread.max(high.time.spread),
            }
        }
        (None, Some(high)) => high.time,
        (Some(low), None) => {
            let more = 2.0 * f64::from(bytes - low.bytes) / figures.bandwidth.median.0;
            Measured { median: Seconds(low.time.median.0 + more), spread: low.time.spread }
        }
        // A checked list has entries.
        (None, None) => Measured::exact(Seconds(1.0 / figures.bandwidth.median.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_two_attachments_counts() {
        let of = |name| net::find(name, None).unwrap().figures;
        let (wire, air) = (of("gigabit-switch"), of("wifi-5"));
        let mixed = worse_of(&wire, &air);
        assert_eq!(mixed, worse_of(&air, &wire));
        assert!(mixed.shared && mixed.check().is_ok());
        assert_eq!(mixed.bandwidth, air.bandwidth);
        for trip in &mixed.round_trips {
            assert!(trip.time.median.0 >= at_size(&wire, trip.bytes).median.0);
        }
        assert_eq!(worse_of(&wire, &wire), wire);
    }

    #[test]
    fn sizes_between_and_beyond_follow_the_line() {
        let mut figures = net::find("gigabit-switch", None).unwrap().figures;
        let time = |figures: &LinkFigures, bytes| at_size(figures, bytes).median.0;
        let (a, b) = (time(&figures, 64), time(&figures, 4096));
        assert!((time(&figures, 2080) - f64::midpoint(a, b)).abs() < 1e-12);
        figures.round_trips.truncate(2);
        let beyond = b + 2.0 * (65536.0 - 4096.0) / figures.bandwidth.median.0;
        assert!((time(&figures, 65536) - beyond).abs() < 1e-12);
    }
}
