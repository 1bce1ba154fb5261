//! The rounds: every trial once in each, each round beginning with the next.

use shoal_core::NodeId;

use super::field::Field;
use super::trial::{Broken, Sample, Stand};
use super::work::Work;
use crate::driver::Driver;
use crate::exit::Outcome;
use crate::model::Model;
use crate::session::EmulationView;
use crate::show::Show;

/// What all rounds gave for each trial: samples, or why it was given up.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(super) trials: Vec<Result<Vec<Sample>, String>>,
    /// What the cluster plays; samples are free of its dilation.
    pub(super) emulation: Option<EmulationView>,
}

/// Runs all rounds; a trial that breaks is not tried again.
///
/// # Errors
/// The cluster was lost.
pub(crate) async fn run(
    driver: &mut Driver,
    model: &Model,
    field: &Field,
    work: &Work,
    show: &Show,
) -> Outcome<Results> {
    let count = field.trials.len();
    let nodes: Vec<NodeId> = driver.connected().keys().copied().collect();
    let emulation = driver.emulation(&nodes);
    let dilation = emulation.as_ref().map_or(1.0, |emulation| emulation.dilation);
    let mut results = Results { trials: vec![Ok(Vec::new()); count], emulation };
    let mut stand = Stand { driver, model, field, work, dilation };
    for round in 0..work.rounds {
        for place in 0..count {
            let at = (place + round as usize) % count;
            let trial = &field.trials[at];
            let Ok(samples) = &mut results.trials[at] else { continue };
            show.warn(&format!(
                "round {}/{}, {}/{count}: {}",
                round + 1,
                work.rounds,
                place + 1,
                trial.label
            ));
            match stand.run(trial).await {
                Ok(sample) => samples.push(sample),
                Err(Broken::All(failure)) => return Err(failure),
                Err(Broken::Trial(reason)) => {
                    show.warn(&format!("gave up {}: {reason}", trial.label));
                    results.trials[at] = Err(reason);
                }
            }
        }
    }
    Ok(results)
}
