//! A hundred years of timers, few of them. `cargo run --release -p escapement-tests --bin century` has more.

use escapement_tests::century::{Bug, Counts, Options, run};

const SHORT: Options = Options { seed: 0, years: 100, events: 2_000, bug: None };

#[test]
fn in_a_hundred_years_no_timer_is_early_late_or_lost() {
    for seed in 0..6 {
        let counts = run(Options { seed, ..SHORT }).expect("no timer is early, late or lost");
        let Counts { events, in_time, after_start, restarts, far_max, .. } = counts;
        assert!(events >= 1_000 && restarts >= 50, "{counts:?}");
        assert_eq!(in_time + after_start, events);
        assert_eq!(far_max > 0, seed % 3 != 2, "two of three have runs: {counts:?}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for (bug, said) in
        [(Bug::Oversleeps, " ms late"), (Bug::ClockAhead, " ms early"), (Bug::BlockForgotten, "")]
    {
        let found = (0..6).find_map(|seed| run(Options { seed, bug: Some(bug), ..SHORT }).err());
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        assert!(found.what.contains(said), "{bug:?} was found as {found}");
    }
}
