//! `shoal simulate` on paper: no worker, no model file.

mod common;

use common::Place;
use serde_json::Value;

fn cluster(name: &str) -> String {
    format!("{}/../profiles/clusters/{name}.toml", env!("CARGO_MANIFEST_DIR"))
}

fn simulate(place: &Place, more: &[&str]) -> (Option<i32>, Value, String) {
    let file = cluster("three-pi5");
    let args = ["simulate", "--shape", "llama-3.2-1b", "--quant", "Q4_0", "--cluster", &file, "--json"];
    let output = place.shoal().args(args).args(more).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_strategy_is_simulated_beside_the_formula() {
    let place = Place::new();
    let (code, json, error) = simulate(&place, &["--all", "--streams", "6", "--decode", "16"]);
    assert_eq!(code, Some(0), "{error}");
    let strategies = json["strategies"].as_array().unwrap();
    assert_eq!(strategies.len(), 5);
    for simulated in strategies {
        for figure in ["decode_ms", "aggregate_tps", "ttft_ms"] {
            let number = |what: &str| simulated[figure][what].as_f64().unwrap();
            assert!(number("simulated") > 0.0 && number("predicted") > 0.0);
            assert!(number("difference").abs() < 0.3, "{figure} of {simulated}");
        }
        assert_eq!(simulated["many"]["tokens"], 6 * 16);
        assert_eq!(simulated["plan"]["stages"].as_array().map(Vec::is_empty), Some(false));
    }
}

#[test]
fn the_strategy_and_the_seed_that_are_asked_for_are_taken() {
    let place = Place::new();
    let args = ["--strategy", "head", "--jitter", "0.2", "--seed", "5", "--decode", "16"];
    let (code, json, error) = simulate(&place, &args);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(json["strategies"][0]["strategy"], "head");
    assert_eq!(simulate(&place, &args).1, json);
    let other = ["--strategy", "head", "--jitter", "0.2", "--seed", "6", "--decode", "16"];
    assert_ne!(simulate(&place, &other).1, json);
}

#[test]
fn what_cannot_be_meant_is_said() {
    let place = Place::new();
    for (more, code) in [
        (&["--jitter", "2"][..], 2),
        (&["--prompt-len", "4096"], 2),
        (&["--refresh"], 2),
        (&["--exclude", "nobody"], 2),
        (&["--memory-reserve", "7GB"], 4),
    ] {
        let (found, json, error) = simulate(&place, more);
        assert_eq!((found, json), (Some(code), Value::Null), "{more:?}: {error}");
        assert!(!error.is_empty());
    }
}
