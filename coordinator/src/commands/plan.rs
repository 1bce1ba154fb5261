//! `shoal plan`: the five strategies priced side by side, the one to take with its reasons, and what more boards would
//! change. On the live cluster, or on paper (`--cluster`), where no board is needed.

mod ground;
mod report;
mod what_if;

use std::path::PathBuf;

use clap::Args;
use shoal_cluster::cost::Workload;
use shoal_cluster::planner::{Choice, NoPlan, Options, choose};
use shoal_core::ModelSpec;
use shoal_profiles::{Board, Net};

use super::attach::{Attached, attach, context_of, job, open};
use super::options::{ClusterArgs, PlanOptions};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver;
use crate::exit::{Failure, Outcome};
use crate::paper::{self, Paper};
use crate::show::{Show, plan_drawing, plan_sheet};
use crate::{out, runtime};

pub(crate) use ground::Ground;
use report::PlanReport;
pub(crate) use what_if::{Addition, Figures, WhatIf};

const EXAMPLES: &str = "\
Examples:
  shoal plan model.gguf
  shoal plan model.gguf --local-workers 3 --json
  shoal plan model.gguf --context 8192 --exclude kitchen-pi
  shoal plan model.gguf --cluster three-pi5.toml --streams 8 --what-if pi5-8gb
  shoal plan --shape llama-3.1-8b --quant Q4_0 --cluster three-pi5.toml --svg plan.svg";

/// Price the five strategies for a model, and say which one is chosen and why.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct PlanArgs {
    /// The model: a GGUF file
    #[arg(value_name = "MODEL", required_unless_present = "shape")]
    pub(crate) model: Option<PathBuf>,
    /// Plan for a model of this shape without its file, as `shoal synth` would write it; with --cluster
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", requires = "paper")]
    pub(crate) shape: Option<String>,
    /// Number format of --shape, such as Q4_0 or Q4_K_M
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", requires = "shape")]
    pub(crate) quant: String,
    /// Plan on paper for the devices and links in this file, with no board present (profiles/README.md)
    #[arg(long = "cluster", id = "paper", value_name = "FILE")]
    pub(crate) paper: Option<PathBuf>,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) streams: u32,
    /// Tokens of a typical prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) prompt_len: u32,
    /// What one more of this board would change: a profile's name or file, or 2xNAME for two of it; may be given several
    /// times
    #[arg(long, value_name = "PROFILE")]
    pub(crate) what_if: Vec<String>,
    /// The network by which such a board is attached; by default the cluster file's, or gigabit-switch
    #[arg(long, value_name = "PROFILE")]
    pub(crate) network: Option<String>,
    /// Draw the plan as SVG to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Draw the plan as PNG to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) png: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

fn after_help() -> String {
    let boards = shoal_profiles::boards().join(", ");
    let nets = shoal_profiles::nets().join(", ");
    format!("Boards: {boards}\nNetworks: {nets}\n\n{EXAMPLES}\n\n{}", crate::exit::HELP)
}

/// All that is shown of a planning.
#[derive(Debug)]
pub(crate) struct Sheet<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) ground: &'a Ground,
    pub(crate) workload: &'a Workload,
    pub(crate) result: Result<Choice, Box<NoPlan>>,
    pub(crate) what_if: Vec<WhatIf>,
    /// What would help where nothing fits.
    pub(crate) additions: Vec<Addition>,
}

pub(crate) fn run(args: &PlanArgs, config: &Config, verbose: u8) -> Outcome {
    // Names that nobody has are found before anything takes time.
    let boards = args.what_if.iter().map(|text| what_if::boards_of(text));
    let boards: Vec<(Board, usize)> = boards.collect::<Outcome<_>>()?;
    let net =
        args.network.as_deref().map(|name| shoal_profiles::net(name).map_err(paper::refused)).transpose()?;
    match &args.paper {
        Some(path) => on_paper(args, config, path, boards, net),
        None => live(args, config, verbose, boards, net),
    }
}

fn on_paper(
    args: &PlanArgs,
    config: &Config,
    path: &std::path::Path,
    boards: Vec<(Board, usize)>,
    net: Option<Net>,
) -> Outcome {
    if args.cluster.is_given() {
        let text = "--cluster plans on paper: options of a live cluster (--local-workers, --listen and their like) have \
                    no meaning with it";
        return Err(Failure::Usage(text.to_owned()));
    }
    if args.plan.refresh {
        return Err(Failure::Usage("--refresh has no meaning on paper: nothing is measured".to_owned()));
    }
    let paper = Paper::read(path)?;
    let spec = paper::model(args.shape.as_deref(), &args.quant, args.model.as_deref())?;
    let options = args.plan.on_paper(config, &paper.names)?;
    let workload = args.workload(&spec)?;
    let ground = Ground::paper(paper, net);
    let result = choose(&spec, &ground.cluster, &workload, &options);
    args.finish(&spec, &ground, &workload, &options, result, boards)
}

fn live(
    args: &PlanArgs,
    config: &Config,
    verbose: u8,
    boards: Vec<(Board, usize)>,
    net: Option<Net>,
) -> Outcome {
    let mut show = Show::new(verbose > 0, !args.json);
    let path = args.model.as_ref().ok_or_else(|| Failure::Usage("a MODEL is needed".to_owned()))?;
    let model = open(path, config, &mut show)?;
    let default = if args.cluster.local_workers.is_some() { "loopback" } else { "gigabit-switch" };
    let net = net.map_or_else(|| shoal_profiles::net(default).map_err(paper::refused), Ok)?;
    runtime::block_on(async {
        let reserve = args.plan.reserve(config);
        let Attached { local, mut driver } =
            attach(&args.cluster, reserve, config, model.folder(), verbose, &show).await?;
        let mut options = job(&args.plan, config, &model, &driver, local.as_ref(), args.prompt_len as usize)?;
        options.streams = args.streams;
        let result = match driver::plan(&mut driver, &model, &options, &show).await? {
            Ok(mut planned) => {
                let lost = || Failure::Lost("the planner chose without a choice".to_owned());
                Ok(*planned.choice.take().ok_or_else(lost)?)
            }
            Err(no_plan) => Err(no_plan),
        };
        let ground = Ground::live(&driver, net);
        driver.close().await;
        drop(local);
        // The workers keep their reserve already.
        let options = Options {
            strategy: options.strategy,
            wire: options.wire,
            exclude: options.exclude,
            pins: options.pins,
            ..Options::default()
        };
        args.finish(&model.spec, &ground, &args.workload(&model.spec)?, &options, result, boards)
    })
}

impl PlanArgs {
    fn workload(&self, spec: &ModelSpec) -> Outcome<Workload> {
        let context = context_of(self.plan.context, spec)?;
        Ok(Workload {
            context,
            streams: self.streams,
            prompt_len: self.prompt_len.min(context),
            decode_len: Workload::DECODE_LEN,
            objective: self.plan.objective.map(Into::into),
        })
    }

    /// Plans with what might be added, and shows all.
    fn finish(
        &self,
        spec: &ModelSpec,
        ground: &Ground,
        workload: &Workload,
        options: &Options,
        result: Result<Choice, Box<NoPlan>>,
        boards: Vec<(Board, usize)>,
    ) -> Outcome {
        let before = result.as_ref().ok().map(Figures::of);
        let mut what_if = Vec::new();
        for board in boards {
            what_if.push(what_if::what_if(ground, board, spec, workload, options, before)?);
        }
        let additions = match &result {
            // Without a network to attach it by, there is nothing to suggest.
            Err(no_plan) => what_if::additions(ground, no_plan, spec, workload, options).unwrap_or_default(),
            Ok(_) => Vec::new(),
        };
        let sheet = Sheet { spec, ground, workload, result, what_if, additions };
        if self.json {
            out::json(&PlanReport::new(&sheet))?;
        } else if sheet.result.is_ok() {
            out::line(&plan_sheet(&sheet))?;
        }
        match &sheet.result {
            Ok(choice) => self.draw(&sheet, choice),
            Err(no_plan) if no_plan.refused.is_some() => Err(Failure::Usage(no_plan.to_string())),
            Err(_) => Err(Failure::NoPlan(plan_sheet(&sheet))),
        }
    }

    fn draw(&self, sheet: &Sheet<'_>, choice: &Choice) -> Outcome {
        if let Some(path) = &self.svg {
            plan_drawing(sheet, choice).save_svg(path)?;
        }
        if let Some(path) = &self.png {
            plan_drawing(sheet, choice).save_png(path)?;
        }
        Ok(())
    }
}
