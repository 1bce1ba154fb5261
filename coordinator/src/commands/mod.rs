//! The commands, one module each: its arguments, what it does, what it prints.

mod attach;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod demo;
pub(crate) mod devices;
mod emulate;
pub(crate) mod options;
pub(crate) mod plan;
pub(crate) mod run;
mod save;
pub(crate) mod simulate;
pub(crate) mod synth;
pub(crate) mod template;
pub(crate) mod token;
pub(crate) mod tokenize;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::config::Config;
use crate::exit::Outcome;

/// Runs the command.
///
/// # Errors
/// Why it could not do its work, with the exit code for it.
pub(crate) fn run(cli: Cli) -> Outcome<ExitCode> {
    let Cli { global, command } = cli;
    let verbose = global.verbose;
    let config = Config::load;
    match command {
        Command::Demo(args) => demo::run(&args, &config(&args.home)?, verbose),
        Command::Run(args) => run::run(&args, &config(&args.home)?, verbose),
        Command::Chat(args) => chat::run(&args, &config(&args.home)?, verbose),
        Command::Bench(args) => bench::run(&args, &config(&args.home)?, verbose),
        Command::Devices(args) => devices::run(&args, &config(&args.home)?, verbose),
        Command::Plan(args) => plan::run(&args, &config(&args.home)?, verbose),
        Command::Simulate(args) => simulate::run(&args, &config(&args.home)?),
        Command::Token(args) => token::run(&args, &config(&args.home)?),
        Command::Synth(args) => synth::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Template(args) => template::run(args),
        Command::Worker(args) => return Ok(worker::main(args)),
    }?;
    Ok(ExitCode::SUCCESS)
}
