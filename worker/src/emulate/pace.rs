//! The played device's clock: what its work takes by its profile, slept after the real work is done.
//!
//! The clock stands at the point where the device's compute is free. A phase moves it by what the profile
//! predicts, times the dilation. Where others see the result (a sum's partials leave, hidden rows leave, the
//! head answers) the thread sleeps until the clock's time; in between, in a stage of one rank, phases only
//! add up. So ranks overlap as they would on boards. A sleep's error, and the moments that real work takes
//! between two phases, are carried over when nothing was waited for; after a wait the clock is the time at
//! which the awaited came.
//!
//! A deadline that the real work has passed is an overrun: counted, and the clock goes on from now.

use std::time::{Duration, Instant};

use shoal_cluster::cost::DevicePrice;
use shoal_core::message::{EmulationCounters, Run, StepOrder};
use shoal_core::units::Seconds;
use shoal_engine::model::{Group, GroupError, ReducePhase};

use super::sleep::Sleeper;
use crate::runtime::NetGroup;

/// An error of a sleep that is larger came from elsewhere (a machine that was put to sleep, a debugger) and
/// is not made up for.
const CARRIED_MOST: f64 = 2e-3;

/// Waits below this found what they waited for there already.
const WAITED: Duration = Duration::from_micros(10);

/// Plays one plan's part of a device.
#[derive(Debug)]
pub(crate) struct Pacer {
    price: DevicePrice,
    dilation: f64,
    sleeper: Sleeper,
    /// When the device's work so far began, less errors carried over.
    start: Instant,
    /// Seconds of work since then, dilated.
    work: f64,
    /// By how much the last sleep missed its deadline.
    error: f64,
    predicted: f64,
    overrun: f64,
    /// Positions of the rows of the step at hand.
    positions: Vec<u32>,
}

impl Pacer {
    pub(crate) fn new(price: DevicePrice, dilation: f64) -> Self {
        Self {
            price,
            dilation,
            sleeper: Sleeper::default(),
            start: Instant::now(),
            work: 0.0,
            error: 0.0,
            predicted: 0.0,
            overrun: 0.0,
            positions: Vec::new(),
        }
    }

    /// Work begins: with what `waited` for has come, or else at once after the work before. `free` is when
    /// the last messages have left the device.
    pub(crate) fn begin(&mut self, waited: bool, free: Option<Instant>) {
        let now = Instant::now();
        let carried = if waited || self.error.abs() > CARRIED_MOST { 0.0 } else { self.error };
        self.error = 0.0;
        let start = if carried >= 0.0 {
            now.checked_sub(Duration::from_secs_f64(carried)).unwrap_or(now)
        } else {
            now + Duration::from_secs_f64(-carried)
        };
        self.start = free.map_or(start, |free| start.max(free));
        self.work = 0.0;
    }

    /// The rows of the step that comes next.
    pub(crate) fn step(&mut self, order: &StepOrder) {
        let positions = |run: &Run| run.first_position..run.first_position + run.tokens.len() as u32;
        self.positions.clear();
        self.positions.extend(order.runs.iter().flat_map(positions));
    }

    /// The output head's work for so many rows.
    pub(crate) fn head(&mut self, rows: usize) {
        self.add(self.price.head(rows as u32));
    }

    fn phase(&mut self, layer: u32, phase: ReducePhase, rows: usize) {
        let seconds = match phase {
            ReducePhase::Attn => self.price.attention(layer, self.positions.iter().copied()),
            ReducePhase::Ffn => self.price.feed_forward(layer, rows as u32),
        };
        self.add(seconds);
    }

    fn add(&mut self, Seconds(seconds): Seconds) {
        self.predicted += seconds * self.dilation;
        self.work += seconds * self.dilation;
    }

    /// Sleeps until the work since [`Self::begin`] is done on the played device. How long that took, with
    /// nothing in it but sleep.
    pub(crate) fn sync(&mut self) -> Duration {
        let before = Instant::now();
        if self.work <= 0.0 {
            // No work, and no deadline: what was carried over stays so.
            self.error = 0.0;
            return Duration::ZERO;
        }
        let deadline = self.start + Duration::try_from_secs_f64(self.work).unwrap_or(Duration::MAX / 4);
        if before > deadline {
            self.overrun += (before - deadline).as_secs_f64();
            self.error = 0.0;
        } else {
            self.error = self.sleeper.until(deadline);
        }
        self.work = 0.0;
        before.elapsed()
    }

    /// For the coordinator.
    pub(crate) fn counters(&self) -> EmulationCounters {
        let micros = |seconds: f64| (seconds * 1e6) as u64;
        EmulationCounters {
            predicted_us: micros(self.predicted),
            overrun_us: micros(self.overrun),
            sleeps: self.sleeper.sleeps,
            missed_us: u64::try_from(self.sleeper.missed.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// A rank's group whose partials leave when the played device would have them.
pub(crate) struct Paced<'a> {
    pub(crate) pacer: &'a mut Pacer,
    pub(crate) group: &'a mut NetGroup,
}

impl Group for Paced<'_> {
    fn all_reduce(
        &mut self,
        layer: u32,
        phase: ReducePhase,
        x: &mut [f32],
        rows: usize,
    ) -> Result<(), GroupError> {
        self.pacer.phase(layer, phase, rows);
        if self.group.is_alone() {
            return Ok(());
        }
        self.pacer.sync();
        let waited = self.group.exchange().waited();
        self.group.all_reduce(layer, phase, x, rows)?;
        let waited = self.group.exchange().waited() - waited;
        self.pacer.begin(waited > WAITED, None);
        Ok(())
    }
}
