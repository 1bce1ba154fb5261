//! Clusters on paper: a cluster file (`--cluster`) as the planner and the network simulator take it, and models by
//! their shape alone (`--shape`).
//!
//! Nobody is spoken to: no lock, no socket. `shoal plan` and `shoal simulate` use it.

use std::collections::BTreeMap;
use std::path::Path;

use shoal_cluster::cost::{Cluster, Device, Link, Links};
use shoal_core::model::shapes::{FileType, SHAPES, Shape};
use shoal_core::{ModelSpec, NodeId};
use shoal_profiles::{Board, ClusterFile, Net, ProfileFileError};

use crate::exit::{Failure, Outcome};

/// A cluster on paper.
#[derive(Debug, Clone)]
pub(crate) struct Paper {
    /// The file, with the boards that were added since.
    pub(crate) file: ClusterFile,
    /// Devices in the order of the file; their ids are [`node`]'s.
    pub(crate) cluster: Cluster,
    /// Names of the devices.
    pub(crate) names: BTreeMap<NodeId, String>,
}

impl Paper {
    /// The cluster in the file at `path`.
    ///
    /// # Errors
    /// Something in it cannot be meant.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        ClusterFile::read(path).map(Self::of).map_err(refused)
    }

    /// The cluster of this file.
    pub(crate) fn of(file: ClusterFile) -> Self {
        // Orders and answers go between the coordinator and the boards: by the cluster's network, or else by the
        // first link there is.
        let control = file.network.as_ref().map(|net| &net.figures);
        let control = control.or(file.links.first().map(|(_, _, figures)| figures));
        let mut links = Links::new(control.map_or(Link::GIGABIT, Link::of));
        for (from, to, figures) in &file.links {
            links.set(node(*from), node(*to), Link::of(figures));
        }
        let devices = file.boards.iter().enumerate().map(|(at, (name, board))| device(node(at), name, board));
        let cluster = Cluster { devices: devices.collect(), links };
        let names = cluster.devices.iter().map(|device| (device.node, device.name.clone())).collect();
        Self { file, cluster, names }
    }

    /// The cluster with one more board, attached by `net` or by the cluster's own network; the board's id.
    ///
    /// # Errors
    /// There is no network to attach it by.
    pub(crate) fn with(&self, board: Board, net: Option<&Net>) -> Outcome<(Self, NodeId)> {
        let mut file = self.file.clone();
        let at = file.attach(board, net).map_err(refused)?;
        Ok((Self::of(file), node(at)))
    }
}

/// The id of a device on paper: its place in the file, from 1, in the first four bytes, so that the short form tells
/// devices apart and ids have the order of the file.
pub(crate) fn node(at: usize) -> NodeId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&u32::try_from(at + 1).unwrap_or(u32::MAX).to_be_bytes());
    NodeId(id)
}

/// A board as a device of the planner.
pub(crate) fn device(node: NodeId, name: &str, board: &Board) -> Device {
    Device {
        node,
        name: name.to_owned(),
        profile: board.profile.clone(),
        usable: board.usable,
        power: board.power,
    }
}

/// A profile or cluster file that cannot be used is an input that cannot be used; a name that nobody has is wrong
/// usage.
pub(crate) fn refused(error: ProfileFileError) -> Failure {
    match error {
        ProfileFileError::Unknown { .. } => Failure::Usage(error.to_string()),
        error => Failure::Input(error.into()),
    }
}

/// The model that is planned for: of a shape, or described by the header of a file.
///
/// # Errors
/// Neither is named, or what is named is no model.
pub(crate) fn model(shape: Option<&str>, quant: &str, file: Option<&Path>) -> Outcome<ModelSpec> {
    match (shape, file) {
        (Some(shape), _) => shaped(shape, quant),
        (None, Some(file)) => crate::model::header(file),
        (None, None) => Err(Failure::Usage("a MODEL or --shape is needed".to_owned())),
    }
}

/// The model of this shape in this number format, as `shoal synth` would write it.
///
/// # Errors
/// No such shape or format.
fn shaped(shape: &str, quant: &str) -> Outcome<ModelSpec> {
    let shape = Shape::from_name(shape).ok_or_else(|| {
        let known = SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
        Failure::Usage(format!("--shape {shape}: unknown shape; known are {known}"))
    })?;
    let file = FileType::from_name(quant).ok_or_else(|| {
        Failure::Usage(format!("--quant {quant}: unknown format; known are {}", FileType::names()))
    })?;
    let mut spec = shape.spec(file);
    spec.name = format!("{} {}", shape.name, quant.to_ascii_uppercase());
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(name: &str) -> Paper {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/clusters");
        Paper::read(&folder.join(name)).unwrap()
    }

    #[test]
    fn a_cluster_file_becomes_a_cluster() {
        let paper = example("two-gigabit-one-wifi.toml");
        let names: Vec<&str> = paper.cluster.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["wired-1", "wired-2", "wifi"]);
        let link = |a, b| paper.cluster.links.get(node(a), node(b));
        assert!(!link(0, 1).shared && link(1, 2).shared && link(2, 0).shared);
        assert!(link(0, 2).latency() > 5.0 * link(0, 1).latency());
        assert_eq!(node(0).short(), "00000001");
    }

    #[test]
    fn a_board_can_be_added() {
        let paper = example("two-gigabit-one-wifi.toml");
        let board = shoal_profiles::board("pi4-4gb").unwrap();
        let (more, added) = paper.with(board, None).unwrap();
        assert_eq!(more.names[&added], "pi4-4gb+1");
        assert_eq!(more.cluster.devices.len(), 4);
        let shared = |other| more.cluster.links.get(added, node(other)).shared;
        assert_eq!([shared(0), shared(1), shared(2)], [false, false, true]);
    }
}
