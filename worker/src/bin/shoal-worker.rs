//! `shoal-worker`: the worker alone, for boards with little storage. `shoal worker` is the same.

use std::process::ExitCode;

use clap::Parser;
use worker::args::WorkerArgs;

/// Offer this machine to a cluster: hold a part of a model and compute with it.
#[derive(Debug, Parser)]
#[command(name = "shoal-worker", version, after_help = worker::EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    args: WorkerArgs,
}

fn main() -> ExitCode {
    let Cli { args } = Cli::parse();
    worker::start_logs(args.verbose);
    worker::main(args)
}
