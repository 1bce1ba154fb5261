//! The commands, one module each: its arguments, what it does, what it prints.

pub(crate) mod chat;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod options;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod token;

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
    let config = || Config::load(&global);
    match command {
        Command::Demo(args) => demo::run(args, config()?),
        Command::Run(args) => run::run(args, config()?),
        Command::Chat(args) => chat::run(args, config()?),
        Command::Devices(args) => devices::run(args, config()?),
        Command::Plan(args) => plan::run(args, config()?),
        Command::Token(args) => token::run(args, config()?),
    }?;
    Ok(ExitCode::SUCCESS)
}
