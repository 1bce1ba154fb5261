//! `shoal run`: one prompt, one answer.

use std::path::PathBuf;

use clap::Args;

use super::options::{ClusterArgs, ModelArg, PlanOptions, SamplingArgs};
use crate::config::Config;
use crate::exit::{Failure, Outcome};

const EXAMPLES: &str = "\
Examples:
  shoal run model.gguf --prompt \"Once upon a time\"
  shoal run model.gguf --chat --prompt \"Why is the sky blue?\"
  shoal run model.gguf --local-workers 3 --strategy hybrid --temperature 0 --json --prompt-file story.txt
  cat question.txt | shoal run model.gguf --prompt -";

/// Run one prompt over the cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The prompt, as it is; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompt_file")]
    pub(crate) prompt: Option<String>,
    /// A file with the prompt
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Treat the prompt as a message to an assistant: apply the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat, a message that tells the assistant how to behave
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(_args: RunArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
