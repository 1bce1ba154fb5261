//! The unsplit forward pass against an independent implementation (tests/data/models/README.md).
#![expect(clippy::print_stderr, reason = "differences and near ties are shown with --nocapture")]

use crate::support::{Cluster, Layout, Model, argmax, floats, largest_difference, run};

/// Measured: F16 0.0037, Q8_0 0.10, Q4_0 0.10, Q4_K_M 0.21. The reference rounds F16 matrices' inputs to
/// half precision, and quantizes others to 8 bits in its own blocks (of 256 for K-quants).
fn tolerance(kind: &str) -> f32 {
    match kind {
        "F16" => 0.01,
        _ => 0.25,
    }
}

#[test]
fn logits_agree_with_the_reference() {
    for model in Model::all() {
        let mut cluster = Cluster::new(&model, &Layout::single(), 1);
        let mut most = 0.0f32;
        let after_bos = floats(&model.reference["logits_after_bos"]);
        most = most.max(largest_difference(&cluster.prefill(0, &[0], 1), &after_bos));
        for (case, seq) in model.cases().iter().zip(1..) {
            let logits = cluster.prefill(seq, &case.prompt, 512);
            most = most.max(largest_difference(&logits, &case.logits));
        }
        eprintln!("{}: largest difference of a logit {most}", model.kind);
        assert!(most < tolerance(model.kind), "{}: {most}", model.kind);
    }
}

#[test]
fn greedy_tokens_agree_with_the_reference() {
    for model in Model::all() {
        let mut cluster = Cluster::new(&model, &Layout::single(), 2);
        assert_greedy(&model, &mut cluster);
    }
}

/// Follows the reference's tokens; wherever the best token is another one, the reference must have been
/// near a tie, and its token second best here.
pub(crate) fn assert_greedy(model: &Model, cluster: &mut Cluster) {
    for (case, seq) in model.cases().iter().zip(100..) {
        let mut logits = cluster.prefill(seq, &case.prompt, 512);
        for (step, (&token, &margin)) in case.greedy.iter().zip(&case.margins).enumerate() {
            let best = argmax(&logits);
            if best != token {
                let mut others = logits.clone();
                others[best as usize] = f32::NEG_INFINITY;
                let near = margin < model.near_tie() && argmax(&others) == token;
                assert!(near, "{} prompt {seq} step {step}: {best}, not {token} ({margin})", model.kind);
                eprintln!("{} prompt {seq} step {step}: a near tie ({margin})", model.kind);
            }
            logits = cluster.logits(&[run(seq, case.prompt.len() + step, &[token])]).remove(0);
        }
        cluster.release(seq);
    }
}
