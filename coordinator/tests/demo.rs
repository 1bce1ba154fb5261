//! `shoal demo` as a newcomer runs it: real processes, real discovery, and nothing left behind.

mod common;

use common::{Place, bad, good, json, numbers};

#[test]
fn the_demo_ends_by_itself_and_leaves_nothing() {
    let place = Place::new();
    let output = place.shoal().args(["demo", "--json", "-n", "24"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = json(&output);
    assert_eq!(report["workers"], 3);
    assert!(!report["text"].as_str().unwrap().is_empty());
    assert_eq!(numbers(&report["token_ids"]).len(), 24);
    assert_eq!(report["finish_reason"], "length");
    assert!(report["ttft_ms"].as_f64().unwrap() > 0.0 && report["decode_tps"].as_f64().unwrap() > 0.0);
    let traffic = report["bytes_per_token"].as_object().unwrap();
    assert!(traffic["head"].as_f64().unwrap() > 0.0, "{traffic:?}");
    assert!(traffic["control"].as_f64().unwrap() > 0.0, "{traffic:?}");
    assert!(traffic["hops"].as_f64().unwrap() + traffic["all_reduce"].as_f64().unwrap() > 0.0, "{traffic:?}");
    // No worker could have held the model, and none held more than the plan lists for it.
    let size = std::fs::metadata(common::model("Q8_0").unwrap()).unwrap().len();
    for rank in report["ranks"].as_array().unwrap() {
        let bytes = |field: &str| rank[field].as_u64().unwrap();
        assert!(bytes("planned_bytes") < size, "{rank}");
        assert!(bytes("accounted_bytes") > 0 && bytes("accounted_bytes") <= bytes("planned_bytes"), "{rank}");
        assert!(bytes("resident_bytes") > bytes("accounted_bytes") / 2, "{rank}");
    }
    place.assert_nothing_left();
    assert_eq!(std::fs::read_dir(place.path("data")).unwrap().count(), 0, "the demo keeps nothing");
}

#[test]
fn the_demo_takes_other_models_strategies_and_sizes() {
    let place = Place::new();
    let model = common::model("Q4_0").unwrap();
    let report = good(
        place
            .shoal()
            .args(["demo", "--json", "-n", "8", "--workers", "2", "--strategy", "head", "--no-mdns"])
            .args(["--model".as_ref(), model.as_os_str()]),
    );
    assert_eq!(report["strategy"], "head");
    assert_eq!(report["workers"], 2);
    assert!(report["bytes_per_token"]["all_reduce"].as_f64().unwrap() > 0.0);
    assert_eq!(report["bytes_per_token"]["hops"].as_f64(), Some(0.0));
    place.assert_nothing_left();
}

#[test]
fn long_planning_loses_nobody() {
    let place = Place::new();
    let report = good(place.shoal().args(["demo", "--json", "-n", "4", "--workers", "5", "--no-mdns"]));
    assert_eq!(numbers(&report["token_ids"]).len(), 4);
    place.assert_nothing_left();
}

#[test]
fn people_see_the_plan_the_story_and_the_figures() {
    let place = Place::new();
    let output =
        place.shoal().args(["demo", "-n", "12", "--workers", "1", "--prompt", "Tom"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["local-1", "query heads", "\nTom", "first token", "sent per token: hops"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    assert!(said.contains("its memory is not limited"), "{said}");
    place.assert_nothing_left();
}

#[test]
fn a_damaged_model_starts_nobody() {
    let place = Place::new();
    let bytes = std::fs::read(common::model("Q4_0").unwrap()).unwrap();
    let path = place.path("cut.gguf");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let said = bad(place.shoal().args(["demo", "--model"]).arg(&path), 3);
    assert!(said.contains("cut.gguf") && said.contains("outside the file"), "{said}");
    place.assert_nothing_left();
}
