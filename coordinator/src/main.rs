//! `shoal`: one model, many small boards.
//!
//! This binary has every command. It parses the command line, sets up logs and configuration, and hands over to one
//! module of [`commands`]. What a command needs of the cluster it gets from `driver`, which alone talks to workers.

mod bench;
mod chart;
mod cli;
mod commands;
mod config;
mod driver;
mod exit;
mod local;
mod model;
mod out;
mod paper;
mod runtime;
mod session;
mod show;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    worker::start_logs(cli.global.verbose);
    match commands::run(cli) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.is_silent() {
                out::note(&format!("error: {failure}"));
            }
            failure.code()
        }
    }
}
