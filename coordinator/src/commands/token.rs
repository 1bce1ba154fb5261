//! `shoal token`: what a board needs to join.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use shoal_core::units::Bytes;
use shoal_net::{Authority, TokenStore};

use super::attach::driver_options;
use super::options::ReachArgs;
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, Update, issue_token};
use crate::exit::{Failure, Outcome};
use crate::{out, runtime};

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
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct TokenView {
    token: String,
    uses: u32,
    expires_in_s: u64,
    command: String,
    /// Where this coordinator listens, with `--wait`.
    address: Option<String>,
}

pub(crate) fn run(args: &TokenArgs, config: &Config) -> Outcome {
    if args.keep_listening {
        return runtime::block_on(wait(args, config));
    }
    let dir = config.data_dir.join("coordinator");
    let authority =
        Authority::load_or_create(&dir).map_err(|error| Failure::input("use the authority", error))?;
    let token = issue_token(&TokenStore::new(&dir), &authority, args.uses, args.ttl)?;
    print(args, token, None)
}

/// Listens until the token is used up or has expired.
async fn wait(args: &TokenArgs, config: &Config) -> Outcome {
    let mut driver = Driver::start(driver_options(&args.reach, config, Bytes(0))).await?;
    let token = driver.issue_token(args.uses, args.ttl)?;
    print(args, token, Some(driver.listens().to_string()))?;
    let deadline = Instant::now() + args.ttl;
    let mut left = args.uses;
    while left > 0 {
        let time = deadline.saturating_duration_since(Instant::now());
        let Ok(update) = tokio::time::timeout(time, driver.next()).await else {
            return Err(Failure::Lost(format!("the token expired with {left} use(s) left")));
        };
        match update? {
            Update::Joined { node } => {
                left -= 1;
                out::note(&format!("{} joined", node.short()));
            }
            Update::Connected { node } => {
                out::note(&format!("{} ({}) is connected", driver.name(node), node.short()))
            }
            _ => {}
        }
    }
    settle(&mut driver).await?;
    driver.close().await;
    Ok(())
}

/// A moment for the last board to connect, so that its address is known next time.
async fn settle(driver: &mut Driver) -> Outcome {
    let deadline = Instant::now() + SETTLE;
    loop {
        let time = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(time, driver.next()).await {
            Ok(update) => {
                if let Update::Connected { node } = update? {
                    out::note(&format!("{} ({}) is connected", driver.name(node), node.short()));
                    return Ok(());
                }
            }
            Err(_) => return Ok(()),
        }
    }
}

/// How long the last board may take from joining to connecting.
const SETTLE: Duration = Duration::from_secs(5);

fn print(args: &TokenArgs, token: String, address: Option<String>) -> Outcome {
    let command = format!("shoal worker --join {token}");
    if args.json {
        let view = TokenView { token, uses: args.uses, expires_in_s: args.ttl.as_secs(), command, address };
        return out::json(&view);
    }
    out::line(&command)?;
    let boards = if args.uses == 1 { "one board".to_owned() } else { format!("{} boards", args.uses) };
    out::note(&format!(
        "Run this on {boards} within {} minutes. Whoever has the token can join.",
        args.ttl.as_secs().div_ceil(60)
    ));
    match address {
        Some(address) => out::note(&format!(
            "Listening on {address}. Where multicast does not work, add --coordinator with this machine's address and port."
        )),
        None => out::note(
            "Boards join while a coordinator runs: `shoal token --wait`, `shoal devices --wait 60`, or any run.",
        ),
    }
    Ok(())
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
