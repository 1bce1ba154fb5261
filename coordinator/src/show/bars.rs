//! Remarks and progress bars on standard error.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use shoal_core::NodeId;
use shoal_core::units::Bytes;

use crate::out;

/// How much is said while a command works.
#[derive(Debug)]
pub(crate) struct Show {
    remarks: bool,
    multi: MultiProgress,
    bars: BTreeMap<NodeId, ProgressBar>,
    hashing: Option<ProgressBar>,
}

/// Bars are drawn for loads above this; a smaller one is over before it is seen.
const SMALLEST_HASH: u64 = 256 << 20;

impl Show {
    /// `remarks` says what happens, step by step; `bars` draws progress if a terminal is there.
    pub(crate) fn new(remarks: bool, bars: bool) -> Self {
        let target = if bars && std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { remarks, multi: MultiProgress::with_draw_target(target), bars: BTreeMap::new(), hashing: None }
    }

    /// Says a line, if remarks are wanted.
    pub(crate) fn remark(&self, line: &str) {
        if self.remarks {
            self.multi.suspend(|| out::note(line));
        }
    }

    /// Says a line whether remarks are wanted or not.
    pub(crate) fn warn(&self, line: &str) {
        self.multi.suspend(|| out::note(line));
    }

    /// Bytes of the model hashed so far.
    pub(crate) fn hashing(&mut self, done: u64, total: u64) {
        if total < SMALLEST_HASH {
            return;
        }
        let bar = self.hashing.get_or_insert_with(|| {
            let bar = self.multi.add(ProgressBar::new(total));
            bar.set_style(style("{msg:24} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes} {eta:>4}"));
            bar.set_message("reading the model");
            bar
        });
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    }

    /// A worker's progress in loading.
    pub(crate) fn loading(&mut self, node: NodeId, name: &str, done: Bytes, total: Bytes) {
        let bar = self.bars.entry(node).or_insert_with(|| {
            let bar = self.multi.add(ProgressBar::new(total.0));
            bar.set_style(style("{msg:24} {bar:30} {decimal_bytes:>10} of {decimal_total_bytes}"));
            bar.set_message(format!("loading {name}"));
            bar
        });
        bar.set_length(total.0);
        bar.set_position(done.0);
    }

    /// All is loaded: bars go, so that the text stands alone.
    pub(crate) fn loaded(&mut self) {
        for (_, bar) in std::mem::take(&mut self.bars) {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; a mistake in one would only cost its looks.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
