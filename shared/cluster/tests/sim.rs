//! Hundreds of seeds of the simulator. A failing one is named; `SHOAL_SIM_SEED=n` runs it alone.

#![expect(clippy::print_stderr, reason = "a replayed seed shows what it does")]

use shoal_cluster::sim::{Fault, Scenario, Summary, run};

/// Seeds of one test run.
const SEEDS: u64 = 400;

#[test]
fn invariants_hold_under_faults() {
    if let Some(seed) = std::env::var("SHOAL_SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        let scenario = Scenario::new(seed);
        eprintln!("{scenario:#?}");
        match run(&scenario) {
            Ok(summary) => eprintln!("{summary:#?}"),
            Err(violation) => panic!("{violation}"),
        }
        return;
    }
    let mut all = Summary::default();
    for seed in 0..SEEDS {
        match run(&Scenario::new(seed)) {
            Ok(one) => {
                all.finished += one.finished;
                all.aborted += one.aborted;
                all.tokens += one.tokens;
                all.served += one.served;
                all.failed += one.failed;
                all.no_plan += one.no_plan;
                all.questions += one.questions;
                all.most_in_flight = all.most_in_flight.max(one.most_in_flight);
            }
            Err(violation) => panic!("replay with SHOAL_SIM_SEED={seed}: {violation}"),
        }
    }
    eprintln!("{all:?}");
    // The seeds must reach what they are to test.
    assert!(all.finished > 1000 && all.aborted > 50 && all.tokens > 10_000 && all.failed > 50, "{all:?}");
    assert!(all.served > 300 && all.questions > 500 && all.most_in_flight >= 4, "{all:?}");
}

#[test]
fn without_faults_every_request_finishes() {
    for seed in 0..40 {
        let mut scenario = Scenario::new(seed);
        scenario.faults.clear();
        scenario.absurd.clear();
        scenario.bad_loads.clear();
        scenario.slowness.fill(1);
        let summary = run(&scenario).unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!((summary.failed, summary.aborted), (0, 0), "seed {seed}: {summary:?}");
        assert_eq!(summary.finished, scenario.requests.len() * scenario.jobs, "seed {seed}: {summary:?}");
    }
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    for seed in [3, 17, 99] {
        assert_eq!(run(&Scenario::new(seed)).ok(), run(&Scenario::new(seed)).ok());
    }
}

#[test]
fn a_silent_crash_ends_the_run_and_the_next_job_goes_on_without_it() {
    let mut scenario = Scenario::new(5);
    scenario.workers = 3;
    scenario.slowness = vec![1; 3];
    scenario.absurd.clear();
    scenario.bad_loads.clear();
    scenario.strategy = Some(shoal_core::plan::Strategy::StaticLayer);
    scenario.jobs = 2;
    for request in &mut scenario.requests {
        request.max_new = 60;
        request.stop_tokens.clear();
    }
    let undisturbed = { run(&Scenario { faults: Vec::new(), jobs: 1, ..scenario.clone() }).unwrap().time };
    scenario.faults = vec![(undisturbed * 3 / 4, 1, Fault::Crash { silent: true })];
    let summary = run(&scenario).unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!((summary.served, summary.failed), (2, 1), "{summary:?}");
    assert!(summary.aborted > 0 && summary.finished >= scenario.requests.len(), "{summary:?}");
}
