//! The command `simulate` goes on where it was, over invocations.

use std::path::Path;
use std::process::{Command, Output};

use escapement_tests::sim::Tally;

fn simulate(state: &Path, crashes: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
    command.arg("--state").arg(state).args(["--crashes", crashes]);
    command.output().expect("the program starts")
}

fn tally(state: &Path) -> Tally {
    Tally::read(state).expect("readable").expect("written")
}

#[test]
fn crashes_are_counted_over_invocations_and_no_seed_is_run_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    assert!(simulate(&state, "10").status.success());
    let first = tally(&state);
    assert!(first.counts.crashes >= 10 && first.next_seed == first.counts.seeds, "{first:?}");
    let more = (first.counts.crashes + 10).to_string();
    assert!(simulate(&state, &more).status.success());
    let second = tally(&state);
    assert!(second.counts.crashes >= first.counts.crashes + 10, "{second:?}");
    assert_eq!(second.next_seed, second.counts.seeds);
    assert!(second.took_ms > first.took_ms);
}

#[test]
fn a_seed_that_failed_is_not_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let mut failed = Tally { next_seed: 4, failed: vec![3], ..Tally::default() };
    failed.write(&state).expect("written");
    let ran = simulate(&state, "1");
    assert_eq!(ran.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("--seed 3"), "{ran:?}");
    assert_eq!(tally(&state).failed, [3]);
}

#[test]
fn a_state_that_is_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    for text in ["", "a letter\n", "simulated seeds, version 1\nnext_seed 3\n"] {
        std::fs::write(&state, text).expect("written");
        let ran = simulate(&state, "1");
        assert_eq!(ran.status.code(), Some(2), "{text:?}: {ran:?}");
        assert_eq!(std::fs::read_to_string(&state).expect("readable"), text);
    }
}
