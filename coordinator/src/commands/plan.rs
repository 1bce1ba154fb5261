//! `shoal plan`: the five strategies priced side by side.

use clap::Args;

use super::options::{ClusterArgs, ModelArg, PlanOptions};
use crate::config::Config;
use crate::exit::{Failure, Outcome};

const EXAMPLES: &str = "\
Examples:
  shoal plan model.gguf
  shoal plan model.gguf --local-workers 3 --json
  shoal plan model.gguf --context 8192 --exclude kitchen-pi";

/// Price the five strategies for a model, and say which one is chosen and why.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

pub(crate) fn run(_args: PlanArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
