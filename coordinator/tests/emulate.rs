//! Local workers that play other devices, in all three grades: the same tokens where arithmetic is real, and the same
//! times in all.

mod common;

use common::{Place, bad, good};
use serde_json::Value;

/// A board so slow that any machine that runs tests keeps its time.
const CLUSTER: &str = "name = \"slow\"\nnetwork = \"gigabit-switch\"\n\n\
                       [[device]]\nname = \"slow\"\ncount = 2\nprofile = \"pi5-8gb\"\nspeed = 0.04\n";

const TOKENS: usize = 12;

fn run(place: &Place, extra: &[&str]) -> Value {
    let model = common::model("Q8_0").unwrap();
    let mut command = place.shoal();
    command.arg("run").arg(model).args(["--prompt", "Once upon a time", "--temperature", "0", "--json"]);
    command.args([
        "--ignore-eos",
        "-n",
        &TOKENS.to_string(),
        "--strategy",
        "static-layer",
        "--context",
        "128",
    ]);
    good(command.args(extra))
}

fn itl(report: &Value) -> f64 {
    report["itl_ms"]["p50"].as_f64().unwrap()
}

fn compute(report: &Value) -> Vec<f64> {
    report["ranks"].as_array().unwrap().iter().map(|rank| rank["compute_ms"].as_f64().unwrap()).collect()
}

/// How often times are compared.
const TRIES: usize = 3;

/// Which times of the three grades do not agree.
fn times_apart(real: &Value, dilated: &Value, dry: &Value) -> Option<String> {
    let want = itl(dry);
    if want < 5.0 {
        return Some(format!("the board is slow: {want} ms"));
    }
    for report in [real, dilated] {
        if !(0.9..1.5).contains(&(itl(report) / want)) {
            return Some(format!("{} of {want} ms", itl(report)));
        }
        for (got, want) in compute(report).iter().zip(compute(dry)) {
            // Ranks come in the order of their ids, so either may be first; the two are nearly equal.
            if !(0.6..2.0).contains(&(got / want)) {
                return Some(format!("a rank: {got} of {want} ms"));
            }
        }
    }
    None
}

#[test]
fn the_grades_agree_with_each_other() {
    let place = Place::new();
    let file = place.path("cluster.toml");
    std::fs::write(&file, CLUSTER).unwrap();
    let file = file.to_str().unwrap();
    let plain = run(&place, &["--local-workers", "2"]);
    assert!(plain["emulation"].is_null());
    let real = run(&place, &["--emulate-cluster", file]);
    let dilated = run(&place, &["--emulate-cluster", file, "--dilate", "3"]);
    let dry = run(&place, &["--emulate-cluster", file, "--dry"]);

    // Real arithmetic says what it says without emulation.
    assert_eq!(real["token_ids"], plain["token_ids"]);
    assert_eq!(dilated["token_ids"], plain["token_ids"]);
    assert_eq!(dry["token_ids"].as_array().unwrap().len(), TOKENS);
    for (report, grade, dilation) in [(&real, "real", 1.0), (&dilated, "dilated", 3.0), (&dry, "dry", 1.0)] {
        let emulation = &report["emulation"];
        assert_eq!(emulation["grade"], grade);
        assert_eq!(emulation["dilation"], dilation);
        assert_eq!(emulation["devices"][0]["profile"], "pi5-8gb");
        assert!(emulation["emulation_overrun"].as_f64().is_some(), "{emulation}");
        let names: Vec<&str> =
            report["ranks"].as_array().unwrap().iter().map(|rank| rank["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"slow-1") && names.contains(&"slow-2"), "{names:?}");
    }

    // A played device's time is what its profile predicts, whoever plays it. Where a busy machine kept one of the runs
    // from keeping time, all are tried again.
    let mut apart = times_apart(&real, &dilated, &dry);
    for _ in 1..TRIES {
        if apart.is_none() {
            break;
        }
        let again = |grade: &[&str]| run(&place, &[&["--emulate-cluster", file], grade].concat());
        apart = times_apart(&again(&[]), &again(&["--dilate", "3"]), &again(&["--dry"]));
    }
    assert_eq!(apart, None);

    // Without weights nothing is fetched, and memory is accounted as planned.
    for rank in dry["ranks"].as_array().unwrap() {
        assert_eq!(rank["fetched_bytes"], 0);
        let (accounted, planned) = (&rank["accounted_bytes"], &rank["planned_bytes"]);
        assert!(accounted.as_u64().unwrap() > 1_000_000, "{accounted}");
        assert!(accounted.as_u64() <= planned.as_u64(), "{accounted} of {planned}");
    }
    place.assert_nothing_left();
}

#[test]
fn what_cannot_be_played_is_refused() {
    let place = Place::new();
    let model = common::model("Q8_0").unwrap();
    let refused = |extra: &[&str], code: i32, part: &str| {
        let mut command = place.shoal();
        command.arg("run").arg(&model).args(["--prompt", "x"]).args(extra);
        let error = bad(&mut command, code);
        assert!(error.contains(part), "{extra:?}: {error}");
    };
    refused(&["--dry"], 2, "--emulate");
    refused(&["--local-workers", "2", "--dilate", "2"], 2, "--emulate");
    refused(&["--emulate", "pi5-8gb", "--dilate", "0"], 2, "no number from 1 to 1000");
    refused(
        &["--emulate", "pi5-8gb", "--emulate", "pi4-4gb", "--local-workers", "3"],
        2,
        "leave out the number",
    );
    refused(&["--emulate", "no-such-board"], 3, "no-such-board");
    refused(&["--emulate-cluster", "/no/such/file.toml"], 3, "/no/such/file.toml");
    place.assert_nothing_left();
}
