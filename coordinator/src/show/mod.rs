//! What people see besides the text itself: progress and remarks on standard error, and tables.
//!
//! Nothing here decides anything. With `--json` all of it is silent.

mod bars;
mod devices;
mod ink;
mod plan;
mod plan_drawing;
mod plan_reasons;
mod simulation;
mod tables;

pub(crate) use bars::Show;
pub(crate) use devices::{devices_table, links_table, profiles_table};
pub(crate) use plan::plan_sheet;
pub(crate) use plan_drawing::plan_drawing;
pub(crate) use simulation::simulation_sheet;
pub(crate) use tables::{plan_table, summary};
