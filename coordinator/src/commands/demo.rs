//! `shoal demo`: the whole thing at work on one machine, with no board and no model at hand.

use std::path::PathBuf;

use clap::Args;

use super::options::{PlanOptions, SamplingArgs};
use crate::config::Config;
use crate::exit::{Failure, Outcome};

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
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(_args: DemoArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
