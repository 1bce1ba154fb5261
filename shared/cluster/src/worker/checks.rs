//! What a worker asks of a step order before it runs it.

use std::collections::BTreeMap;

use shoal_core::message::StepOrder;
use shoal_core::model::ModelSpec;
use shoal_core::{Plan, SeqId, StepId};

/// What the worker must remember of earlier steps to judge the next one.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    last_step: StepId,
    /// Next position of each live sequence.
    positions: BTreeMap<SeqId, u32>,
}

impl Ledger {
    /// Checks the order and takes note of it.
    ///
    /// # Errors
    /// Which rule it breaks. The ledger is unchanged then.
    pub(super) fn take(&mut self, order: &StepOrder, plan: &Plan, spec: &ModelSpec) -> Result<(), String> {
        let mut positions = self.positions.clone();
        if order.step <= self.last_step {
            return Err(format!("step {} comes after step {}", order.step.0, self.last_step.0));
        }
        for seq in &order.release {
            positions.remove(seq);
        }
        let rows = order.rows();
        if rows == 0 && !order.head.is_empty() {
            return Err("a step without rows wants logits".to_owned());
        }
        if rows > plan.max_rows() as usize {
            return Err(format!("the step has {rows} rows; the plan allows {}", plan.max_rows()));
        }
        for run in &order.runs {
            let next = positions.get(&run.seq).copied().unwrap_or(0);
            check_run(run, next, plan, spec)?;
            positions.insert(run.seq, next + run.tokens.len() as u32);
        }
        if positions.len() > plan.kv.sequences as usize {
            return Err(format!(
                "{} sequences are live; the plan allows {}",
                positions.len(),
                plan.kv.sequences
            ));
        }
        check_head(order, rows, plan, spec)?;
        self.last_step = order.step;
        self.positions = positions;
        Ok(())
    }
}

fn check_run(run: &shoal_core::message::Run, next: u32, plan: &Plan, spec: &ModelSpec) -> Result<(), String> {
    let seq = run.seq.0;
    if run.tokens.is_empty() {
        return Err(format!("sequence {seq} has an empty run"));
    }
    if run.first_position != next {
        return Err(format!("sequence {seq} goes on at position {}, not {next}", run.first_position));
    }
    if run.tokens.len() as u64 + u64::from(next) > u64::from(plan.kv.context) {
        return Err(format!("sequence {seq} runs beyond the context of {}", plan.kv.context));
    }
    match run.tokens.iter().find(|&&token| token >= spec.vocab) {
        Some(token) => Err(format!("token {token} is outside the vocabulary of {}", spec.vocab)),
        None => Ok(()),
    }
}

fn check_head(order: &StepOrder, rows: usize, plan: &Plan, spec: &ModelSpec) -> Result<(), String> {
    if order.head.len() > plan.kv.sequences as usize {
        return Err(format!("{} rows want logits; the plan allows {}", order.head.len(), plan.kv.sequences));
    }
    if order.head.windows(2).any(|pair| pair[0].row >= pair[1].row) {
        return Err("the rows that want logits do not rise".to_owned());
    }
    for head in &order.head {
        if head.row as usize >= rows {
            return Err(format!("row {} wants logits, but the step has {rows} rows", head.row));
        }
        head.request.check()?;
        let request = &head.request;
        let named = request.bias.iter().map(|bias| bias.0);
        let mut named = named.chain(request.penalties.counts.iter().map(|count| count.0));
        if let Some(token) = named.find(|&token| token >= spec.vocab) {
            return Err(format!("a bias or penalty names token {token} of {}", spec.vocab));
        }
    }
    Ok(())
}
