//! `shoal plan` on paper: what it prints, draws and refuses. No worker is started, no lock taken, nothing measured.

mod common;

use std::path::{Path, PathBuf};

use common::{Place, bad, good};
use serde_json::Value;

const STRATEGIES: [&str; 5] = ["single", "static-layer", "adaptive-layer", "head", "hybrid"];

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/clusters").join(name)
}

/// A plan for a shape on a cluster file.
fn shape(place: &Place, shape: &str, cluster: &Path) -> assert_cmd::Command {
    let mut command = place.shoal();
    command.args(["plan", "--shape", shape, "--quant", "Q4_0", "--cluster"]).arg(cluster);
    command
}

fn write(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn the_sheet_has_all_that_design_17_names() {
    let place = Place::new();
    let mut command = shape(&place, "llama-3.1-8b", &example("three-pi5.toml"));
    let report =
        good(command.args(["--json", "--streams", "8", "--what-if", "pi5-8gb", "--what-if", "2xpi4-4gb"]));
    let strategies = report["strategies"].as_array().unwrap();
    let names: Vec<&str> = strategies.iter().map(|one| one["strategy"].as_str().unwrap()).collect();
    assert_eq!(names, STRATEGIES);
    assert_eq!(report["cluster"].as_array().unwrap().len(), 3);
    assert_eq!(report["cluster"][0]["profile"], "pi5-8gb");
    assert_eq!(report["objective"], "throughput");
    // Eight streams of 4096 positions do not fit one board; three hold them.
    assert_eq!(strategies[0]["feasible"], false);
    assert!(strategies[0]["missing"][0]["bytes"].as_u64().unwrap() > 1 << 30, "{}", strategies[0]);
    let chosen = strategies.iter().find(|one| one["strategy"] == report["chosen"]).unwrap();
    let aggregate = chosen["aggregate"].as_array().unwrap();
    assert_eq!(aggregate.last().unwrap()["streams"], 8);
    for other in strategies.iter().filter(|one| one["feasible"] == true) {
        let tps = |one: &Value| number(&one["aggregate"].as_array().unwrap().last().unwrap()["tps"]);
        assert!(tps(chosen) >= tps(other), "{other}");
        assert!(number(&other["decode_ms"]) >= number(&report["lower_bound_ms"]));
        for node in other["nodes"].as_array().unwrap() {
            assert!(node["memory_bytes"].as_u64() <= node["usable_bytes"].as_u64(), "{node}");
            let parts = ["compute_ms", "all_reduce_ms", "hop_ms", "wait_ms", "idle_ms"];
            let sum: f64 = parts.iter().map(|part| number(&node[*part])).sum();
            assert!((sum / number(&other["decode_ms"]) - 1.0).abs() < 1e-6, "{node}");
        }
    }
    assert!(number(&report["bound"]) <= number(&report["figure"]) * (1.0 + 1e-9));
    assert!(report["limits"].as_array().unwrap().iter().all(|limit| limit["text"].is_string()));
    // A fourth board is used and raises the rate; figures before are those of the plan.
    let what_if = report["what_if"].as_array().unwrap();
    assert_eq!(what_if.len(), 2);
    assert_eq!((what_if[0]["used"].as_bool(), what_if[0]["count"].as_u64()), (Some(true), Some(1)));
    assert_eq!(what_if[0]["before"]["decode_ms"], chosen["decode_ms"]);
    assert!(number(&what_if[0]["after"]["tps"]) > 1.2 * number(&what_if[0]["before"]["tps"]));
    assert_eq!(what_if[1]["profile"], "pi4-4gb");
    assert_eq!(what_if[1]["count"], 2);
    place.assert_nothing_left();
}

#[test]
fn the_sheet_fits_a_screen_and_the_drawing_says_the_same() {
    let place = Place::new();
    let (svg, png) = (place.path("plan.svg"), place.path("plan.png"));
    for cluster in ["three-pi5.toml", "eight-pi5.toml", "small-board.toml", "pi5-orin-pi4.toml"] {
        let mut command = shape(&place, "llama-3.1-8b", &example(cluster));
        command.arg("--svg").arg(&svg).arg("--png").arg(&png).args(["--what-if", "pi5-16gb"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() <= 50, "{} lines:\n{text}", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 125), "a long line in\n{text}");
        assert!(!text.contains('\x1b'), "colours without a terminal");
        // Lines are broken between words.
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in
            ["strategy", "→", "stage 0", "why", "limits", "optimal", "what if", "decodes one stream faster"]
        {
            assert!(words.contains(word), "no {word:?} in\n{text}");
        }
        let drawing = std::fs::read_to_string(&svg).unwrap();
        assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
        assert!(drawing.contains("prefers-color-scheme"), "one mode only");
        // The time per token of the first line of the picture is that of the drawing's title.
        let picture = text.lines().find(|line| line.contains("per token of one stream")).unwrap();
        let took = picture.split(", ").nth(1).unwrap().split(" per token").next().unwrap();
        assert!(drawing.contains(&format!("{took} per token")), "{took:?} is not in the drawing");
        assert!(drawing.contains("layers 0–"));
        assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    }
}

#[test]
fn a_hundred_boards_fit_a_screen_too() {
    let place = Place::new();
    let text = "network = \"gigabit-switch\"\n[[device]]\nname = \"pi\"\nprofile = \"pi5-8gb\"\ncount = 60\n\
                [[device]]\nname = \"orin\"\nprofile = \"agx-orin\"\ncount = 40\n";
    let cluster = write(&place, "hall.toml", text);
    for args in [&["--streams", "16"][..], &["--strategy", "static-layer"]] {
        let output = shape(&place, "llama-3.1-70b", &cluster).args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.lines().count() <= 75, "{} lines:\n{text}", text.lines().count());
        assert!(text.contains("100 boards (60 × pi5-8gb, 40 × agx-orin)"), "{text}");
    }
}

#[test]
fn names_from_files_are_escaped_in_the_drawing() {
    let place = Place::new();
    let text = "name = \"a <b> & \\\"c\\\"\"\n[[device]]\nname = \"<script>\"\nprofile = \"pi5-8gb\"\n";
    let svg = place.path("plan.svg");
    let mut command = shape(&place, "stories", &write(&place, "odd.toml", text));
    assert!(command.arg("--svg").arg(&svg).output().unwrap().status.success());
    let drawing = std::fs::read_to_string(&svg).unwrap();
    assert!(drawing.contains("&lt;script&gt;") && !drawing.contains("<script>"));
}

#[test]
fn a_file_is_planned_for_as_its_shape_and_a_small_model_stays_on_one_board() {
    let place = Place::new();
    let model = common::model("Q4_0").unwrap();
    let mut command = place.shoal();
    let report =
        good(command.arg("plan").arg(&model).arg("--cluster").arg(example("three-pi5.toml")).arg("--json"));
    assert_eq!(report["chosen"], "single");
    assert_eq!(report["left_out"].as_array().unwrap().len(), 2);
    assert!(report["left_out"][0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    // Objectives may be named; energy is in the table of its own.
    let mut command = place.shoal();
    command.arg("plan").arg(&model).arg("--cluster").arg(example("three-pi5.toml"));
    let output = command.args(["--objective", "energy"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("J/token"));
}

#[test]
fn what_does_not_fit_says_the_bytes_and_an_addition_that_does() {
    let place = Place::new();
    let cluster = example("three-pi5.toml");
    let said = bad(&mut shape(&place, "llama-3.1-70b", &cluster), 4);
    let output = shape(&place, "llama-3.1-70b", &cluster).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let report = common::json(&output);
    let missing = report["missing_bytes"].as_u64().unwrap();
    assert!(missing > 10_000_000_000 && said.contains(&format!("({missing} bytes) are missing")), "{said}");
    assert!(STRATEGIES.iter().all(|strategy| said.contains(strategy)), "{said}");
    assert!(report["strategies"].as_array().unwrap().iter().all(|one| one["feasible"] == false));
    // What is suggested does fit when it is asked for, and one board less of it does not.
    let additions = report["additions"].as_array().unwrap();
    assert_eq!(additions[0]["kind"], "memory");
    let (profile, count) =
        (additions[0]["profile"].as_str().unwrap(), additions[0]["count"].as_u64().unwrap());
    let with = |count: u64| {
        let mut command = shape(&place, "llama-3.1-70b", &cluster);
        let argument = format!("{count}x{profile}");
        common::json(&command.args(["--json", "--what-if", &argument]).output().unwrap())["what_if"][0]
            .clone()
    };
    assert!(said.contains(&format!("--what-if {count}x{profile}")), "{said}");
    assert!(number(&with(count)["after"]["decode_ms"]) > 0.0);
    if count > 1 {
        assert!(with(count - 1)["after"].is_null(), "{count} of {profile} are not the fewest");
    }
    let fewest = additions.last().unwrap();
    assert!(fewest["count"].as_u64() <= Some(count));
}

#[test]
fn pins_are_kept_and_contradictions_named() {
    let place = Place::new();
    let cluster = example("three-pi5.toml");
    let plan =
        |args: &[&str]| shape(&place, "llama-3.2-1b", &cluster).arg("--json").args(args).output().unwrap();
    let report = common::json(&plan(&["--pin", "pi-3=layers:0-4"]));
    let chosen = report["strategies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["strategy"] == report["chosen"])
        .unwrap();
    let third = report["cluster"][2]["node"].clone();
    let stage = &chosen["plan"]["stages"][0];
    assert_eq!(stage["layers"], serde_json::json!([0, 5]), "both ends of a pin are included");
    assert!(stage["ranks"].as_array().unwrap().iter().any(|rank| rank["node"] == third), "{stage}");

    let refused = |args: &[&str]| {
        let mut command = shape(&place, "llama-3.2-1b", &cluster);
        bad(command.args(args), 2)
    };
    let said = refused(&["--pin", "pi-1=layers:0-8", "--pin", "pi-2=layers:5-15"]);
    assert!(said.contains("pi-1") && said.contains("pi-2") && said.contains("contradict"), "{said}");
    assert!(said.contains("0 to 8") && said.contains("5 to 15"), "as people count: {said}");
    let said = refused(&["--pin", "pi-1=layers:0-99"]);
    assert!(said.contains("16 layers"), "{said}");
    let said = refused(&["--pin", "pi-1=layers:0-3", "--exclude", "pi-1"]);
    assert!(said.contains("excluded"), "{said}");
    let said = refused(&["--pin", "pi-9=layers:0-3"]);
    assert!(said.contains("pi-9") && said.contains("pi-1, pi-2, pi-3"), "{said}");
    let said = refused(&["--pin", "pi-1=layers:3-1"]);
    assert!(said.contains("ends before it begins"), "{said}");
}

#[test]
fn reserve_and_exclusion_count() {
    let place = Place::new();
    let cluster = example("three-pi5.toml");
    let plan = |args: &[&str]| {
        let mut command = shape(&place, "llama-3.1-8b", &cluster);
        good(command.arg("--json").args(args))
    };
    let two = plan(&["--exclude", "pi-2"]);
    assert_eq!(two["left_out"][0]["name"], "pi-2");
    // With nobody left, no memory is counted and nothing is suggested.
    let none = ["--exclude", "pi-1", "--exclude", "pi-2", "--exclude", "pi-3"];
    let said = bad(shape(&place, "llama-3.1-8b", &cluster).args(none), 4);
    assert!(said.contains("no board of three Pi 5 can take part") && said.contains("excluded"), "{said}");
    assert!(!said.contains("it would fit") && !said.contains("GB"), "{said}");
    // Alone it takes 5.4 of 7.2 GB; with 2 GB kept free one board no longer does.
    assert_eq!(plan(&[])["strategies"][0]["feasible"], true);
    assert_eq!(plan(&["--memory-reserve", "2GB"])["strategies"][0]["feasible"], false);
}

#[test]
fn bad_files_and_names_are_refused_with_what_is_wrong() {
    let place = Place::new();
    let refused = |name: &str, text: &str, code: i32, words: &[&str]| {
        let said = bad(&mut shape(&place, "stories", &write(&place, name, text)), code);
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in {said}");
    };
    let device = "[[device]]\nname = \"a\"\nprofile = \"pi5-8gb\"\n";
    let other = device.replace("\"a\"", "\"b\"");
    refused("lone.toml", &format!("{device}{other}"), 3, &["lone.toml", "\"a\"", "\"b\"", "network"]);
    refused("typo.toml", &device.replace("pi5-8gb", "pi5-8bg"), 2, &["pi5-8bg", "did you mean \"pi5-8gb\"?"]);
    refused(
        "twice.toml",
        &format!("network = \"gigabit-switch\"\n{device}{device}"),
        3,
        &["device[1].name", "\"a\""],
    );
    refused("slow.toml", &format!("{device}speed = 0\n"), 3, &["slow.toml", "device[0].speed", "0"]);
    refused("key.toml", &format!("colour = 1\n{device}"), 3, &["key.toml", "line 1", "colour"]);
    refused("none.toml", "", 3, &["none.toml", "[[device]]"]);

    let cluster = example("three-pi5.toml");
    let said = bad(shape(&place, "stories", &cluster).args(["--what-if", "pi6"]), 2);
    assert!(said.contains("pi6") && said.contains("pi5-8gb"), "{said}");
    let said = bad(shape(&place, "stories", &cluster).args(["--what-if", "99xpi5-8gb"]), 2);
    assert!(said.contains("99xpi5-8gb"), "{said}");
    let said = bad(&mut shape(&place, "llama-9", &cluster), 2);
    assert!(said.contains("llama-9") && said.contains("llama-3.1-8b"), "{said}");
    let said = bad(shape(&place, "stories", &cluster).args(["--local-workers", "2"]), 2);
    assert!(said.contains("--cluster"), "{said}");
    let said = bad(&mut shape(&place, "stories", &place.path("absent.toml")), 3);
    assert!(said.contains("absent.toml"), "{said}");
    // A board attached by a link alone, and nothing to attach another by.
    let text = format!("{device}{other}[[link]]\nbetween = [\"a\", \"b\"]\nprofile = \"loopback\"\n");
    let linked = write(&place, "linked.toml", &text);
    assert!(shape(&place, "stories", &linked).output().unwrap().status.success());
    let said = bad(shape(&place, "stories", &linked).args(["--what-if", "pi4-4gb"]), 3);
    assert!(said.contains("network"), "{said}");
    let mut command = shape(&place, "stories", &linked);
    good(command.args(["--json", "--what-if", "pi4-4gb", "--network", "wifi-5"]));
}

#[test]
fn a_link_without_a_figure_takes_the_clusters_and_says_so() {
    let place = Place::new();
    let report = good(shape(&place, "stories", &example("two-gigabit-one-wifi.toml")).arg("--json"));
    let note = report["notes"][0].as_str().unwrap();
    assert!(note.contains("wired-1, wired-2") && note.contains("gigabit-switch"), "{note}");
}
