//! `shoal token`: what a board needs to join.

use std::time::Duration;

use clap::Args;

use super::options::ReachArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};

const EXAMPLES: &str = "\
Examples:
  shoal token                     prints a token for one board, good for 15 minutes
  shoal token --uses 5 --ttl 1h   for five boards within an hour
  shoal token --wait              and keeps listening until it is used

A board can join only while a coordinator listens: keep this command open with --wait, or run any other one.";

/// Print a token with which a board joins this cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct TokenArgs {
    /// How many boards may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) uses: u32,
    /// How long it is good for, as 90s, 15m or 2h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub(crate) ttl: Duration,
    /// Keep listening until it is used up or expires
    #[arg(long = "wait")]
    pub(crate) keep_listening: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| format!("not a time: {text:?}"))?;
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("not a time: {text:?} (write 90s, 15m or 2h)")),
    };
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(duration("soon").is_err() && duration("5d").is_err());
    }
}

pub(crate) fn run(_args: TokenArgs, _config: Config) -> Outcome {
    Err(Failure::Machine(anyhow::anyhow!("this build cannot do that yet")))
}
