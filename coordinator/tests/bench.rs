//! `shoal bench` on local workers: the JSON of design 17, the files it writes, and what it refuses.

mod common;

use common::{Place, bad, good};
use serde_json::Value;

const STRATEGIES: [&str; 5] = ["single", "static-layer", "adaptive-layer", "head", "hybrid"];

fn bench(place: &Place, workers: u32, rounds: u32) -> assert_cmd::Command {
    let mut command = place.shoal();
    command.arg("bench").arg(common::model("Q4_0").unwrap());
    command.args(["--local-workers", &workers.to_string(), "--threads", "1"]);
    command.args(["--rounds", &rounds.to_string(), "--decode", "6", "--prefill", "8", "--streams", "1,3"]);
    command
}

/// A positive number.
fn positive(value: &Value) -> f64 {
    let number = value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"));
    assert!(number.is_finite() && number > 0.0, "{number}");
    number
}

/// All fields of design 17 are there, in the shape of `figures`.
fn check_shape(figures: &Value, what: &str) {
    for field in ["decode_tps", "decode_ms", "prefill", "aggregate", "efficiency", "bytes_per_token"] {
        assert!(figures.get(field).is_some(), "{what} has no {field}: {figures}");
    }
    assert!(figures["decode_ms"].get("p50").is_some() && figures["decode_ms"].get("p95").is_some());
    let prefill = figures["prefill"].as_array().expect("a list");
    assert_eq!(prefill.len(), 1, "{what}");
    assert_eq!(prefill[0]["tokens"], 8, "{what}");
    assert!(prefill[0].get("tps").is_some() && prefill[0].get("ttft_ms").is_some(), "{what}");
    let streams = figures["aggregate"].as_array().expect("a list").iter().map(|entry| &entry["streams"]);
    assert_eq!(streams.collect::<Vec<_>>(), [1, 3], "{what}");
}

#[test]
fn strategies_stand_side_by_side_with_their_predictions() {
    let place = Place::new();
    let (csv, svg, png) = (place.path("b.csv"), place.path("b.svg"), place.path("b.png"));
    let mut command = bench(&place, 2, 2);
    command.arg("--json").arg("--csv").arg(&csv).arg("--svg").arg(&svg).arg("--png").arg(&png);
    let report = good(&mut command);
    assert_eq!(report["threads"], 1);
    assert_eq!(report["rounds"], 2);
    assert!(report["emulation"].is_null());
    assert!(report["model"].is_string());
    let rows = report["strategies"].as_array().expect("strategies");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["strategy"].as_str()).collect();
    assert_eq!(names, STRATEGIES);
    for row in rows {
        let name = row["strategy"].as_str().unwrap();
        assert_eq!(row["feasible"], true, "{name}: {}", row["reason"]);
        check_shape(row, name);
        for part in ["predicted", "error", "spread"] {
            check_shape(&row[part], &format!("{name}'s {part}"));
        }
        let (p50, p95) = (positive(&row["decode_ms"]["p50"]), positive(&row["decode_ms"]["p95"]));
        assert!(p50 <= p95, "{name}: {p50} > {p95}");
        positive(&row["decode_tps"]);
        positive(&row["prefill"][0]["ttft_ms"]);
        positive(&row["aggregate"][1]["tps"]);
        positive(&row["efficiency"]);
        let error = row["error"]["decode_ms"]["p50"].as_f64().expect("an error");
        let predicted = positive(&row["predicted"]["decode_ms"]["p50"]);
        assert!((error - (predicted / p50 - 1.0)).abs() < 1e-9, "{name}: {error}");
        assert!(row["bytes_per_token"]["control"].as_f64() > Some(0.0), "{name}");
        let ranks = row["ranks"].as_array().expect("ranks");
        assert!(!ranks.is_empty(), "{name}");
        let nodes = row["plans"][0]["plan"]["stages"][0]["ranks"].as_array().expect("a plan");
        assert!(!nodes.is_empty(), "{name}");
    }
    // A layer split sends hidden states, one worker alone sends none.
    assert_eq!(rows[0]["bytes_per_token"]["hops"].as_f64(), Some(0.0));
    assert!(rows[1]["bytes_per_token"]["hops"].as_f64() > Some(0.0));
    let alone = report["alone"].as_array().expect("alone");
    assert!(!alone.is_empty() && alone.iter().all(|row| row["fits"] == true));
    assert!(report["prediction"]["figures"].as_u64() >= Some(15));

    let csv = std::fs::read_to_string(csv).unwrap();
    let columns = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().count() > 5 * 8 && csv.lines().all(|line| line.split(',').count() == columns));
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("nothing emulated") && svg.contains("3 streams"));
    assert!(std::fs::read(png).unwrap().starts_with(b"\x89PNG"));
    place.assert_nothing_left();
}

#[test]
fn neighbours_are_measured_beside_the_chosen_plan() {
    let place = Place::new();
    let mut command = bench(&place, 2, 2);
    command.args(["--strategy", "head", "--neighbours", "2", "--alone", "predicted", "--json"]);
    let report = good(&mut command);
    assert_eq!(report["strategies"].as_array().unwrap().len(), 1);
    assert_eq!(report["strategies"][0]["efficiency_basis"], "predicted");
    let neighbours = &report["neighbours"];
    assert_eq!(neighbours["figure"], "tps");
    let chosen = positive(&neighbours["chosen"]);
    let others = neighbours["others"].as_array().unwrap();
    let best = others.iter().map(|other| positive(&other["measured"])).fold(chosen, f64::max);
    assert!((neighbours["gap"].as_f64().unwrap() - (best / chosen - 1.0)).abs() < 1e-9);
    place.assert_nothing_left();
}

#[test]
fn tables_are_for_people() {
    let place = Place::new();
    let output = bench(&place, 1, 1).args(["--strategy", "single"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["single", "one stream", "3 streams", "Prompts", "local-1", "nothing emulated"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(String::from_utf8(output.stderr).unwrap().contains("round 1/1"), "no progress");
}

#[test]
fn too_much_work_is_refused_before_anything_starts() {
    let place = Place::new();
    let model = common::model("Q4_0").unwrap();
    let with = |args: &[&str]| {
        let mut command = place.shoal();
        command.arg("bench").arg(&model).args(["--local-workers", "1"]).args(args);
        command
    };
    assert!(bad(&mut with(&["--prefill", "100000"]), 2).contains("positions"));
    assert!(bad(&mut with(&["--streams", "300"]), 2).contains("256"));
    assert!(bad(&mut with(&["--context", "64", "--decode", "100"]), 2).contains("64"));
    bad(&mut with(&["--exclude", "nobody"]), 2);
    let nowhere = place.path("no-such-folder/bench.csv");
    assert!(bad(&mut with(&["--csv", nowhere.to_str().unwrap()]), 1).contains("no-such-folder"));
    let folder = place.path("");
    assert!(bad(&mut with(&["--svg", folder.to_str().unwrap()]), 1).contains("it is a folder"));
    place.assert_nothing_left();
}
