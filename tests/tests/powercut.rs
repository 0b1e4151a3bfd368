//! Real power cuts below a real node, where the tools and rights for it are. The command `powercut` makes more.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use escapement_tests::powercut::{Counts, Plan, missing, run};

const NODE: &str = env!("CARGO_BIN_EXE_node_under_test");

const PLAN: Plan =
    Plan { cuts: 100, seed: 1, work: Duration::from_secs(5), most: Duration::from_secs(100), lies: false };

/// Printed even where the test passes.
fn say(text: &str) {
    writeln!(std::io::stderr(), "{text}").expect("standard error is open");
}

/// Cuts the power, unless it can't be done here.
fn cut(plan: Plan) -> Option<Result<Counts, String>> {
    if let Some(what) = missing() {
        say(&format!("no power was cut: {what}"));
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    Some(run(plan, Path::new(NODE), dir.path()))
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let Some(counts) = cut(PLAN) else { return };
    let counts = counts.unwrap_or_else(|what| panic!("{what}"));
    say(&format!("{counts:?}"));
    assert!(counts.cuts > 0 && counts.with_runs > 0 && counts.held > 0, "{counts:?}");
}

#[test]
fn a_disk_that_lies_is_found() {
    let Some(counts) = cut(Plan { lies: true, work: Duration::from_secs(2), ..PLAN }) else { return };
    let what = counts.expect_err("acknowledged events are lost, and nobody notices");
    assert!(what.contains("acknowledged"), "{what}");
}
