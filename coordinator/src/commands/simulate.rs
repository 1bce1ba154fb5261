//! `shoal simulate`: a plan on paper, message by message: queues, shared links, several streams at once, and chance.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shoal_cluster::cost::Workload;
use shoal_cluster::flow::{self, Simulation};
use shoal_cluster::planner::{Priced, choose};
use shoal_core::ModelSpec;
use shoal_core::plan::{PlanView, Strategy};

use super::attach::context_of;
use super::options::PlanOptions;
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};
use crate::out;
use crate::paper::{self, Paper};
use crate::show::simulation_sheet;

const EXAMPLES: &str = "\
Examples:
  shoal simulate model.gguf --cluster three-pi5.toml
  shoal simulate --shape llama-3.1-8b --cluster eight-pi5.toml --streams 16 --jitter 0.1
  shoal simulate model.gguf --cluster my.toml --strategy head --prompt-len 512 --decode 256 --json

The plan is made as `shoal plan --cluster` makes it. Each kernel and each message then takes its
predicted time, but waits for its turn at sender, receiver and shared medium, and for what it needs.
Beside the figures stand those of the closed formula, which knows no queues. profiles/README.md says
how a cluster file is written.";

/// Simulate a plan on paper: queues, shared links, jitter and several streams, beside the formula's figures.
#[derive(Debug, Args)]
#[command(after_help = after_help())]
pub(crate) struct SimulateArgs {
    /// The model: a GGUF file
    #[arg(value_name = "MODEL", required_unless_present = "shape")]
    model: Option<PathBuf>,
    /// A model of this shape without its file, as `shoal synth` would write it
    #[arg(long, value_name = "SHAPE", conflicts_with = "model")]
    shape: Option<String>,
    /// Number format of --shape, such as Q4_0 or Q4_K_M
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", requires = "shape")]
    quant: String,
    /// The devices and links: a cluster file (profiles/README.md)
    #[arg(long = "cluster", value_name = "FILE", required = true)]
    cluster: PathBuf,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: u32,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_len: u32,
    /// Tokens each stream generates
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=4096))]
    decode: u32,
    /// Chance: standard deviation of each kernel's and message's time, as a fraction of it, from 0 to 1 (log-normal)
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = jitter)]
    jitter: f64,
    /// The same seed gives the same run
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Simulate every strategy that fits, not the chosen one alone
    #[arg(long, conflicts_with = "strategy")]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plan: PlanOptions,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", crate::exit::HELP)
}

fn jitter(text: &str) -> Result<f64, String> {
    let fraction: f64 = text.parse().map_err(|_| format!("not a number: {text:?}"))?;
    if (0.0..=flow::JITTER_MAX).contains(&fraction) {
        Ok(fraction)
    } else {
        Err(format!("it must be from 0 to {}", flow::JITTER_MAX))
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
pub(crate) struct SimulationReport<'a> {
    pub(crate) model: &'a str,
    pub(crate) cluster_name: &'a str,
    pub(crate) streams: u32,
    pub(crate) context: u32,
    pub(crate) prompt_len: u32,
    pub(crate) decode_len: u32,
    pub(crate) jitter: f64,
    pub(crate) seed: u64,
    pub(crate) chosen: Strategy,
    pub(crate) reason: &'a str,
    pub(crate) strategies: Vec<Simulated<'a>>,
}

/// One strategy's plan and what it did.
#[derive(Debug, Serialize)]
pub(crate) struct Simulated<'a> {
    pub(crate) strategy: Strategy,
    #[serde(flatten)]
    pub(crate) simulation: Simulation,
    pub(crate) plan: PlanView<'a>,
}

pub(crate) fn run(args: &SimulateArgs, config: &Config) -> Outcome {
    if args.plan.refresh {
        return Err(Failure::Usage("--refresh has no meaning on paper: nothing is measured".to_owned()));
    }
    let paper = Paper::read(&args.cluster)?;
    let spec = paper::model(args.shape.as_deref(), &args.quant, args.model.as_deref())?;
    let workload = args.workload(&spec)?;
    let options = args.plan.on_paper(config, &paper.names)?;
    let choice = choose(&spec, &paper.cluster, &workload, &options).map_err(|no_plan| {
        let text = no_plan.to_string();
        if no_plan.refused.is_some() { Failure::Usage(text) } else { Failure::NoPlan(text) }
    })?;
    let wanted: Vec<&Priced> = if args.all {
        choice.outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).collect()
    } else {
        vec![&choice.chosen]
    };
    let chance = flow::Options { jitter: args.jitter, seed: args.seed };
    let mut strategies = Vec::new();
    for Priced { plan, .. } in wanted {
        let simulation = flow::simulate(plan, &spec, &paper.cluster, &workload, &chance)
            .map_err(|error| Failure::input("simulate the plan", error))?;
        strategies.push(Simulated { strategy: plan.strategy, simulation, plan: plan.view() });
    }
    let report = SimulationReport {
        model: &spec.name,
        cluster_name: &paper.file.name,
        streams: workload.streams,
        context: workload.context,
        prompt_len: workload.prompt_len,
        decode_len: workload.decode_len,
        jitter: args.jitter,
        seed: args.seed,
        chosen: choice.strategy(),
        reason: &choice.reason,
        strategies,
    };
    if args.json { out::json(&report) } else { out::line(&simulation_sheet(&report, &paper.names)) }
}

impl SimulateArgs {
    fn workload(&self, spec: &ModelSpec) -> Outcome<Workload> {
        let context = context_of(self.plan.context, spec)?;
        if self.prompt_len.saturating_add(self.decode) > context {
            return Err(Failure::Usage(format!(
                "a prompt of {} and {} tokens after it do not fit the context of {context} (see --context)",
                self.prompt_len, self.decode
            )));
        }
        Ok(Workload {
            context,
            streams: self.streams,
            prompt_len: self.prompt_len,
            decode_len: self.decode,
            objective: self.plan.objective.map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_a_fraction() {
        assert_eq!(jitter("0.25"), Ok(0.25));
        for bad in ["-0.1", "1.5", "NaN", "inf", "much"] {
            assert!(jitter(bad).is_err(), "{bad}");
        }
    }
}
