//! The prediction of a whole plan.

use shoal_core::model::ModelSpec;
use shoal_core::{NodeId, Plan};

use super::{Cluster, Prediction, Workload};

/// A plan that cannot be priced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    #[error("failed to price the plan: node {0} is not in the cluster")]
    Unknown(NodeId),
    #[error("failed to price the plan: the profile of node {0} has no rates")]
    NoRates(NodeId),
}

/// What this plan is predicted to do.
///
/// # Errors
/// A node of the plan that the cluster does not have, or has no rates of.
pub fn predict(
    plan: &Plan,
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
) -> Result<Prediction, CostError> {
    unimplemented!()
}

/// A time no plan on these devices can beat for one token of one stream.
pub fn lower_bound_ms(spec: &ModelSpec, cluster: &Cluster, workload: &Workload) -> f64 {
    unimplemented!()
}
