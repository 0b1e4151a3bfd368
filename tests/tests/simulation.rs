//! The simulator itself: what it promises about seeds, that it notices every planted bug, and a short campaign.
//!
//! `docs/internals/simulation.md` says what is simulated and judged. Long campaigns are the command `simulate`'s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use escapement_tests::sim::{Bug, Counts, Failed, Options, run};

/// Seeds of the campaign, from 0 on. Every planted bug is looked for among the same ones.
const CAMPAIGN_SEED_COUNT: u64 = 200;

/// Crashes that these seeds have at least.
const CAMPAIGN_CRASH_COUNT: u64 = 1_000;

/// Seeds that have failed once, and what they found.
///
/// What a seed does depends on the simulator and on the product: after a change of either it is another run. They are
/// kept because they cost little and begin where something was wrong before.
const KEPT: &[(u64, &str)] = &[
    (9_423, "after a restart a core refused publishes: its shard did not know the topic yet"),
    (311, "over QUIC, an assertion of quinn-proto does not hold after a failed change of path"),
    (854, "an event was copied in the log while it was on its way to a run"),
    (500_210, "what had been loaded late from a run came after later events of its key"),
    (8_000_290, "an event cancelled on its way to a run was called too late to cancel the second time"),
    (
        3_001_772,
        "a log filled up with copies for good; then pushes waited in a slow stream for longer than their deadlines",
    ),
    (2_886, "a log of short events with three subscribers each filled up until nothing could be freed"),
    (
        373,
        "topics took turns with sequences that a record was made of before, and events were handed out twice",
    ),
    (
        1_899,
        "a core was listened to while another's shard did not know the topic yet, and refused what came through it",
    ),
    (4_115, "a shard that was out while a topic was created called it unknown when shard 0 was out"),
    (236, "a listing was held to a due time that the node told of only afterwards"),
];

fn clean(seed: u64) -> Result<Counts, Failed> {
    run(seed, Options::default()).map(|passed| passed.counts)
}

/// Runs the seeds on two threads.
fn run_all(seeds: u64) -> (Counts, Vec<Failed>) {
    let next = AtomicU64::new(0);
    let found = Mutex::new((Counts::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let result = clean(seed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(counts) => found.0.add(counts),
                        Err(failed) => found.1.push(failed),
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_thousand_crashes_break_no_promise() {
    let (counts, failures) = run_all(CAMPAIGN_SEED_COUNT);
    assert_eq!(failures, []);
    assert!(counts.crashes >= CAMPAIGN_CRASH_COUNT, "{counts:?}");
    assert!(counts.recovery_crashes > 0 && counts.restarts > 0, "{counts:?}");
    assert!(counts.events > 0 && counts.pushes > counts.events / 2, "{counts:?}");
    assert!(counts.snapshots > 10 && counts.listings > 300, "{counts:?}");
    assert!(counts.topic_turns > 20, "{counts:?}");
    assert!(counts.shards_out > 10 && counts.listings_without > 0, "{counts:?}");
}

#[test]
fn lost_and_doubled_datagrams_break_no_promise() {
    let mut counts = Counts::default();
    for seed in 0..16 {
        let passed = run(seed, Options { quic: true, ..Options::default() });
        counts.add(passed.unwrap_or_else(|failed| panic!("{failed}, over QUIC")).counts);
    }
    assert!(counts.crashes > 50 && counts.connections > 100 && counts.datagrams > 5_000, "{counts:?}");
}

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, found) in KEPT {
        if let Err(failed) = clean(*seed) {
            panic!("{failed}; once it found that {found}");
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    let mut hashes = Vec::new();
    for seed in 3..13 {
        let options = Options { quic: seed % 2 == 0, ..Options::default() };
        let first = run(seed, options).expect("a clean seed");
        let again = run(seed, options).expect("a clean seed");
        assert_eq!(first, again, "seed {seed}");
        hashes.push(first.trace_hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 10, "different seeds are different runs");
}

#[test]
fn a_failing_seed_fails_again_in_the_same_way() {
    let options = Options { bug: Some(Bug::ClockAhead), ..Options::default() };
    let first = run(0, options).expect_err("an early push");
    assert_eq!(run(0, options).expect_err("an early push"), first);
}

/// Within so many seeds from 0 on the bug breaks a promise, and the seed that finds it is clean without it.
#[track_caller]
fn assert_found(bug: Bug, within: u64) {
    assert!(within <= CAMPAIGN_SEED_COUNT, "the campaign has to show that these seeds are clean");
    let options = Options { bug: Some(bug), ..Options::default() };
    let found = (0..within).find(|seed| run(*seed, options).is_err());
    let seed = found.unwrap_or_else(|| panic!("{within} seeds did not notice {bug:?}"));
    assert!(clean(seed).is_ok(), "seed {seed} fails without {bug:?}, too");
}

/// One test for each bug: how many seeds at most find it, with some to spare over what it took when this was written.
macro_rules! found {
    ($($test:ident: $bug:ident within $seeds:literal;)*) => {
        $(
            #[test]
            fn $test() {
                assert_found(Bug::$bug, $seeds);
            }
        )*

        #[test]
        fn every_planted_bug_has_its_test() {
            assert_eq!([$(Bug::$bug),*], Bug::ALL);
        }
    };
}

found! {
    an_answer_that_outruns_the_disk_is_noticed: AckBeforeDurable within 20;
    a_clock_that_is_ahead_is_noticed: ClockAhead within 5;
    a_write_that_is_called_done_after_it_failed_is_noticed: RetryAfterError within 60;
    a_completion_that_is_lost_is_noticed: LostCompletion within 5;
    mail_that_is_lost_is_noticed: LostMail within 20;
    a_block_that_recovery_forgets_is_noticed: LastBlockForgotten within 15;
    sequences_that_are_given_out_again_are_noticed: SequencesAgain within 5;
    a_push_that_leaves_twice_is_noticed: PushTwice within 5;
    a_cut_that_passes_for_a_farewell_is_noticed: CutAsLeft within 40;
    an_event_that_changes_is_noticed: EventAltered within 5;
    an_epoch_that_is_used_again_is_noticed: EpochAgain within 30;
    a_control_object_that_a_shard_misses_is_noticed: ControlForgotten within 30;
    a_file_whose_name_is_not_durable_is_noticed: CreationNotDurable within 130;
    a_recovery_that_makes_nothing_durable_is_noticed: RecoveryNotSynced within 90;
    results_that_are_forgotten_are_noticed: ResultsForgotten within 5;
    a_wakeup_that_is_lost_is_noticed: LostWakeup within 25;
    a_clock_that_goes_back_is_noticed: ClockBackwards within 30;
    mail_that_comes_twice_is_noticed: MailTwice within 10;
    clocks_that_are_read_in_the_wrong_order_are_noticed: ClocksCrossed within 10;
    datagrams_that_go_to_another_core_are_noticed: SteeredAstray within 80;
    a_write_to_a_run_that_is_lost_is_noticed: RunWriteLost within 30;
    runs_that_recovery_does_not_find_are_noticed: RunsForgotten within 180;
    answers_on_another_stream_are_noticed: AnswersAstray within 10;
    a_clock_that_lags_behind_expiries_is_noticed: ClockStale within 60;
    a_policy_that_is_not_the_subscriptions_is_noticed: PolicyAltered within 30;
    files_that_are_let_go_while_they_are_copied_are_noticed: FilesLetGo within 200;
    counts_of_another_shard_are_noticed: QuestionsAstray within 60;
    a_listing_that_does_not_go_back_to_memory_is_noticed: ListingNotRepeated within 60;
    a_listing_that_leaves_out_a_block_is_noticed: ListingBlockSkipped within 60;
    a_listing_that_does_not_say_what_is_missing_is_noticed: MissingNotTold within 200;
    names_that_recovery_leaves_out_are_noticed: NamesForgotten within 180;
    names_that_recovery_does_not_read_are_noticed: NamesNotRead within 40;
    runs_of_names_that_recovery_forgets_are_noticed: NamesRunsForgotten within 180;
    runs_of_names_that_recovery_ends_early_are_noticed: NamesRunsEndedEarly within 180;
    a_rescheduling_that_recovery_forgets_is_noticed: RescheduleForgotten within 20;
    a_copy_that_forgets_a_rescheduling_is_noticed: RescheduleNotCopied within 80;
    a_due_time_that_pushes_do_not_say_is_noticed: RescheduledDueLost within 5;
    an_operation_on_a_group_that_goes_to_another_shard_is_noticed: OperationsAstray within 70;
    a_cancelled_group_that_recovery_forgets_is_noticed: GroupForgotten within 45;
    a_group_that_was_given_back_and_recovery_forgets_it_is_noticed: UndoForgotten within 45;
}
