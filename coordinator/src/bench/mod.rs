//! Measuring strategies side by side on the live cluster: what `shoal bench` does.
//!
//! [`survey`] has the cluster measured, [`Field`] plans each strategy once for latency and once for throughput, and
//! finds which plans are to be tried; equal ones are tried once. In each round every trial is loaded, measured and
//! unloaded, each round beginning with the next one. Medians, spreads, predictions and their errors make the
//! [`Report`], which is printed as table, JSON, CSV or charts. Plans come from the planner, prices from the cost model;
//! how a trial's tokens are timed is in `trial`.

mod alone;
mod csv;
mod field;
mod figures;
mod neighbours;
mod picture;
mod report;
mod rounds;
mod table;
mod trial;
mod work;

pub(crate) use field::{Field, FieldOptions, survey};
pub(crate) use report::Report;
pub(crate) use rounds::run;
pub(crate) use work::{Wanted, Work};
