//! `--emulate` and what belongs to it: local workers that play other devices.

use std::path::PathBuf;

use clap::Args;
use shoal_profiles::ClusterFile;

use crate::exit::{Failure, Outcome};
use crate::local::{LocalOptions, Played};

/// Devices that local workers play.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Emulation")]
pub(crate) struct EmulateArgs {
    /// Start a local worker that plays this device, a built-in board such as pi5-8gb, a board's TOML file or a device
    /// of a cluster file (cluster.toml#device); may be given several times. With --local-workers N all N play it
    #[arg(long, value_name = "PROFILE")]
    pub(crate) emulate: Vec<String>,
    /// Start a local worker for each device of this cluster file. Its links are not played: all workers are on this
    /// machine (scripts/lab plays them)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["emulate", "local_workers"])]
    pub(crate) emulate_cluster: Option<PathBuf>,
    /// Slow every clock of played devices K times, where this machine is slower than they are together; what is
    /// reported is divided by K
    #[arg(long, value_name = "K", value_parser = worker::args::dilation)]
    pub(crate) dilate: Option<f64>,
    /// Played devices load no weights and do no arithmetic, and only sleep as long as it would take; texts mean nothing
    #[arg(long)]
    pub(crate) dry: bool,
}

impl EmulateArgs {
    /// The local workers these arguments ask for, with `--local-workers` as given; `None` where they ask for none.
    ///
    /// # Errors
    /// Numbers that contradict each other, a flag that needs another, a cluster file that cannot be used.
    pub(crate) fn local(&self, workers: Option<u32>) -> Outcome<Option<LocalOptions>> {
        let played = match &self.emulate_cluster {
            None => self.emulate.clone(),
            Some(path) => {
                let cluster =
                    ClusterFile::read(path).map_err(|error| Failure::input("play a cluster", error))?;
                let path = path.display();
                cluster.boards.iter().map(|(device, _)| format!("{path}#{device}")).collect()
            }
        };
        let played = match (workers, played.len()) {
            (None, 0) | (Some(_), 0) if self.dry || self.dilate.is_some() => {
                let text = "--dry and --dilate are for played devices: name some with --emulate or --emulate-cluster";
                return Err(Failure::Usage(text.to_owned()));
            }
            (Some(workers), 1) => vec![played[0].clone(); workers as usize],
            (Some(workers), n) if n > 1 && n != workers as usize => {
                let text =
                    format!("--local-workers {workers} with {n} devices to play: leave out the number");
                return Err(Failure::Usage(text));
            }
            (None, 0) => return Ok(None),
            _ => played,
        };
        for device in &played {
            // Before any worker is started, which would say the same in its log.
            shoal_profiles::board(device).map_err(|error| Failure::input("play a device", error))?;
        }
        if played.len() > MOST {
            let text =
                format!("{} local workers are more than the {MOST} that one machine can hold", played.len());
            return Err(Failure::Usage(text));
        }
        Ok(Some(LocalOptions {
            workers: if played.is_empty() { workers.unwrap_or(0) } else { played.len() as u32 },
            played: Played { devices: played, dilate: self.dilate, dry: self.dry },
            ..LocalOptions::default()
        }))
    }
}

/// Local workers of one command: the bound of `--local-workers`.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_are_the_workers() {
        let local = |emulate: &[&str], workers, dry| {
            let emulate = emulate.iter().map(|&name| name.to_owned()).collect();
            EmulateArgs { emulate, dry, ..EmulateArgs::default() }.local(workers)
        };
        assert!(local(&[], None, false).unwrap().is_none());
        let plain = local(&[], Some(3), false).unwrap().unwrap();
        assert_eq!((plain.workers, plain.played.devices.len()), (3, 0));
        let (one, other) = ("pi5-8gb", "pi4-4gb");
        let two = local(&[one, other], None, true).unwrap().unwrap();
        assert_eq!((two.workers, two.played.devices), (2, vec![one.to_owned(), other.to_owned()]));
        assert_eq!(local(&[one], Some(4), false).unwrap().unwrap().played.devices, [one; 4]);
        assert!(local(&[one, other], Some(3), false).is_err());
        assert!(local(&["no-such-board"], None, false).is_err());
        assert!(local(&[], Some(2), true).is_err());
        assert!(local(&[one; 17], None, false).is_err());
    }
}
