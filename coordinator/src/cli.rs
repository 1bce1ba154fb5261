//! The command line: which commands there are and what they have in common.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{commands, exit};

const EXAMPLES: &str = "\
Examples:
  shoal demo                                   three workers on this machine share a small model
  shoal token                                  prints what to run on each board, once
  shoal worker --join TOKEN                    on each board
  shoal devices                                who is there, what each can do
  shoal plan model.gguf                        five ways to share the model, priced side by side
  shoal bench model.gguf                       the same measured
  shoal run model.gguf --prompt \"Once upon\"    one prompt over the whole cluster
  shoal chat model.gguf                        a conversation";

/// One model, many small boards: run a language model over the machines you have.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, after_help = after_help(), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{}", exit::HELP)
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Say more on standard error; twice for still more. SHOAL_LOG takes a filter instead
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Where settings and data of the coordinator are; a worker has its own.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Coordinator")]
pub(crate) struct HomeArgs {
    /// Configuration file (TOML) with data-dir, listen, address, no-mdns, wire and memory-reserve; by default
    /// `config.toml` in the user's configuration folder, if it exists. Arguments and environment go before it
    #[arg(long, value_name = "FILE", env = "SHOAL_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where identity, cluster, hashes and lock are kept; by default the user's data folder
    #[arg(long, value_name = "DIR", env = "SHOAL_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole thing at work: local workers share the embedded model and tell a story
    Demo(commands::demo::DemoArgs),
    /// Run one prompt over the cluster
    Run(commands::run::RunArgs),
    /// Hold a conversation with a model
    Chat(commands::chat::ChatArgs),
    /// List the workers of this cluster
    Devices(commands::devices::DevicesArgs),
    /// Price the five strategies for a model, and say which one is chosen and why
    Plan(commands::plan::PlanArgs),
    /// Simulate a plan on paper: queues, shared links, jitter and several streams
    Simulate(commands::simulate::SimulateArgs),
    /// Measure the strategies side by side, and how far their predictions are off
    Bench(commands::bench::BenchArgs),
    /// Print a token with which a board joins this cluster
    Token(commands::token::TokenArgs),
    /// Print the token ids of standard input, as a model's own tokenizer makes them
    Tokenize(commands::tokenize::TokenizeArgs),
    /// Print what a model's chat template makes of messages
    Template(commands::template::TemplateArgs),
    /// Write a random-weight model of a real shape, for speed and memory
    Synth(commands::synth::SynthArgs),
    /// Offer this machine to a cluster
    Worker(worker::args::WorkerArgs),
}
