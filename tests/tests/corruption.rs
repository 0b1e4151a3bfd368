//! Some hundred faults on files at rest, of the campaign that the command `corrupt` makes longer.

use escapement_tests::corruption::{Campaign, Counts, Kind, Options, Verdict};

/// Faults, from seed 0 on.
const FAULT_COUNT: u64 = 400;

/// Among these the planted bug has to be found: it takes the first refusal of a log.
const PLANTED_FAULT_COUNT: u64 = 50;

#[test]
fn damage_at_rest_is_noticed_or_harmless() {
    let mut campaign = Campaign::new(Options::default());
    let mut counts = Counts::new();
    for seed in 0..FAULT_COUNT {
        let ended = campaign.run(seed).unwrap_or_else(|failed| {
            panic!("{failed}; again: cargo run -p escapement-tests --bin corrupt -- --seed {seed}")
        });
        *counts.entry(ended).or_default() += 1;
    }
    for verdict in Verdict::ALL {
        assert!(counts.keys().any(|(_, of)| *of == verdict), "{verdict:?} is never met: {counts:?}");
    }
    // Few lives have had two runs with the same number.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::StaleRun) {
        assert!(counts.keys().any(|(of, _)| *of == kind), "{kind:?} is never made: {counts:?}");
    }
}

#[test]
fn an_old_file_of_a_run_is_not_taken_for_a_later_run_with_its_number() {
    let mut campaign = Campaign::new(Options { stale_runs: true, ..Options::default() });
    // One life, which has had several.
    for seed in 575..585 {
        match campaign.run(seed) {
            Ok(ended) => assert_eq!(ended, (Kind::StaleRun, Verdict::RunRefused), "seed {seed}"),
            Err(failed) => panic!("{failed}"),
        }
    }
}

#[test]
fn a_log_that_gives_up_what_is_damaged_is_found() {
    let mut campaign = Campaign::new(Options { give_up: true, ..Options::default() });
    let found = (0..PLANTED_FAULT_COUNT).find_map(|seed| campaign.run(seed).err());
    let found = found.expect("acknowledged events are lost in silence, and nobody notices");
    assert!(found.what.contains("proves that there was more"), "{found}");
}
