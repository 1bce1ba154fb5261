//! The choice between strategies.

use shoal_core::model::ModelSpec;

use super::{Choice, NoPlan, Options};
use crate::cost::{Cluster, Workload};

/// Plans by all five strategies, and the one to take: the one asked for, or the best by the workload's
/// objective.
///
/// # Errors
/// No plan fits, with what is missing where.
pub fn choose(
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
    options: &Options,
) -> Result<Choice, Box<NoPlan>> {
    unimplemented!()
}
