//! `shoal`: one model, many small boards.
//!
//! This binary has every command. It parses the command line, sets up logs and configuration, and hands over to one
//! module of [`commands`]. What a command needs of the cluster it gets from `driver`, which alone talks to workers.

mod cli;
mod commands;
mod config;
mod driver;
mod exit;
mod local;
mod model;
mod out;
mod runtime;
mod session;
mod show;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logs(cli.global.verbose);
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

/// Logs go to standard error: warnings only, unless `-v` or `SHOAL_LOG` asks for more.
fn start_logs(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let default = || {
        EnvFilter::new(format!("warn,shoal={level},worker={level},shoal_net={level},shoal_cluster={level}"))
    };
    let filter = if verbose > 0 {
        default()
    } else {
        EnvFilter::try_from_env("SHOAL_LOG").unwrap_or_else(|_| default())
    };
    // A second subscriber cannot be set, and there is none before this one.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
}
