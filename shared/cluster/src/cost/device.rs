//! The price of one device's own work, for a worker that plays that device.

use shoal_core::model::ModelSpec;
use shoal_core::plan::{Share, Span};
use shoal_core::profile::DeviceProfile;
use shoal_core::units::Seconds;
use shoal_core::{NodeId, Plan};

use super::model::Model;
use super::rates::Rates;

/// What each piece of one node's work takes on a device with this profile: exactly what
/// [`predict`](super::predict) charges that node.
#[derive(Debug, Clone)]
pub struct DevicePrice {
    model: Model,
    rates: Rates,
    share: Option<Share>,
    head: Span,
}

impl DevicePrice {
    /// The prices of `node`'s work under `plan`. `None` where the profile has no rates, which
    /// [`DeviceProfile::check`] refuses.
    pub fn new(spec: &ModelSpec, profile: &DeviceProfile, plan: &Plan, node: NodeId) -> Option<Self> {
        Some(Self {
            model: Model::new(spec),
            rates: Rates::of_profile(profile)?,
            share: plan.share(node).cloned(),
            head: plan.head_share(node).map_or(Span::default(), |(_, rows)| rows),
        })
    }

    /// Attention of one layer, one row for each position (counted from 0): a row at position `p` attends
    /// to `p + 1`. Nothing for a node without heads, or a step without rows.
    pub fn attention(&self, layer: u32, positions: impl Iterator<Item = u32>) -> Seconds {
        let (Some(share), Some(&class)) = (&self.share, self.model.class_of.get(layer as usize)) else {
            return Seconds(0.0);
        };
        let (mut rows, mut cache) = (0.0, 0.0);
        for position in positions {
            rows += 1.0;
            cache += self.model.attention_cache(&self.rates, share, 1.0, f64::from(position) + 1.0);
        }
        if rows == 0.0 || share.q_heads.is_empty() {
            return Seconds(0.0);
        }
        let class = &self.model.classes[class];
        Seconds(self.model.attention_weights(class, &self.rates, share, rows) + cache + self.rates.overhead)
    }

    /// Feed-forward network of one layer. Nothing for a node without columns, or no rows.
    pub fn feed_forward(&self, layer: u32, rows: u32) -> Seconds {
        match (&self.share, self.model.class_of.get(layer as usize)) {
            (Some(share), Some(&class)) if rows > 0 => {
                let class = &self.model.classes[class];
                Seconds(self.model.feed_forward(class, &self.rates, share, rows.into()))
            }
            _ => Seconds(0.0),
        }
    }

    /// The node's rows of the output head, for so many rows of hidden state.
    pub fn head(&self, rows: u32) -> Seconds {
        Seconds(if rows > 0 { self.model.head(&self.rates, self.head, rows.into()) } else { 0.0 })
    }

    /// Looking up rows of the embedding table: free, as a few kilobytes are beside a layer's megabytes.
    pub fn embed(&self, _rows: u32) -> Seconds {
        Seconds(0.0)
    }
}
