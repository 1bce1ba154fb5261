//! Boards, networks and clusters on paper: the TOML files of `profiles/`, read and checked.
//!
//! [`board`] and [`net`] give a profile by its built-in name or from a file, [`ClusterFile`] a cluster of named
//! devices with the figures of every link. What is returned has passed the checks of `shoal-core`, so planner,
//! worker (`--emulate`) and laboratory may use it as if it had been measured. The schema is `profiles/README.md`.
//! Nothing is measured here, and no plan is made.

mod board;
mod builtin;
mod cluster;
mod error;
mod figure;
mod file;
mod net;
mod write;

pub use board::{Board, board};
pub use builtin::{boards, nets};
pub use cluster::{CLUSTER_DEVICES, ClusterFile, worse_of};
pub use error::ProfileFileError;
pub use figure::Mark;
pub use file::FILE_BYTES;
pub use net::{Net, net};

/// The built-in board of which a live machine's hardware text (`NodeInfo.hardware`) says it is one: that with the
/// longest fitting prefix, and of those with equal prefixes the first whose memory holds what the machine reports.
pub fn recognise(hardware: &str, memory: shoal_core::Bytes) -> Option<Board> {
    let known = boards().iter().filter_map(|name| board(name).ok());
    let fit = |board: &Board| {
        let fits = board.hardware.iter().filter(|prefix| hardware.starts_with(prefix.as_str()));
        fits.map(String::len).max()
    };
    // A system reports a little less memory than its board carries, so the smallest that is not less is it.
    let mut fitting: Vec<(usize, Board)> = known.filter_map(|board| Some((fit(&board)?, board))).collect();
    fitting.sort_by_key(|(length, board)| (std::cmp::Reverse(*length), board.memory));
    let longest = fitting.first()?.0;
    fitting.retain(|(length, _)| *length == longest);
    let holds = fitting.iter().position(|(_, board)| board.memory >= memory);
    Some(fitting.swap_remove(holds.unwrap_or(fitting.len() - 1)).1)
}
