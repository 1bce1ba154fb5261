//! `shoal demo`: the whole thing at work on one machine, with no board and no model at hand.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shoal_cluster::cost::{Cluster, Device, Link, Links, Workload};
use shoal_cluster::planner::{self, Options};
use shoal_core::NodeId;
use shoal_core::plan::Strategy;
use shoal_core::profile::{ContextRate, DeviceProfile, KindRate, Measured};
use shoal_core::quant::QuantType;
use shoal_core::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};

use super::attach::{Attached, check_context, gather_local, job, ready};
use super::options::{PlanOptions, SamplingArgs};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, DriverOptions, JobOptions};
use crate::exit::{Failure, Outcome};
use crate::local::{LocalOptions, LocalWorkers, temporary_folder};
use crate::model::Model;
use crate::session::{RunReport, Wanted, generate, prompt_tokens};
use crate::show::{Show, plan_table, summary};
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal demo
  shoal demo --workers 5 --strategy head
  shoal demo --prompt \"The little dragon\" --seed 7
  shoal demo --json

Starts workers as processes of their own, each with less memory than the model needs, finds them over mDNS, joins,
measures, plans, loads, and streams a story. It ends by itself and leaves nothing behind.";

/// Show the whole thing at work: local workers share the embedded model and tell a story.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct DemoArgs {
    /// Workers to start
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) workers: u32,
    /// A model to use instead of the embedded one: a GGUF file
    #[arg(long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// How the story begins
    #[arg(short, long, value_name = "TEXT", default_value = "Once upon a time")]
    pub(crate) prompt: String,
    /// Print one JSON object instead of the story
    #[arg(long)]
    pub(crate) json: bool,
    /// Kernel threads of each worker
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Do without mDNS: the workers are told where the coordinator is
    #[arg(long)]
    pub(crate) no_mdns: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// Tokens of the story, unless told otherwise: one screen.
const STORY_TOKENS: u32 = 200;

/// The story's seed, unless told otherwise: everyone sees the same one.
const STORY_SEED: u64 = 9;

/// How long mDNS may take to bring all workers together. It takes a second or two where it works.
const DISCOVERY: Duration = Duration::from_secs(10);

/// How long workers may take when they are told where the coordinator is.
const JOIN: Duration = Duration::from_secs(20);

/// How long the join token is good for.
const TOKEN: Duration = Duration::from_secs(300);

/// What a worker's budget is above the largest share of the plan on paper: room for a plan that follows what is
/// measured.
const BUDGET_SLACK_PERCENT: u64 = 15;

pub(crate) fn run(args: &DemoArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(!args.json, !args.json);
    let dir = temporary_folder()?;
    // What is measured and hashed goes with the rest.
    let config = &Config { data_dir: dir.path().join("own"), ..config.clone() };
    let model = match &args.model {
        Some(path) => Model::open(path, dir.path(), |done, total| show.hashing(done, total))?,
        None => Model::embedded()?,
    };
    let context = check_context(args.plan.context, &model)?;
    let seed = args.sampling.seed.unwrap_or(STORY_SEED);
    let sampling = SamplingArgs { seed: Some(seed), ..args.sampling.clone() };
    let params = sampling.params(model.spec.vocab, seed)?;
    let prompt = prompt_tokens(&model, &args.prompt, context)?;
    let memory = args.budget(config, &model, context, &show);
    runtime::block_on(async {
        let Attached { local, mut driver } = gather(args, dir, memory, verbose, &show).await?;
        let options = job(&args.plan, config, &model, &driver, None, prompt.len())?;
        // What is shown is many workers as one.
        let options = JobOptions { use_all: true, ..options };
        show.remark("measuring workers and links");
        let serving = ready(&mut driver, &model, &options, &mut show).await?;
        let plan = &serving.planned.plan;
        let names = &serving.planned.names;
        if !args.json {
            let fetched: Bytes = serving.fetched.values().copied().sum();
            show.remark(&format!("loaded: {fetched} fetched and verified"));
            let reason =
                serving.planned.choice.as_ref().map(|choice| choice.reason.as_str()).unwrap_or_default();
            out::line(&format!(
                "\n{}: {reason}\n{}\n",
                plan.strategy.name(),
                plan_table(plan, &model.spec, names)
            ))?;
            out::text(&args.prompt)?;
        }
        let wanted = Wanted {
            prompt,
            params,
            max_tokens: Some(sampling.max_tokens.unwrap_or(STORY_TOKENS)),
            stops: &sampling.stop,
            ignore_eos: sampling.ignore_eos,
        };
        let before = driver.report(plan.nodes()).await?;
        let text = |piece: &str| if args.json { Ok(()) } else { out::text(piece) };
        let generated = generate(&mut driver, &model, wanted, text).await?;
        let after = driver.report(plan.nodes()).await?;
        let report = RunReport::new(&generated, plan, &model.spec, seed, names, &before, &after)
            .fetched(&serving.fetched);
        if args.json {
            out::json(&report)?;
        } else {
            out::line(&format!("\n\n{}", summary(&report)))?;
        }
        driver.close().await;
        drop(local);
        Ok(())
    })
}

/// Starts the workers and brings them together: over mDNS, or where that does not work, by address.
async fn gather(
    args: &DemoArgs,
    dir: tempfile::TempDir,
    memory: Option<Bytes>,
    verbose: u8,
    show: &Show,
) -> Outcome<Attached> {
    let mut driver = Driver::start(DriverOptions {
        dir: dir.path().join("coordinator"),
        listen: None,
        mdns: !args.no_mdns,
        addresses: Vec::new(),
        default_link: Link::LOOPBACK,
        reserve: Bytes(0),
    })
    .await?;
    let token = driver.issue_token(args.workers.saturating_mul(2), TOKEN)?;
    let mut options = LocalOptions {
        workers: args.workers,
        threads: args.threads,
        memory,
        verbose,
        ..LocalOptions::default()
    };
    if args.no_mdns {
        options.coordinator = Some(driver.address());
    }
    let budget = memory.map_or_else(String::new, |memory| format!(", each with {memory} of memory"));
    show.remark(&format!("starting {} workers{budget}", args.workers));
    let mut local = LocalWorkers::start(dir, &token, &options)?;
    let workers = args.workers as usize;
    if !gather_local(&mut driver, &mut local, workers, DISCOVERY, show).await? {
        if args.no_mdns {
            return Err(too_few(&driver, workers));
        }
        show.warn("multicast does not work here: the workers are told the coordinator's address instead");
        options.coordinator = Some(driver.address());
        local.restart(&options)?;
        if !gather_local(&mut driver, &mut local, workers, JOIN, show).await? {
            let found = driver.connected().len();
            return Err(Failure::Lost(format!(
                "only {found} of {workers} workers joined within {} s",
                JOIN.as_secs()
            )));
        }
    }
    Ok(Attached { local: Some(local), driver })
}

fn too_few(driver: &Driver, workers: usize) -> Failure {
    Failure::Lost(format!("only {} of {workers} workers joined in time", driver.connected().len()))
}

impl DemoArgs {
    /// What each worker may use: less than the model, so that none could hold it alone. `None`, and said so, where one
    /// worker has to.
    fn budget(&self, config: &Config, model: &Model, context: u32, show: &Show) -> Option<Bytes> {
        let strategy = self.plan.strategy.map(Strategy::from);
        if self.workers == 1 || strategy == Some(Strategy::Single) {
            show.remark("one worker holds the whole model, so its memory is not limited");
            return None;
        }
        let model_bytes = model.manifest.model.file_bytes;
        let most = Bytes(model_bytes.0.saturating_sub(1));
        let workload = Workload {
            context,
            streams: 1,
            prompt_len: 8,
            decode_len: Workload::DECODE_LEN,
            objective: None,
        };
        let options = Options { strategy, use_all: true, wire: self.plan.wire(config), ..Options::default() };
        let choice = planner::choose(&model.spec, &on_paper(self.workers, most), &workload, &options);
        let Ok(choice) = choice else {
            show.remark(
                "this plan does not fit workers smaller than the model, so their memory is not limited",
            );
            return None;
        };
        let shares = choice.chosen.prediction.nodes.iter().map(|node| node.memory.total());
        let largest = shares.max().unwrap_or_default();
        Some(Bytes(largest.0.saturating_mul(100 + BUDGET_SLACK_PERCENT) / 100).min(most))
    }
}

/// As many equal workers as will be started; only the shares of the plan are of interest, not its speed.
fn on_paper(workers: u32, usable: Bytes) -> Cluster {
    let rate = KindRate::flat(QuantType::Q8_0, BytesPerSec(5e9), MacsPerSec(2e10));
    let profile = DeviceProfile {
        rates: vec![rate],
        attention: ContextRate::flat(BytesPerSec(5e9)),
        phase_overhead: Measured::exact(Seconds(20e-6)),
        threads: 1,
        kernel_set: String::new(),
    };
    let device = |number: u32| {
        let mut node = [0; 16];
        node[..4].copy_from_slice(&number.to_be_bytes());
        let (name, profile) = (format!("local-{number}"), profile.clone());
        Device { node: NodeId(node), name, profile, usable, power: None }
    };
    Cluster { devices: (1..=workers).map(device).collect(), links: Links::new(Link::LOOPBACK) }
}
