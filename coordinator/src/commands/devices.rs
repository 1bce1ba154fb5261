//! `shoal devices`: who is there, and what each can do.

use clap::Args;

use super::options::ReachArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};

const EXAMPLES: &str = "\
Examples:
  shoal devices
  shoal devices --wait 10 --profile model.gguf
  shoal devices --json";

/// List the workers of this cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct DevicesArgs {
    /// Have each worker measure itself on this model's formats and shapes; without MODEL, on the embedded one
    #[arg(long, value_name = "MODEL", num_args = 0..=1)]
    pub(crate) profile: Option<Option<std::path::PathBuf>>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

pub(crate) fn run(_args: DevicesArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
