//! A job from start to ready: gather, measure, plan, load, warm up.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_cluster::coordinator::{Action, Event, Failed, Job, Planning};
use shoal_cluster::cost::{Objective, Workload};
use shoal_cluster::planner::{Choice, NoPlan, Options, Pin};
use shoal_core::plan::{Plan, Strategy, Wire};
use shoal_core::{Bytes, Epoch, NodeId};

use super::profiles::{Kept, Known};
use super::{Driver, Update};
use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::show::Show;

/// What is to be planned.
#[derive(Debug, Clone)]
pub(crate) struct JobOptions {
    pub(crate) strategy: Option<Strategy>,
    /// Leave no worker without work.
    pub(crate) use_all: bool,
    pub(crate) wire: Wire,
    pub(crate) exclude: Vec<NodeId>,
    /// What particular workers must hold.
    pub(crate) pins: Vec<Pin>,
    /// `None`: latency for one stream, throughput for several.
    pub(crate) objective: Option<Objective>,
    /// Sequences at once.
    pub(crate) streams: u32,
    /// Positions of the KV cache; at most the model's own count.
    pub(crate) context: u32,
    /// Tokens of the prompt, as far as known.
    pub(crate) prompt_len: u32,
    /// What is known from before; the rest is measured.
    pub(crate) known: Known,
    /// Where what is measured is kept.
    pub(crate) kept: Kept,
    /// Whether links are measured.
    pub(crate) measure_links: bool,
    /// The workers are processes of one machine, of which one measures for all.
    pub(crate) twins: bool,
}

/// A plan that was chosen, with what it was chosen from.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) choice: Option<Box<Choice>>,
    /// Workers there, not all of them used.
    pub(crate) names: BTreeMap<NodeId, String>,
}

/// A plan that is loaded and warm.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) planned: Planned,
    /// Bytes of the model that each worker fetched.
    pub(crate) fetched: BTreeMap<NodeId, Bytes>,
}

impl JobOptions {
    fn job(&self, driver: &Driver, model: &Model) -> Job {
        let context = self.context.min(model.spec.context);
        Job {
            model: model.manifest.model.clone(),
            spec: (*model.spec).clone(),
            workload: Workload {
                context,
                streams: self.streams,
                prompt_len: self.prompt_len.min(context),
                decode_len: Workload::DECODE_LEN,
                objective: self.objective,
            },
            planning: Planning::Choose(Options {
                strategy: self.strategy,
                use_all: self.use_all,
                wire: self.wire,
                exclude: self.exclude.clone(),
                pins: self.pins.clone(),
                epoch: Epoch::default(),
                ..Options::default()
            }),
            workers: driver.connected().len(),
            // Whoever should be there was waited for before.
            gather: Duration::ZERO,
            measure_links: self.measure_links,
            profiles: self.known.profiles.clone(),
            links: self.known.links.clone(),
            twins: self.twins,
            power: driver.power(),
        }
    }
}

/// Measures the workers that are connected and chooses a plan. Loading begins; whoever wants no more than the plan
/// drops the driver.
///
/// # Errors
/// `Ok(Err(_))` is the planner's word that no plan fits; `Err` that the cluster was lost.
pub(crate) async fn plan(
    driver: &mut Driver,
    model: &Model,
    options: &JobOptions,
    show: &Show,
) -> Outcome<Result<Planned, Box<NoPlan>>> {
    driver.serve_chunks(model);
    driver.know(&options.known);
    let names = driver.names();
    driver.handle(Event::Start(Box::new(options.job(driver, model))));
    loop {
        match driver.next().await? {
            Update::Machine(Action::Profiled { node, profile }) => {
                show.remark(&format!("measured {}", driver.name(node)));
                if let Some(worker) = driver.connected().get(&node) {
                    options.kept.put_profile(&model.spec, worker, &profile);
                }
            }
            Update::Machine(Action::LinksMeasured { node, links }) => {
                show.remark(&format!("measured links of {}", driver.name(node)));
                options.kept.put_links(driver.connected(), &links);
            }
            Update::Machine(Action::Doubt { node, name, reason }) => {
                show.warn(&format!("hardly believable: {name} ({}): {reason}", node.short()));
            }
            Update::Machine(Action::LeftOut(left)) => {
                show.warn(&format!("left out: {} ({}): {}", left.name, left.node.short(), left.reason));
            }
            Update::Machine(Action::Planned { plan, choice }) => {
                return Ok(Ok(Planned { plan: *plan, choice, names }));
            }
            Update::Machine(Action::NoPlan(no_plan)) => return Ok(Err(no_plan)),
            Update::Machine(action) => check(action)?,
            _ => {}
        }
    }
}

/// Waits until the plan that [`plan`] chose is loaded and warm.
///
/// # Errors
/// The cluster was lost.
pub(crate) async fn load(driver: &mut Driver, planned: Planned, show: &mut Show) -> Outcome<Serving> {
    let mut fetched_by = BTreeMap::new();
    loop {
        match driver.next().await? {
            Update::Machine(Action::Progress { node, done, total, .. }) => {
                show.loading(node, &driver.name(node), done, total);
            }
            Update::Machine(Action::Loaded { node, fetched, .. }) => {
                fetched_by.insert(node, fetched);
            }
            Update::Machine(Action::Ready) => {
                show.loaded();
                return Ok(Serving { planned, fetched: fetched_by });
            }
            Update::Machine(action) => check(action)?,
            _ => {}
        }
    }
}

/// Turns the end of a job into the failure it is.
fn check(action: Action) -> Outcome {
    match action {
        Action::Ended(failed @ Failed::Plan { .. }) => Err(Failure::NoPlan(failed.to_string())),
        Action::Ended(failed) => Err(Failure::Lost(failed.to_string())),
        Action::Refused { reason, .. } => Err(Failure::Lost(format!("failed to start the job: {reason}"))),
        _ => Ok(()),
    }
}
