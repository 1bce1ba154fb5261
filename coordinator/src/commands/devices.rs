//! `shoal devices`: who is there, and what each can do.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::profile::{DeviceProfile, LinkProfile, RoundTrip};
use shoal_core::units::Bytes;

use super::attach::{driver_options, gather, job, open, ready};
use super::options::{PlanOptions, ReachArgs, WaitArgs};
use super::save::{SaveArg, save, save_arg};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, WorkerView, known_workers};
use crate::exit::Outcome;
use crate::model::Model;
use crate::session::Snapshot;
use crate::session::emulation::PlayedView;
use crate::show::{Show, devices_table, links_table, profiles_table};
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal devices
  shoal devices --wait 10 --profile model.gguf
  shoal devices --profile model.gguf --refresh
  shoal devices --profile model.gguf --save kitchen-pi=kitchen-pi.toml
  shoal devices --load model.gguf        and what each one holds of it
  shoal devices --json";

/// List the workers of this cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct DevicesArgs {
    /// Have each worker measure itself on this model's formats and shapes; without MODEL, on the embedded one
    #[arg(long, value_name = "MODEL", num_args = 0..=1)]
    pub(crate) profile: Option<Option<PathBuf>>,
    /// Write what was measured to this file, which --cluster, --what-if and --emulate take; NODE=FILE where several
    /// workers are measured
    #[arg(long, value_name = "FILE", requires = "profile", value_parser = save_arg)]
    pub(crate) save: Option<SaveArg>,
    /// Plan this model and load it first, so that what each worker holds of it is shown
    #[arg(long, value_name = "MODEL", conflicts_with = "profile")]
    pub(crate) load: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// A worker as `--json` prints it (design 17). Unknown is null.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceView {
    pub(crate) node: NodeId,
    pub(crate) name: Option<String>,
    pub(crate) address: Option<String>,
    /// `idle`, `ready` (holds a shard) or `away` (joined, and not to be reached now).
    pub(crate) state: &'static str,
    /// The device it plays.
    pub(crate) emulation: Option<PlayedView>,
    pub(crate) memory_bytes: Option<u64>,
    /// Free of it when the worker started.
    pub(crate) available_bytes: Option<u64>,
    /// What the worker leaves to everything else of its machine.
    pub(crate) reserve_bytes: Option<u64>,
    pub(crate) usable_bytes: Option<u64>,
    /// Weights, table, KV pages in use and buffers, as the worker accounts them.
    pub(crate) accounted_bytes: Option<u64>,
    /// What the plan lists for this worker at most.
    pub(crate) planned_bytes: Option<u64>,
    /// The process, as the system sees it.
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) hardware: Option<String>,
    pub(crate) threads: Option<u32>,
    pub(crate) version: Option<String>,
    pub(crate) profile: Option<DeviceProfile>,
    /// How long ago it was measured; null for now.
    pub(crate) profile_age_s: Option<u64>,
    /// Why it would not be used.
    pub(crate) left_out: Option<String>,
    /// What is hardly believable of it.
    pub(crate) doubt: Option<String>,
}

/// A link as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct LinkView {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) round_trips: Vec<RoundTripView>,
    pub(crate) bandwidth_bytes_per_s: f64,
    pub(crate) bandwidth_spread: f32,
    /// Processor time of a small message on each end.
    pub(crate) message_cpu_ms: f64,
    pub(crate) message_cpu_spread: f32,
    /// Whether all transmissions share one medium.
    pub(crate) shared: bool,
}

/// A message there and back.
#[derive(Debug, Serialize)]
pub(crate) struct RoundTripView {
    pub(crate) bytes: u32,
    pub(crate) ms: f64,
    pub(crate) spread: f32,
}

#[derive(Debug, Serialize)]
struct DevicesView {
    devices: Vec<DeviceView>,
    links: Vec<LinkView>,
}

pub(crate) fn run(args: &DevicesArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(verbose > 0, !args.json);
    let model = match (&args.load, &args.profile) {
        (Some(path), _) | (None, Some(Some(path))) => Some(open(path, config, &mut show)?),
        (None, Some(None)) => Some(Model::embedded()?),
        (None, None) => None,
    };
    runtime::block_on(async {
        let reserve = args.plan.reserve(config);
        let mut driver = Driver::start(driver_options(&args.reach, config, reserve)).await?;
        gather(&mut driver, args.wait.wait, &show).await?;
        let mut devices: Vec<DeviceView> = driver.connected().values().map(DeviceView::new).collect();
        let mut failure = None;
        if let Some(model) = model.filter(|_| !devices.is_empty()) {
            // Whatever was measured until then is shown.
            failure = measure(args, config, &mut driver, &model, &mut devices, &mut show).await.err();
            put_figures(&mut devices, &driver);
            if let (Some(arg), None) = (&args.save, &failure) {
                match save(arg, &model.spec.name, &devices) {
                    Ok(line) => show.warn(&line),
                    Err(error) => failure = Some(error),
                }
            }
        }
        let links: Vec<LinkView> = driver.figures().links.values().map(LinkView::new).collect();
        for (node, known) in known_workers(&config.data_dir.join("coordinator")) {
            if devices.iter().all(|device| device.node != node) {
                devices.push(DeviceView::away(node, known.name, known.address.to_string()));
            }
        }
        driver.close().await;
        if args.json {
            out::json(&DevicesView { devices, links })?;
            return failure.map_or(Ok(()), Err);
        }
        if devices.is_empty() {
            show.warn("No worker has joined this cluster yet: `shoal token` prints what to run on a board.");
            return Ok(());
        }
        out::line(&devices_table(&devices))?;
        if devices.iter().any(|device| device.profile.is_some()) {
            out::line(&format!("\n{}", profiles_table(&devices)))?;
        }
        if !links.is_empty() {
            out::line(&format!("\n{}", links_table(&links, &devices)))?;
        }
        failure.map_or(Ok(()), Err)
    })
}

/// Has the workers measure themselves; with `--load`, also load their parts of the model.
async fn measure(
    args: &DevicesArgs,
    config: &Config,
    driver: &mut Driver,
    model: &Model,
    devices: &mut [DeviceView],
    show: &mut Show,
) -> Outcome {
    let options = job(&args.plan, config, model, driver, None, 1)?;
    if args.load.is_none() {
        // Whether the model fits is not what was asked.
        return crate::driver::plan(driver, model, &options, show).await.map(drop);
    }
    let serving = ready(driver, model, &options, show).await?;
    let plan = &serving.planned.plan;
    let snapshot: Snapshot = driver.report(plan.nodes()).await?;
    for device in devices.iter_mut() {
        if let Some((_, resident)) = snapshot.get(&device.node) {
            device.state = "ready";
            device.accounted_bytes = Some(resident.accounted.total().0);
            device.resident_bytes = Some(resident.process.0);
            device.planned_bytes =
                Some(shoal_core::shard::footprint(plan, &model.spec, device.node).total().0);
        }
    }
    Ok(())
}

/// What was measured of each, and who is not there any more.
fn put_figures(devices: &mut [DeviceView], driver: &Driver) {
    let figures = driver.figures();
    for device in devices {
        let node = device.node;
        device.profile = figures.profiles.get(&node).cloned();
        device.profile_age_s = figures.ages.get(&node).map(std::time::Duration::as_secs);
        device.left_out = figures.left_out.get(&node).map(|reason| format!("left out: {reason}"));
        device.doubt = figures.doubts.get(&node).map(|reason| format!("hardly believable: {reason}"));
        if !driver.connected().contains_key(&node) {
            device.state = "away";
        }
    }
}

impl LinkView {
    fn new(link: &LinkProfile) -> Self {
        let LinkProfile { from, to, figures } = link;
        let trip = |trip: &RoundTrip| RoundTripView {
            bytes: trip.bytes,
            ms: trip.time.median.0 * 1e3,
            spread: trip.time.spread,
        };
        Self {
            from: *from,
            to: *to,
            round_trips: figures.round_trips.iter().map(trip).collect(),
            bandwidth_bytes_per_s: figures.bandwidth.median.0,
            bandwidth_spread: figures.bandwidth.spread,
            message_cpu_ms: figures.message_cpu.median.0 * 1e3,
            message_cpu_spread: figures.message_cpu.spread,
            shared: figures.shared,
        }
    }
}

impl DeviceView {
    fn new(worker: &WorkerView) -> Self {
        let WorkerView { info, address } = worker;
        let bytes = |bytes: Bytes| Some(bytes.0);
        Self {
            node: info.node,
            name: Some(info.name.clone()),
            address: Some(address.to_string()),
            state: "idle",
            emulation: info.emulation.as_ref().map(PlayedView::new),
            memory_bytes: bytes(info.memory),
            available_bytes: bytes(info.available),
            reserve_bytes: bytes(info.reserve),
            usable_bytes: bytes(info.usable),
            // An idle worker holds nothing of any model.
            accounted_bytes: Some(0),
            planned_bytes: None,
            // Zero is a system that does not tell.
            resident_bytes: Some(info.resident.0).filter(|&bytes| bytes > 0),
            hardware: Some(info.hardware.clone()),
            threads: Some(info.threads),
            version: Some(info.version.clone()),
            profile: None,
            profile_age_s: None,
            left_out: None,
            doubt: None,
        }
    }

    pub(super) fn away(node: NodeId, name: String, address: String) -> Self {
        Self {
            node,
            name: Some(name),
            address: Some(address),
            state: "away",
            emulation: None,
            memory_bytes: None,
            available_bytes: None,
            reserve_bytes: None,
            usable_bytes: None,
            accounted_bytes: None,
            planned_bytes: None,
            resident_bytes: None,
            hardware: None,
            threads: None,
            version: None,
            profile: None,
            profile_age_s: None,
            left_out: None,
            doubt: None,
        }
    }
}
