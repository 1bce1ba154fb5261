//! What people see besides the text itself: progress and remarks on standard error, and tables.
//!
//! Nothing here decides anything. With `--json` all of it is silent.

mod bars;
mod tables;

pub(crate) use bars::Show;
pub(crate) use tables::{choice_tables, devices_table, plan_table, profiles_table, summary};
