//! `shoal devices`: who is there, and what each can do.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::profile::DeviceProfile;
use shoal_core::units::Bytes;

use super::attach::{driver_options, gather, job, open, ready};
use super::options::{PlanOptions, ReachArgs, WaitArgs};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, WorkerView, known_workers};
use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::session::Snapshot;
use crate::session::emulation::PlayedView;
use crate::show::{Show, devices_table, profiles_table};
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal devices
  shoal devices --wait 10 --profile model.gguf
  shoal devices --load model.gguf        and what each one holds of it
  shoal devices --json";

/// List the workers of this cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct DevicesArgs {
    /// Have each worker measure itself on this model's formats and shapes; without MODEL, on the embedded one
    #[arg(long, value_name = "MODEL", num_args = 0..=1)]
    pub(crate) profile: Option<Option<PathBuf>>,
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
}

#[derive(Debug, Serialize)]
struct DevicesView {
    devices: Vec<DeviceView>,
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
        if let Some(model) = model.filter(|_| !devices.is_empty()) {
            measure(args, config, &mut driver, &model, &mut devices, &mut show).await?;
        }
        for (node, known) in known_workers(&config.data_dir.join("coordinator")) {
            if devices.iter().all(|device| device.node != node) {
                devices.push(DeviceView::away(node, known.name, known.address.to_string()));
            }
        }
        driver.close().await;
        if args.json {
            return out::json(&DevicesView { devices });
        }
        if devices.is_empty() {
            show.warn("No worker has joined this cluster yet: `shoal token` prints what to run on a board.");
            return Ok(());
        }
        out::line(&devices_table(&devices))?;
        if devices.iter().any(|device| device.profile.is_some()) {
            out::line(&profiles_table(&devices))?;
        }
        Ok(())
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
        match crate::driver::plan(driver, model, &options, show).await? {
            Ok(planned) => put_profiles(devices, planned.profiles),
            Err(no_plan) => return Err(Failure::NoPlan(no_plan.to_string())),
        }
        return Ok(());
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
    put_profiles(devices, serving.planned.profiles);
    Ok(())
}

fn put_profiles(devices: &mut [DeviceView], profiles: std::collections::BTreeMap<NodeId, DeviceProfile>) {
    for (node, profile) in profiles {
        if let Some(device) = devices.iter_mut().find(|device| device.node == node) {
            device.profile = Some(profile);
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
        }
    }

    fn away(node: NodeId, name: String, address: String) -> Self {
        Self {
            node,
            name: Some(name),
            address: Some(address),
            state: "away",
            emulation: None,
            memory_bytes: None,
            usable_bytes: None,
            accounted_bytes: None,
            planned_bytes: None,
            resident_bytes: None,
            hardware: None,
            threads: None,
            version: None,
            profile: None,
        }
    }
}
