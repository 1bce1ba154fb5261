//! Getting hold of a cluster: the workers that joined, or local ones started for this command alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shoal_cluster::cost::Link;
use shoal_core::ModelSpec;
use shoal_core::units::Bytes;

use super::options::{ClusterArgs, PlanOptions, ReachArgs};
use crate::config::Config;
use crate::driver::profiles::{Kept, Known};
use crate::driver::{Driver, DriverOptions, JobOptions, Serving, Update, load, plan};
use crate::exit::{Failure, Outcome};
use crate::local::{LocalOptions, LocalWorkers, temporary_folder};
use crate::model::Model;
use crate::session::emulation::check_clocks;
use crate::show::Show;

/// How long local workers may take to start and join.
const LOCAL_JOIN: Duration = Duration::from_secs(30);

/// How often local workers are looked at while they are waited for.
const LOCAL_CHECK: Duration = Duration::from_millis(100);

/// Without `--wait`: no worker for this long means that there is none.
const FIRST_WORKER: Duration = Duration::from_secs(10);

/// Without `--wait`: no further worker for this long means that all are there.
const QUIET: Duration = Duration::from_millis(1500);

/// How long a join token of local workers is good for: they use it at once.
const LOCAL_TOKEN: Duration = Duration::from_secs(120);

/// A cluster in hand. Dropping it lets go of it, and ends local workers.
#[derive(Debug)]
pub(crate) struct Attached {
    // The workers go first, so that none of them sees its coordinator vanish.
    pub(crate) local: Option<LocalWorkers>,
    pub(crate) driver: Driver,
}

/// The cluster of this user, or local workers if the arguments say so; waits until its workers are there.
///
/// # Errors
/// The lock is held, a port is in use, no worker comes.
pub(crate) async fn attach(
    cluster: &ClusterArgs,
    reserve: Bytes,
    config: &Config,
    models: Option<PathBuf>,
    verbose: u8,
    show: &Show,
) -> Outcome<Attached> {
    if let Some(local) = cluster.emulate.local(cluster.local_workers)? {
        let options = LocalOptions { threads: cluster.threads, models, verbose, ..local };
        return attach_local(options, reserve, show).await;
    }
    if cluster.threads.is_some() {
        let text = "--threads is for --local-workers; a worker of its own takes it where it is started";
        return Err(Failure::Usage(text.to_owned()));
    }
    let mut driver = Driver::start(driver_options(&cluster.reach, config, reserve)).await?;
    gather(&mut driver, cluster.wait.wait, show).await?;
    if driver.connected().is_empty() {
        let text = "found no worker: start `shoal worker` on a board (the first time with --join and a token \
                    from `shoal token`), or use --local-workers N";
        return Err(Failure::Lost(text.to_owned()));
    }
    check_clocks(driver.connected().values().map(|worker| &worker.info))
        .map_err(|error| Failure::input("use these workers together", error))?;
    Ok(Attached { local: None, driver })
}

/// What the user's own cluster is driven with.
pub(crate) fn driver_options(reach: &ReachArgs, config: &Config, reserve: Bytes) -> DriverOptions {
    let addresses =
        if reach.address.is_empty() { config.file.address.clone() } else { reach.address.clone() };
    DriverOptions {
        dir: config.data_dir.join("coordinator"),
        listen: reach.listen.or(config.file.listen),
        mdns: !(reach.no_mdns || config.file.no_mdns == Some(true)),
        addresses,
        default_link: Link::GIGABIT,
        reserve,
    }
}

async fn attach_local(mut options: LocalOptions, reserve: Bytes, show: &Show) -> Outcome<Attached> {
    let dir = temporary_folder()?;
    let driver_options = DriverOptions {
        dir: dir.path().join("coordinator"),
        listen: Some(([127, 0, 0, 1], 0).into()),
        mdns: false,
        addresses: Vec::new(),
        default_link: Link::LOOPBACK,
        reserve,
    };
    let mut driver = Driver::start(driver_options).await?;
    let token = driver.issue_token(options.workers, LOCAL_TOKEN)?;
    options.coordinator = Some(driver.address());
    let workers = options.workers as usize;
    let mut local = LocalWorkers::start(dir, &token, &options)?;
    if !gather_local(&mut driver, &mut local, workers, LOCAL_JOIN, show).await? {
        let found = driver.connected().len();
        let text =
            format!("only {found} of {workers} local workers joined within {} s", LOCAL_JOIN.as_secs());
        return Err(Failure::Lost(text));
    }
    Ok(Attached { local: Some(local), driver })
}

/// Waits for `workers` local workers; whether all came within `patience`.
///
/// # Errors
/// One of them ended, or the driver failed.
pub(crate) async fn gather_local(
    driver: &mut Driver,
    local: &mut LocalWorkers,
    workers: usize,
    patience: Duration,
    show: &Show,
) -> Outcome<bool> {
    let deadline = Instant::now() + patience;
    while driver.connected().len() < workers {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        if let Ok(update) = tokio::time::timeout(LOCAL_CHECK, driver.next()).await {
            remark(&update?, driver, show);
        }
        for (name, line) in local.said() {
            tracing::debug!("{name}: {line}");
        }
        local.check()?;
    }
    Ok(true)
}

/// Waits for the workers of this cluster: for `wait`, or until no new one has come for a moment.
///
/// # Errors
/// The driver failed.
pub(crate) async fn gather(driver: &mut Driver, wait: Option<Duration>, show: &Show) -> Outcome {
    let start = Instant::now();
    let mut last = start;
    loop {
        let deadline = match wait {
            Some(wait) => start + wait,
            None if driver.connected().is_empty() => start + FIRST_WORKER,
            // Members that are known and silent get a little longer than none.
            None => last + QUIET,
        };
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        else {
            return Ok(());
        };
        if let Ok(update) = tokio::time::timeout(left, driver.next()).await {
            let update = update?;
            if matches!(update, Update::Connected { .. }) {
                last = Instant::now();
            }
            remark(&update, driver, show);
        }
    }
}

fn remark(update: &Update, driver: &Driver, show: &Show) {
    match update {
        Update::Found { node, address } => show.remark(&format!("found {} at {address}", node.short())),
        Update::Joined { node } => show.remark(&format!("joined {}", node.short())),
        Update::Connected { node } => {
            show.remark(&format!("connected {} ({})", driver.name(*node), node.short()))
        }
        Update::Gone { node, reason } => show.warn(&format!("lost {}: {reason}", driver.name(*node))),
        Update::Refused { address, reason } => show.warn(&format!("refused {address}: {reason}")),
        Update::Machine(_) => {}
    }
}

/// The job for a cluster in hand.
///
/// # Errors
/// `--exclude` or `--pin` names nobody, or `--context` is more than the model's.
pub(crate) fn job(
    plan: &PlanOptions,
    config: &Config,
    model: &Model,
    driver: &Driver,
    local: Option<&LocalWorkers>,
    prompt_len: usize,
) -> Outcome<JobOptions> {
    let names = driver.names();
    let kept = Kept::new(&config.data_dir, local.is_some());
    let known = if plan.refresh { Known::default() } else { kept.load(&model.spec, driver.connected()) };
    let exclude = plan.excluded(&names)?;
    let pins = plan.pins(&names)?;
    let context = check_context(plan.context, model)?;
    Ok(JobOptions {
        strategy: plan.strategy.map(Into::into),
        use_all: false,
        wire: plan.wire(config),
        exclude,
        pins,
        objective: plan.objective.map(Into::into),
        streams: 1,
        context,
        prompt_len: prompt_len as u32,
        known,
        kept,
        measure_links: names.len() > 1,
        twins: local.is_some(),
    })
}

/// Positions where `--context` does not say: a long conversation. The whole context of a recent model would
/// take more memory for KV pages than a small board has.
const DEFAULT_CONTEXT: u32 = 4096;

/// The context in force; at most the model's own.
///
/// # Errors
/// `--context` is more.
pub(crate) fn check_context(context: Option<u32>, model: &Model) -> Outcome<u32> {
    context_of(context, &model.spec)
}

/// The context in force for a model of which no more than its shape is known.
///
/// # Errors
/// As [`check_context`].
pub(crate) fn context_of(context: Option<u32>, spec: &ModelSpec) -> Outcome<u32> {
    let own = spec.context;
    match context {
        Some(context) if context > own => Err(Failure::Usage(format!(
            "--context {context} is more than the {own} positions the model was trained for"
        ))),
        Some(context) => Ok(context),
        None => Ok(own.min(DEFAULT_CONTEXT)),
    }
}

/// Plans and loads: afterwards the cluster takes requests.
///
/// # Errors
/// No plan fits, or the cluster was lost.
pub(crate) async fn ready(
    driver: &mut Driver,
    model: &Model,
    options: &JobOptions,
    show: &mut Show,
) -> Outcome<Serving> {
    match plan(driver, model, options, show).await? {
        Ok(planned) => load(driver, planned, show).await,
        Err(no_plan) => Err(Failure::NoPlan(no_plan.to_string())),
    }
}

/// Opens a model file, with a progress bar for the hashing of a large one.
///
/// # Errors
/// It is no model that can be run.
pub(crate) fn open(path: &std::path::Path, config: &Config, show: &mut Show) -> Outcome<Model> {
    Model::open(path, &config.data_dir, |done, total| show.hashing(done, total))
}
