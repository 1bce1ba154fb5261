//! What was measured of workers and links, kept in the data folder for the next run.
//!
//! A device's profile depends on its processor and build, its threads, and the model's number formats and widths; one
//! of a worker that joined is its own (two boards of a kind differ), one of a local worker is any local worker's: they
//! are new each time, the machine is not. A link's figures depend on its two ends and where they are. All of that makes
//! the name of an entry's file, so a changed one is another entry. An entry is checked when it is read; one that cannot
//! be read or believed is as if it were not there, and is written anew. Workers that play another device are never
//! kept: they say at once what they play, and their links are those of a laboratory.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_core::profile::{DeviceProfile, LinkFigures, LinkProfile, NodeInfo};
use shoal_core::{ModelSpec, NodeId};

use super::WorkerView;

/// A network changes without anybody telling: its links are measured again after a day.
const LINK_AGE: Duration = Duration::from_secs(24 * 3600);

/// A processor stays what it is, but a board's cooling and supply do not.
const PROFILE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Entries of the folder: some hundred links of a large cluster, and profiles of a dozen models. Beyond that the
/// oldest go.
const ENTRIES: usize = 4096;

/// A larger entry is none of ours: a profile has some hundred figures.
const ENTRY_BYTES: u64 = 256 << 10;

/// The folder of what was measured, for one command.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    dir: PathBuf,
    /// Local workers: what one measured is good for all.
    local: bool,
}

/// What is known from before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    pub(crate) profiles: BTreeMap<NodeId, DeviceProfile>,
    pub(crate) links: Vec<LinkProfile>,
    /// How old each profile is.
    pub(crate) ages: BTreeMap<NodeId, Duration>,
}

/// A file's content.
#[derive(Debug, Serialize, Deserialize)]
struct Entry<T> {
    /// Seconds since 1970, by this machine's clock.
    measured_at: u64,
    /// What the file's name was made of, so that people can tell files apart.
    of: String,
    figures: T,
}

impl Kept {
    /// The folder within the data folder.
    pub(crate) fn new(data_dir: &Path, local: bool) -> Self {
        Self { dir: data_dir.join("profiles"), local }
    }

    /// What is known of these workers for this model, and of their links.
    pub(crate) fn load(&self, spec: &ModelSpec, workers: &BTreeMap<NodeId, WorkerView>) -> Known {
        let mut known = Known::default();
        for (&node, worker) in workers.iter().filter(|(_, worker)| worker.info.emulation.is_none()) {
            let read = self.read(&self.profile_key(spec, &worker.info), PROFILE_AGE);
            let Some((profile, age)) = read.filter(|(profile, _)| believed(profile, &worker.info)) else {
                continue;
            };
            known.profiles.insert(node, profile);
            known.ages.insert(node, age);
        }
        let mut kept: BTreeMap<String, Option<LinkFigures>> = BTreeMap::new();
        for (&from, a) in workers {
            for (&to, b) in workers.iter().filter(|(to, _)| **to != from) {
                let Some(key) = self.link_key(a, b) else { continue };
                let read = |key: &String| {
                    let (figures, _) = self.read::<LinkFigures>(key, LINK_AGE)?;
                    figures.check().is_ok().then_some(figures)
                };
                let figures = kept.entry(key).or_insert_with_key(read).clone();
                known.links.extend(figures.map(|figures| LinkProfile { from, to, figures }));
            }
        }
        known
    }

    /// Keeps what a worker measured of itself.
    pub(crate) fn put_profile(&self, spec: &ModelSpec, worker: &WorkerView, profile: &DeviceProfile) {
        if worker.info.emulation.is_none() {
            self.write(self.profile_key(spec, &worker.info), profile);
        }
    }

    /// Keeps what workers measured of their links.
    pub(crate) fn put_links(&self, workers: &BTreeMap<NodeId, WorkerView>, links: &[LinkProfile]) {
        let mut written = Vec::new();
        for link in links {
            let Some((from, to)) = workers.get(&link.from).zip(workers.get(&link.to)) else { continue };
            let Some(key) = self.link_key(from, to) else { continue };
            if !written.contains(&key) {
                self.write(key.clone(), &link.figures);
                written.push(key);
            }
        }
    }

    fn profile_key(&self, spec: &ModelSpec, info: &NodeInfo) -> String {
        let NodeInfo { node, hardware, kernel_set, threads, .. } = info;
        let who = if self.local { "local".to_owned() } else { node.to_string() };
        format!("profile|{who}|{hardware}|{kernel_set}|{threads}|{}", fingerprint(spec))
    }

    /// `None` where one of them plays another device.
    fn link_key(&self, from: &WorkerView, to: &WorkerView) -> Option<String> {
        let end = |worker: &WorkerView| {
            let NodeInfo { node, hardware, threads, emulation, .. } = &worker.info;
            let address: IpAddr = worker.address.ip();
            if emulation.is_some() {
                return None;
            }
            Some(if self.local {
                format!("{hardware}|{threads}")
            } else {
                format!("{node}|{hardware}|{address}")
            })
        };
        let who = if self.local { "local|" } else { "" };
        Some(format!("link|{who}{}|{}", end(from)?, end(to)?))
    }

    fn read<T: DeserializeOwned>(&self, key: &str, most: Duration) -> Option<(T, Duration)> {
        let path = self.path(key);
        if fs::metadata(&path).ok()?.len() > ENTRY_BYTES {
            return None;
        }
        let entry: Entry<T> = serde_json::from_slice(&fs::read(&path).ok()?)
            .inspect_err(|error| tracing::debug!("{} is no entry: {error}", path.display()))
            .ok()?;
        // A clock that was set back makes no entry young.
        let age = Duration::from_secs(now().checked_sub(entry.measured_at)?);
        (entry.of == key && age <= most).then_some((entry.figures, age))
    }

    fn write(&self, key: String, figures: impl Serialize) {
        let path = self.path(&key);
        let entry = Entry { measured_at: now(), of: key, figures };
        let save = || {
            fs::create_dir_all(&self.dir)?;
            self.make_room()?;
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            serde_json::to_writer(&mut file, &entry)?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok::<_, std::io::Error>(())
        };
        if let Err(error) = save() {
            tracing::debug!("failed to keep what was measured: {error}");
        }
    }

    /// Removes the older half when the folder is full.
    fn make_room(&self) -> std::io::Result<()> {
        let files: Vec<PathBuf> = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.path()).collect();
        if files.len() < ENTRIES {
            return Ok(());
        }
        let written =
            |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(UNIX_EPOCH);
        let mut by_age: Vec<(SystemTime, PathBuf)> =
            files.into_iter().map(|path| (written(&path), path)).collect();
        by_age.sort();
        by_age.into_iter().take(ENTRIES / 2).try_for_each(|(_, path)| fs::remove_file(path))
    }

    fn path(&self, key: &str) -> PathBuf {
        let name = blake3::hash(key.as_bytes()).to_hex();
        self.dir.join(format!("{}.json", &name[..32]))
    }
}

/// Whether an entry can be this worker's.
fn believed(profile: &DeviceProfile, info: &NodeInfo) -> bool {
    let same = profile.threads == info.threads && profile.kernel_set == info.kernel_set;
    same && profile.check().is_ok()
}

/// What of a model the figures depend on: the formats and shapes of its matrices, and how heads share keys.
fn fingerprint(spec: &ModelSpec) -> String {
    let mut hash = blake3::Hasher::new();
    let head =
        (spec.d_model, spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.ffn, spec.vocab, spec.n_layers);
    hash.update(format!("{:?}|{head:?}|{}", spec.arch, spec.context).as_bytes());
    for tensor in &spec.tensors {
        hash.update(format!("|{:?} {} {}x{}", tensor.role, tensor.kind, tensor.rows, tensor.cols).as_bytes());
    }
    hash.finalize().to_hex()[..16].to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_core::QuantType;
    use shoal_core::model::shapes::{FileType, Shape};
    use shoal_core::profile::{ContextRate, KindRate, Measured, RoundTrip};
    use shoal_core::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};

    fn spec(file: &str) -> ModelSpec {
        Shape::from_name("stories").unwrap().spec(FileType::from_name(file).unwrap())
    }

    fn worker(id: u8, hardware: &str) -> WorkerView {
        let info = NodeInfo {
            node: NodeId([id; 16]),
            name: "w".to_owned(),
            version: "1".to_owned(),
            hardware: hardware.to_owned(),
            kernel_set: "k".to_owned(),
            threads: 2,
            memory: Bytes::mib(64),
            available: Bytes::mib(60),
            reserve: Bytes::mib(16),
            usable: Bytes::mib(32),
            resident: Bytes(0),
            data_port: 1,
            emulation: None,
        };
        WorkerView { info, address: ([127, 0, 0, id], 7).into() }
    }

    fn profile() -> DeviceProfile {
        DeviceProfile {
            rates: vec![KindRate::flat(QuantType::Q8_0, BytesPerSec(1e9), MacsPerSec(4e9))],
            attention: ContextRate::flat(BytesPerSec(1e9)),
            phase_overhead: Measured::exact(Seconds(1e-5)),
            threads: 2,
            kernel_set: "k".to_owned(),
        }
    }

    fn figures() -> LinkFigures {
        LinkFigures {
            round_trips: vec![RoundTrip { bytes: 64, time: Measured::exact(Seconds(1e-4)) }],
            bandwidth: Measured::exact(BytesPerSec(1e8)),
            message_cpu: Measured::exact(Seconds(1e-5)),
            shared: false,
        }
    }

    fn workers(of: Vec<WorkerView>) -> BTreeMap<NodeId, WorkerView> {
        of.into_iter().map(|worker| (worker.info.node, worker)).collect()
    }

    #[test]
    fn what_was_kept_is_known_where_it_belongs_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path(), false);
        let both = workers(vec![worker(1, "pi"), worker(2, "pi")]);
        kept.put_profile(&spec("Q8_0"), &worker(1, "pi"), &profile());
        let (from, to) = (NodeId([1; 16]), NodeId([2; 16]));
        kept.put_links(&both, &[LinkProfile { from, to, figures: figures() }]);

        let known = kept.load(&spec("Q8_0"), &both);
        assert_eq!(known.profiles.keys().collect::<Vec<_>>(), [&from]);
        assert!(known.ages[&from] < Duration::from_secs(60));
        assert_eq!(known.links, [LinkProfile { from, to, figures: figures() }]);
        // Another model, another machine, another address.
        assert!(kept.load(&spec("Q4_0"), &both).profiles.is_empty());
        let changed = workers(vec![worker(1, "pi with a new build"), worker(2, "pi")]);
        let known = kept.load(&spec("Q8_0"), &changed);
        assert!(known.profiles.is_empty() && known.links.is_empty());
        let mut moved = both.clone();
        moved.get_mut(&to).unwrap().address.set_ip([10, 0, 0, 1].into());
        assert!(kept.load(&spec("Q8_0"), &moved).links.is_empty());
    }

    #[test]
    fn local_workers_know_what_others_before_them_measured() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path(), true);
        let before = workers(vec![worker(1, "pi"), worker(2, "pi")]);
        kept.put_profile(&spec("Q8_0"), &worker(1, "pi"), &profile());
        let link = LinkProfile { from: NodeId([1; 16]), to: NodeId([2; 16]), figures: figures() };
        kept.put_links(&before, &[link]);
        let known = kept.load(&spec("Q8_0"), &workers((7..10).map(|id| worker(id, "pi")).collect()));
        assert_eq!((known.profiles.len(), known.links.len()), (3, 6));
    }

    #[test]
    fn entries_that_cannot_be_believed_are_as_if_they_were_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path(), false);
        let one = workers(vec![worker(1, "pi")]);
        let known = || kept.load(&spec("Q8_0"), &one).profiles.len();
        let key = kept.profile_key(&spec("Q8_0"), &worker(1, "pi").info);
        let path = kept.path(&key);
        kept.put_profile(&spec("Q8_0"), &worker(1, "pi"), &profile());
        assert_eq!(known(), 1);
        let good = fs::read_to_string(&path).unwrap();
        let now = now();
        let bad = [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("1000000000.0", "-1.0"),
            good.replace("1000000000.0", "1e300"),
            good.replace(&format!("\"measured_at\":{now}"), &format!("\"measured_at\":{}", now + 3600)),
            good.replace(&format!("\"measured_at\":{now}"), "\"measured_at\":0"),
            good.replace("profile|", "profile of another|"),
            " ".repeat(ENTRY_BYTES as usize + 1),
        ];
        for text in bad {
            assert_ne!(text, good);
            fs::write(&path, &text).unwrap();
            assert_eq!(known(), 0, "{}", &text[..text.len().min(80)]);
        }
        // And is written anew.
        kept.put_profile(&spec("Q8_0"), &worker(1, "pi"), &profile());
        assert_eq!(known(), 1);
        // A profile of other threads is not this worker's, and neither is what a played device said.
        kept.put_profile(&spec("Q8_0"), &worker(1, "pi"), &DeviceProfile { threads: 3, ..profile() });
        assert_eq!(known(), 0);
    }
}
