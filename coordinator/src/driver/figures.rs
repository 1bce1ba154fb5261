//! What is known of the workers and links of this run, whether measured now or before, and what is wrong with it.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_cluster::coordinator::Action;
use shoal_cluster::cost::{Link, Links};
use shoal_core::NodeId;
use shoal_core::profile::{DeviceProfile, LinkProfile};

use super::profiles::Known;

/// Figures of a cluster, as they come in.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    default_link: Link,
    pub(crate) profiles: BTreeMap<NodeId, DeviceProfile>,
    /// How old the profiles are that were not measured now.
    pub(crate) ages: BTreeMap<NodeId, Duration>,
    /// By both ends, from and to.
    pub(crate) links: BTreeMap<(NodeId, NodeId), LinkProfile>,
    /// Workers that were left out, each with the reason.
    pub(crate) left_out: BTreeMap<NodeId, String>,
    /// What is hardly believable of a worker.
    pub(crate) doubts: BTreeMap<NodeId, String>,
}

impl Figures {
    /// Nothing is known; `default_link` stands for links that nobody measured.
    pub(crate) fn new(default_link: Link) -> Self {
        Self {
            default_link,
            profiles: BTreeMap::new(),
            ages: BTreeMap::new(),
            links: BTreeMap::new(),
            left_out: BTreeMap::new(),
            doubts: BTreeMap::new(),
        }
    }

    /// Takes over what is known from before.
    pub(crate) fn know(&mut self, known: &Known) {
        self.profiles.extend(known.profiles.iter().map(|(node, profile)| (*node, profile.clone())));
        self.ages.extend(known.ages.iter().map(|(node, age)| (*node, *age)));
        self.links.extend(known.links.iter().map(|link| ((link.from, link.to), link.clone())));
    }

    /// Takes in what the state machine says.
    pub(crate) fn hear(&mut self, action: &Action) {
        match action {
            Action::Profiled { node, profile } => {
                self.ages.remove(node);
                self.profiles.insert(*node, (**profile).clone());
            }
            Action::LinksMeasured { links, .. } => {
                self.links.extend(links.iter().map(|link| ((link.from, link.to), link.clone())));
            }
            Action::LeftOut(left) => {
                self.left_out.insert(left.node, left.reason.clone());
            }
            Action::Doubt { node, reason, .. } => {
                self.doubts.insert(*node, reason.clone());
            }
            _ => {}
        }
    }

    /// The links as the cost model takes them.
    pub(crate) fn links(&self) -> Links {
        let mut links = Links::new(self.default_link);
        for link in self.links.values() {
            links.insert(link);
        }
        links
    }
}
