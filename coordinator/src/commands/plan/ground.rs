//! What is planned on: a live cluster, or one on paper, and either with boards added.

use std::collections::BTreeMap;

use shoal_cluster::cost::{Cluster, Link};
use shoal_core::{Bytes, NodeId};
use shoal_profiles::{Board, Net};

use crate::driver::Driver;
use crate::exit::{Failure, Outcome};
use crate::paper::{self, Paper};

/// What is known of a device besides its figures.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    /// Profile's name, where it has one.
    pub(crate) profile: Option<String>,
    /// Board or processor.
    pub(crate) title: String,
    /// What it carries.
    pub(crate) memory: Bytes,
    /// Its speed as a part of the profile's.
    pub(crate) speed: f64,
}

/// The cluster that is planned on.
#[derive(Debug)]
pub(crate) struct Ground {
    /// What people call it.
    pub(crate) title: String,
    pub(crate) cluster: Cluster,
    pub(crate) kinds: BTreeMap<NodeId, Kind>,
    /// What the reader should know of its figures.
    pub(crate) notes: Vec<String>,
    /// The network by which boards are added.
    net: Option<Net>,
    paper: Option<Paper>,
}

impl Ground {
    /// A cluster file's; boards are added by `net`, or by the file's own network.
    pub(crate) fn paper(paper: Paper, net: Option<Net>) -> Self {
        let kind = |(at, (_, board)): (usize, &(String, Board))| {
            let profile = Some(board.name.clone());
            let speed = paper.file.speeds.get(at).copied().unwrap_or(1.0);
            let kind = Kind { profile, title: board.title.clone(), memory: board.memory, speed };
            (paper::node(at), kind)
        };
        let file = &paper.file;
        let mut notes = Vec::new();
        if let Some(network) = file.network.as_ref().filter(|_| file.defaulted.len() < file.boards.len()) {
            let devices = match file.defaulted.len() {
                0 => None,
                1..=4 => Some(file.defaulted.join(", ")),
                more => Some(format!("{} devices", more)),
            };
            let name = &network.name;
            notes.extend(devices.map(|devices| {
                format!("No network is given for {devices}: the cluster's, {name}, is taken")
            }));
        }
        Self {
            title: file.name.clone(),
            cluster: paper.cluster.clone(),
            kinds: file.boards.iter().enumerate().map(kind).collect(),
            notes,
            net,
            paper: Some(paper),
        }
    }

    /// The workers that are connected and measured; boards are added by `net`.
    pub(crate) fn live(driver: &Driver, net: Net) -> Self {
        let kind = |(&node, view): (&NodeId, &crate::driver::WorkerView)| {
            let info = &view.info;
            let profile = info.emulation.as_ref().map(|emulation| emulation.profile.clone());
            let title = info.hardware.split(';').next().unwrap_or_default().to_owned();
            (node, Kind { profile, title, memory: info.memory, speed: 1.0 })
        };
        let cluster = driver.cluster();
        let missing = driver.connected().values().filter(|view| cluster.device(view.info.node).is_none());
        let notes = missing.map(|view| format!("{} was not measured", view.info.name)).collect();
        Self {
            title: "this cluster".to_owned(),
            kinds: driver.connected().iter().map(kind).collect(),
            cluster,
            notes,
            net: Some(net),
            paper: None,
        }
    }

    /// The cluster with these boards added, and their ids.
    ///
    /// # Errors
    /// There is no network to attach them by.
    pub(crate) fn plus(&self, boards: &[Board]) -> Outcome<(Cluster, Vec<NodeId>)> {
        if let Some(paper) = &self.paper {
            let mut more = paper.clone();
            let mut added = Vec::new();
            for board in boards {
                let (with, node) = more.with(board.clone(), self.net.as_ref())?;
                more = with;
                added.push(node);
            }
            return Ok((more.cluster, added));
        }
        let net =
            self.net.as_ref().ok_or_else(|| Failure::Usage("no network to attach boards by".to_owned()))?;
        let link = Link::of(&net.figures);
        let mut cluster = self.cluster.clone();
        let mut added = Vec::new();
        for (at, board) in boards.iter().enumerate() {
            let mut id = [0xff; 16];
            id[3] = at as u8;
            let node = NodeId(id);
            for other in &cluster.devices {
                cluster.links.set(node, other.node, link);
                cluster.links.set(other.node, node, link);
            }
            let name = format!("{}+{}", board.name, at + 1);
            cluster.devices.push(paper::device(node, &name, board));
            added.push(node);
        }
        Ok((cluster, added))
    }

    /// Memory that models may take, on all devices together.
    pub(crate) fn usable(&self) -> Bytes {
        self.cluster.devices.iter().map(|device| device.usable).sum()
    }
}
