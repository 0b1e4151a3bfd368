//! Cancels at the due instant, short. `cargo run --release -p escapement-tests --bin race` is long.

use escapement_tests::race::{Bug, Counts, run};

#[test]
fn a_verdict_is_what_the_subscriber_sees_at_the_due_instant_and_through_crashes() {
    let mut counts = Counts::default();
    for seed in 0.. {
        counts.add(run(seed, None).expect("no verdict is contradicted"));
        if counts.cancels() >= 20_000 {
            break;
        }
    }
    let Counts { before, at, after, cancelled, too_late, not_found, crashes, .. } = counts;
    let least = [before, at, after, cancelled, too_late, not_found, crashes].into_iter().min();
    assert!(least >= Some(200), "each side of the race is run: {counts:?}");
}

#[test]
fn planted_bugs_are_found() {
    for bug in Bug::ALL {
        let found = (0..30).find_map(|seed| run(seed, Some(bug)).err());
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(found.what.contains("was pushed after"), "{bug:?} was found as {found}");
    }
}
