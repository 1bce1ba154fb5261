//! Playing another device: `shoal worker --emulate FILE`, in three grades.
//!
//! | grade | what is real | what is slept |
//! |---|---|---|
//! | real | all arithmetic, in real time | what the profile predicts for the same work, less what the work took |
//! | dilated (`--dilate K`) | the same | the same, every time K times as long |
//! | dry (`--dry`) | protocol, network, accounting of memory; no weights, no arithmetic | what the profile predicts |
//!
//! The profile is that of a built-in board, of a file, or of a device of a cluster file
//! (`cluster.toml#device`, see `shoal_profiles`). The coordinator is told the played device's profile and
//! memory as they are in its own time; what this machine measures of links is divided by K.
//!
//! | part | what it is |
//! |---|---|
//! | `pace` | the played device's clock |
//! | `sleep` | sleeping up to a point in time |
//! | `body` | the shard, or one without weights: the one place where grades differ in the runtime |
//! | `MessagePace` | processor time of messages |
//!
//! A worker that plays nobody has none of this on its way but a test of an `Option` for each step and
//! message. The laboratory's network is not made here (`scripts/lab`).

mod body;
mod message;
mod pace;
mod sleep;

use std::io;

use shoal_cluster::cost::DevicePrice;
use shoal_core::model::ModelSpec;
use shoal_core::profile::{DeviceProfile, Emulation, Grade, LinkFigures, Measured};
use shoal_core::units::{Bytes, Seconds};
use shoal_core::{NodeId, Plan};
use shoal_engine::kernels;
use shoal_engine::model::WeightSource;
use shoal_profiles::{Board, ClusterFile, ProfileFileError};

pub(crate) use body::Body;
pub(crate) use message::MessagePace;
pub(crate) use pace::{Paced, Pacer};

/// Bounds of `--dilate`: below one a machine would have to be faster than the boards it plays, and beyond a
/// thousand a token takes minutes.
pub const DILATION: (f64, f64) = (1.0, 1000.0);

/// A device that this worker plays.
#[derive(Debug, Clone)]
pub struct Emulated {
    board: Board,
    grade: Grade,
    dilation_milli: u32,
    /// Processor time of a message on the played device, in seconds of its own; unknown for a board without
    /// a network.
    message_cpu: Option<f64>,
}

impl Emulated {
    /// The device that `file` names, its clocks slowed `dilation` times.
    ///
    /// # Errors
    /// There is no such profile, or a figure of it cannot be used.
    pub fn new(file: &str, dilation: f64, dry: bool) -> Result<Self, ProfileFileError> {
        let board = shoal_profiles::board(file)?;
        let message_cpu = match file.rsplit_once('#') {
            Some((path, device)) => message_cpu(&ClusterFile::read(path.as_ref())?, device),
            None => None,
        };
        let dilation_milli = (dilation.clamp(DILATION.0, DILATION.1) * 1e3).round() as u32;
        let grade = match (dry, dilation_milli) {
            (true, _) => Grade::Dry,
            (false, 1000) => Grade::Real,
            (false, _) => Grade::Dilated,
        };
        Ok(Self { board, grade, dilation_milli, message_cpu })
    }

    /// As the coordinator is told.
    pub fn info(&self) -> Emulation {
        let Self { board, grade, dilation_milli, .. } = self;
        Emulation { profile: board.name.clone(), grade: *grade, dilation_milli: *dilation_milli }
    }

    /// The board that is played.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The played device's profile in its own time. The bits are those of this machine's kernels.
    pub fn profile(&self) -> DeviceProfile {
        DeviceProfile { kernel_set: kernels::kernel_set_id().to_owned(), ..self.board.profile.clone() }
    }

    /// Whether there are no weights and no arithmetic.
    pub fn is_dry(&self) -> bool {
        self.grade == Grade::Dry
    }

    /// By how much every clock is slowed.
    pub fn dilation(&self) -> f64 {
        f64::from(self.dilation_milli) / 1e3
    }

    /// What weights, KV and buffers may take: what the board has, of that no more than was `said`, and where
    /// they are really held, no more than is `free` on this machine.
    pub fn usable(&self, said: Option<Bytes>, free: Bytes) -> Bytes {
        let played = said.map_or(self.board.usable, |said| said.min(self.board.usable));
        if self.is_dry() || said.is_some() || played <= free {
            return played;
        }
        tracing::warn!("{} has {played} for models; only {free} of this machine are free", self.board.name);
        free
    }

    /// Processor and build, as a board of this kind says them, and who plays it.
    pub fn hardware(&self, here: &str) -> String {
        let board = self.board.hardware.first().unwrap_or(&self.board.title);
        format!("{board}; emulated on {here}")
    }

    /// What was measured of a link here, in the played devices' own time. A message's processor time is the played
    /// device's, where its network is known: that is what `MessagePace` makes it take, not what this machine took.
    pub fn own_time(&self, mut figures: LinkFigures) -> LinkFigures {
        let dilation = self.dilation();
        for trip in &mut figures.round_trips {
            trip.time.median.0 /= dilation;
        }
        figures.message_cpu.median.0 /= dilation;
        if let Some(played) = self.message_cpu.filter(|played| *played > figures.message_cpu.median.0) {
            figures.message_cpu = Measured::exact(Seconds(played));
        }
        figures.bandwidth.median.0 *= dilation;
        figures
    }

    /// Plays `node`'s part of a plan.
    pub(crate) fn pacer(&self, spec: &ModelSpec, plan: &Plan, node: NodeId) -> Option<Pacer> {
        let price = DevicePrice::new(spec, &self.board.profile, plan, node)?;
        Some(Pacer::new(price, self.dilation()))
    }

    pub(crate) fn messages(&self) -> Option<MessagePace> {
        Some(MessagePace::new(self.message_cpu? * self.dilation()))
    }
}

/// The processor time of a message on `device` itself. A link's figure is that of its worse end, so the least of
/// a device's links is its own.
fn message_cpu(cluster: &ClusterFile, device: &str) -> Option<f64> {
    let own = cluster.boards.iter().position(|(name, _)| name == device)?;
    let links = cluster.links.iter().filter(|(from, to, _)| *from == own || *to == own);
    links.map(|(_, _, figures)| figures.message_cpu.median.0).min_by(f64::total_cmp)
}

/// Where a shard without weights is loaded from.
#[derive(Debug, Clone, Copy)]
pub struct NoWeights;

impl WeightSource for NoWeights {
    fn read_range(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "there are no weights in a dry emulation"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_core::profile::RoundTrip;
    use shoal_core::units::BytesPerSec;

    #[test]
    fn grades_follow_from_the_flags() {
        let grade = |dilation, dry| Emulated::new("pi5-8gb", dilation, dry).expect("board").info();
        assert_eq!(grade(1.0, false).grade, Grade::Real);
        assert_eq!((grade(2.5, false).grade, grade(2.5, false).dilation_milli), (Grade::Dilated, 2500));
        assert_eq!((grade(4.0, true).grade, grade(4.0, true).dilation()), (Grade::Dry, 4.0));
        assert!(Emulated::new("no-such-board", 1.0, false).is_err());
    }

    #[test]
    fn memory_is_the_boards_and_really_there() {
        let little = Bytes::mib(100);
        let usable = |dry, said, free| Emulated::new("pi5-8gb", 1.0, dry).expect("board").usable(said, free);
        let board = shoal_profiles::board("pi5-8gb").expect("board").usable;
        let plenty = Bytes(u64::MAX);
        assert_eq!(usable(false, None, little), little);
        assert_eq!(usable(false, None, plenty), board);
        assert_eq!(usable(true, None, little), board);
        assert_eq!(usable(true, Some(little), plenty), little);
        assert_eq!(usable(false, Some(plenty), little), board);
    }

    #[test]
    fn links_are_told_in_the_played_devices_time() {
        let figures = LinkFigures {
            round_trips: vec![RoundTrip { bytes: 64, time: Measured::exact(Seconds(8e-4)) }],
            bandwidth: Measured::exact(BytesPerSec(1e6)),
            message_cpu: Measured::exact(Seconds(4e-5)),
            shared: false,
        };
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("two.toml");
        let text =
            "network = \"gigabit-switch\"\n[[device]]\nname = \"pi\"\ncount = 2\nprofile = \"pi5-8gb\"\n";
        std::fs::write(&path, text).expect("write");
        let device = Emulated::new(&format!("{}#pi-1", path.display()), 4.0, false).expect("device");
        // As the profile of the network has it, and not a quarter of what was measured here.
        assert_eq!(device.own_time(figures.clone()).message_cpu.median, Seconds(2.5e-5));
        let own = Emulated::new("pi5-8gb", 4.0, false).expect("board").own_time(figures);
        assert_eq!(own.round_trips[0].time.median, Seconds(2e-4));
        assert_eq!(own.bandwidth.median, BytesPerSec(4e6));
        assert_eq!(own.message_cpu.median, Seconds(1e-5));
    }
}
