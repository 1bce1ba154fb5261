//! `shoal chat`: a conversation on the terminal.

use clap::Args;

use super::options::{ClusterArgs, ModelArg, PlanOptions, SamplingArgs};
use crate::config::Config;
use crate::exit::{Failure, Outcome};

const EXAMPLES: &str = "\
Examples:
  shoal chat model.gguf
  shoal chat model.gguf --system \"Answer in one sentence.\"
  printf 'Hello\\nHow are you?\\n' | shoal chat model.gguf --local-workers 2

While it runs: /help lists commands, /clear forgets the conversation, /bye ends it.";

/// Hold a conversation with a model.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// A message that tells the assistant how to behave
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(_args: ChatArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
