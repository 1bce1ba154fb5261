//! Every strategy with one to five workers says what the reference says. Real processes, greedy tokens.
//!
//! F16 needs the file beside the repository (or SHOAL_SHARED_DIR); without it that test says so and passes.

#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod common;

use common::{Case, NEAR_TIE, Place, good, numbers};
use serde_json::Value;

const STRATEGIES: [&str; 5] = ["single", "static-layer", "adaptive-layer", "head", "hybrid"];

/// Greedy tokens compared in each run; the references have 64.
const TOKENS: usize = 48;

fn run(place: &Place, kind: &str, strategy: &str, workers: usize, case: &Case) -> Value {
    let model = common::model(kind).unwrap();
    let mut command = place.shoal();
    command.arg("run").arg(model).args(["--local-workers", &workers.to_string(), "--strategy", strategy]);
    command.args(["--threads", "1", "--temperature", "0", "--json", "-n", &TOKENS.to_string()]);
    good(command.args(["--prompt", &case.prompt]))
}

/// Runs a strategy at each number of workers, each time with another reference prompt.
fn check(kind: &str, strategies: &[&str], workers: &[usize], near_tie: f64) {
    let place = Place::new();
    let cases = common::reference(kind);
    let alone: Vec<Vec<u64>> =
        cases.iter().map(|case| numbers(&run(&place, kind, "single", 1, case)["token_ids"])).collect();
    for (case, tokens) in cases.iter().zip(&alone) {
        case.check(tokens, near_tie, &format!("{kind} single"));
    }
    for (s, strategy) in strategies.iter().enumerate() {
        for &workers in workers {
            let which = (s + workers) % cases.len();
            let what = format!("{kind} {strategy} on {workers}");
            let report = run(&place, kind, strategy, workers, &cases[which]);
            let tokens = numbers(&report["token_ids"]);
            assert_eq!(report["strategy"], *strategy, "{what}");
            assert_eq!(tokens.len(), TOKENS, "{what}");
            cases[which].check(&tokens, near_tie, &what);
            let grouped = report["plan"]["stages"]
                .as_array()
                .unwrap()
                .iter()
                .any(|stage| stage["ranks"].as_array().unwrap().len() > 1);
            if !grouped {
                assert_eq!(tokens, alone[which], "{what}: a layer split must equal the unsplit run");
            }
            for rank in report["ranks"].as_array().unwrap() {
                let (held, planned) = (rank["accounted_bytes"].as_u64(), rank["planned_bytes"].as_u64());
                assert!(held > Some(0) && held <= planned, "{what}: {rank}");
            }
        }
    }
    place.assert_nothing_left();
}

#[test]
fn q8_0_splits_by_layer() {
    check("Q8_0", &STRATEGIES[1..3], &[1, 2, 3, 4, 5], NEAR_TIE);
}

#[test]
fn q8_0_splits_by_head() {
    check("Q8_0", &STRATEGIES[3..5], &[1, 2, 3, 4, 5], NEAR_TIE);
}

#[test]
fn q4_0_splits() {
    check("Q4_0", &STRATEGIES, &[3, 5], NEAR_TIE);
}

#[test]
fn q4_k_m_splits() {
    check("Q4_K_M", &STRATEGIES, &[2, 5], NEAR_TIE);
}

#[test]
fn f16_splits() {
    if common::model("F16").is_none() {
        println!(
            "skipped: stories-F16.gguf is not beside the repository, and SHOAL_SHARED_DIR does not name its folder"
        );
        return;
    }
    check("F16", &STRATEGIES, &[3, 5], 0.02);
}
