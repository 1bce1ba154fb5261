//! The five strategies, each as the best plan of its kind.

use shoal_core::limits;
use shoal_core::plan::{Plan, Strategy};

use super::groups::{EXHAUSTIVE, mixtures, permutations};
use super::search::{Found, Lack, Layering, Search, better};
use super::{Infeasible, Outcome};

/// Chunks of prefill that are tried; the largest that fits is taken.
const CHUNKS: [u32; 7] = [512, 256, 128, 64, 32, 16, 8];

/// A device is left out where the plan without it is better by more than this; less than that is
/// within what a prediction can tell.
const LEAVE_OUT_GAIN: f64 = 0.05;

/// Up to this many devices, leaving out each number of the slowest is tried; beyond, a few numbers.
const EACH_SIZE: usize = 12;

impl Search<'_> {
    /// What this strategy gives. `all`: use every device that can take part.
    pub(super) fn outcome(&self, strategy: Strategy, all: bool) -> Outcome {
        let result = match self.chunked(strategy, all) {
            Ok(plan) => self.priced(plan),
            Err(lack) => Err(self.infeasible(strategy, lack)),
        };
        Outcome { strategy, result, optimal: false, gap: 1.0, expansions: 0 }
    }

    fn infeasible(&self, strategy: Strategy, missing: Lack) -> Infeasible {
        let reason = if self.devices.is_empty() {
            "there is no device to plan for".to_owned()
        } else if missing.is_empty() {
            format!("the model cannot be cut this way for {} device(s)", self.devices.len())
        } else {
            match strategy {
                Strategy::Single => "no device has the memory for all of it",
                Strategy::StaticLayer => "equal layers do not fit every device",
                Strategy::AdaptiveLayer => "no split of the layers fits",
                Strategy::Head => "no split of heads and columns fits",
                Strategy::Hybrid => "no mixture of groups fits",
            }
            .to_owned()
        };
        Infeasible { reason, missing }
    }

    /// The strategy's plan with the largest chunk that fits.
    fn chunked(&self, strategy: Strategy, all: bool) -> Result<Plan, Lack> {
        let row = u64::from(self.spec.d_model) * 4;
        let legal = |chunk: &u32| u64::from(*chunk) * row <= limits::ACTIVATION_BYTES;
        let chunks: Vec<u32> = CHUNKS.into_iter().filter(legal).collect();
        let (Some(&largest), Some(&smallest)) = (chunks.first(), chunks.last()) else {
            return Err(Vec::new());
        };
        if let Ok(found) = self.sized(strategy, all, largest) {
            return Ok(found.plan);
        }
        let mut least = self.sized(strategy, all, smallest)?;
        // What fits with a chunk fits with a smaller one.
        let (mut too_large, mut fits) = (0, chunks.len() - 1);
        while fits - too_large > 1 {
            let middle = usize::midpoint(too_large, fits);
            match self.sized(strategy, all, chunks[middle]) {
                Ok(found) => (least, fits) = (found, middle),
                Err(_) => too_large = middle,
            }
        }
        Ok(least.plan)
    }

    /// The strategy's plan over all devices, or over the fastest ones if that is clearly better.
    fn sized(&self, strategy: Strategy, all: bool, chunk: u32) -> Result<Found, Lack> {
        let most = match strategy {
            Strategy::Single => return self.single(chunk),
            Strategy::StaticLayer => return self.static_layer(chunk),
            Strategy::AdaptiveLayer => self.devices.len().min(self.spec.n_layers as usize),
            Strategy::Head | Strategy::Hybrid => self.devices.len(),
        }
        .min(limits::WORKERS);
        let whole = self.over(strategy, most, chunk);
        if all && whole.is_ok() {
            return whole;
        }
        let fewest = if strategy == Strategy::Hybrid { 3 } else { 2 };
        let mut sizes: Vec<(usize, Result<Found, Lack>)> = vec![(most, whole)];
        let mut size = most;
        while size > fewest {
            size = if size > EACH_SIZE { (size * 3 / 4).max(EACH_SIZE) } else { size - 1 };
            sizes.push((size, self.over(strategy, size, chunk)));
        }
        let scores = sizes.iter().filter_map(|(_, found)| Some(found.as_ref().ok()?.score));
        let good_enough = scores.fold(f64::INFINITY, f64::min) * (1.0 + LEAVE_OUT_GAIN);
        let good = |found: &Result<Found, Lack>| found.as_ref().is_ok_and(|found| found.score <= good_enough);
        match sizes.iter().position(|(_, found)| good(found)) {
            Some(at) => sizes.swap_remove(at).1,
            None => sizes.swap_remove(0).1,
        }
    }

    /// The strategy's plan over the fastest `n` devices.
    fn over(&self, strategy: Strategy, n: usize, chunk: u32) -> Result<Found, Lack> {
        let devices = &self.by_speed[..n];
        match strategy {
            Strategy::AdaptiveLayer => self.adaptive_layer(devices, chunk),
            Strategy::Head => self.head(devices, chunk, Strategy::Head),
            Strategy::Single | Strategy::StaticLayer | Strategy::Hybrid => self.hybrid(devices, chunk),
        }
    }

    fn single(&self, chunk: u32) -> Result<Found, Lack> {
        let mut best: Result<Found, Lack> = Err(Vec::new());
        let mut lacks = Vec::new();
        for &device in &self.by_speed {
            let found = self.fit_any(Strategy::Single, &[vec![vec![device]]], chunk);
            if let Err(lack) = &found {
                lacks.extend(lack.iter().cloned());
            }
            best = better(best, found);
        }
        // All of them: any one device with its bytes would do.
        best.map_err(|_| lacks)
    }

    fn static_layer(&self, chunk: u32) -> Result<Found, Lack> {
        let n = self.devices.len().min(self.spec.n_layers as usize).min(limits::WORKERS);
        let groups: Vec<Vec<usize>> = (0..n).map(|device| vec![device]).collect();
        if groups.is_empty() {
            return Err(Vec::new());
        }
        self.fit(Strategy::StaticLayer, &groups, Layering::Equal, chunk, 1)
    }

    fn adaptive_layer(&self, devices: &[usize], chunk: u32) -> Result<Found, Lack> {
        self.layered(devices, chunk, Strategy::AdaptiveLayer)
    }

    fn layered(&self, devices: &[usize], chunk: u32, strategy: Strategy) -> Result<Found, Lack> {
        if devices.is_empty() {
            return Err(Vec::new());
        }
        let alone = |order: Vec<usize>| order.into_iter().map(|device| vec![device]).collect();
        let lists: Vec<Vec<Vec<usize>>> = self.orders(devices).into_iter().map(alone).collect();
        self.fit_any(strategy, &lists, chunk)
    }

    fn orders(&self, devices: &[usize]) -> Vec<Vec<usize>> {
        if devices.len() <= EXHAUSTIVE {
            return permutations(devices);
        }
        let mut by_memory = devices.to_vec();
        by_memory.sort_by_key(|&device| (std::cmp::Reverse(self.devices[device].usable), device));
        let backwards = |order: &[usize]| order.iter().rev().copied().collect();
        vec![devices.to_vec(), backwards(devices), backwards(&by_memory), by_memory]
    }

    fn head(&self, devices: &[usize], chunk: u32, strategy: Strategy) -> Result<Found, Lack> {
        if devices.is_empty() {
            return Err(Vec::new());
        }
        let mut group = devices.to_vec();
        group.sort_unstable();
        self.fit_any(strategy, &[vec![group]], chunk)
    }

    /// The best true mixture; where there is none, the best of a layer split, a head split and, for one
    /// device, that device alone.
    fn hybrid(&self, devices: &[usize], chunk: u32) -> Result<Found, Lack> {
        let mut lists = mixtures(devices);
        lists.retain(|groups| groups.len() <= self.spec.n_layers as usize);
        let mut best = self.fit_any(Strategy::Hybrid, &lists, chunk);
        if best.is_err() {
            best = better(best, self.head(devices, chunk, Strategy::Hybrid));
            if devices.len() <= self.spec.n_layers as usize {
                best = better(best, self.layered(devices, chunk, Strategy::Hybrid));
            }
        }
        best
    }
}
