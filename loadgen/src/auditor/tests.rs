//! Each promise, kept and broken: the auditor must tell them apart.

use super::*;
use crate::generator::WorkloadConfig;

const DUE_MS: u64 = 1_000_000;

struct Bench {
    load: Workload,
    auditor: Auditor,
}

impl Bench {
    fn new(keys: u32, max_concurrent: u32) -> Self {
        let load =
            Workload::new(WorkloadConfig { keys, payload_size_bytes: 16, ..WorkloadConfig::default() });
        Bench { load, auditor: Auditor::new(load, max_concurrent) }
    }

    /// Published and acknowledged long before it is due, at sequence `n + 1` of shard 0.
    fn accepted(&mut self, n: u64, due_ms: u64) {
        self.auditor.published(n, due_ms);
        self.auditor.acknowledged(n, 10, place(n + 1));
    }

    fn push_as(&mut self, n: u64, change: impl FnOnce(&mut Pushed<'_>, &mut [u8])) -> Verdict {
        let mut data = [0; 16];
        self.load.fill_data(n, &mut data);
        let id = self.load.id(n);
        let mut push = Pushed {
            id: &id,
            data: &[],
            event: EventId { shard: ShardId(0), sequence: Sequence(n + 1), schedule_time_ms: DUE_MS },
            due_ms: DUE_MS,
            received_wall_ns: DUE_MS * 1_000_000,
        };
        change(&mut push, &mut data);
        push.data = &data;
        self.auditor.pushed(&push)
    }

    fn push(&mut self, n: u64) -> Verdict {
        self.push_as(n, |_, _| ())
    }

    /// Pushed just in time for its own due time, and finished at once.
    fn push_due(&mut self, n: u64, due_ms: u64) {
        self.push_as(n, |push, _| {
            push.event.schedule_time_ms = due_ms;
            push.due_ms = due_ms;
            push.received_wall_ns = due_ms * 1_000_000 + 1;
        });
    }

    fn succeed(&mut self, n: u64) {
        self.auditor.finished(Some(n), AttemptResult::Success);
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let breaches = self.auditor.report().breaches();
        breaches.iter().filter(|(_, b)| b.count > 0).map(|(name, b)| (*name, b.count)).collect()
    }
}

fn place(sequence: u64) -> Place {
    Place { shard: ShardId(0), sequence: Sequence(sequence) }
}

#[test]
fn an_honest_run_is_clean_and_counts_what_happened() {
    let mut bench = Bench::new(0, 0);
    for n in 0..10_000 {
        bench.accepted(n, DUE_MS);
    }
    assert_eq!(bench.auditor.report().outstanding, 10_000);
    for n in 0..10_000 {
        assert_eq!(bench.push(n), Verdict::First { n, lateness_ns: 0 });
        bench.succeed(n);
    }
    let report = bench.auditor.report();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.published, report.acknowledged, report.completed), (10_000, 10_000, 10_000));
    assert_eq!((report.outstanding, report.duplicates, report.running_most), (0, 0, 1));
}

#[test]
fn an_acknowledged_event_that_never_comes_stays_outstanding() {
    let mut bench = Bench::new(0, 0);
    bench.accepted(0, DUE_MS);
    bench.accepted(1, DUE_MS);
    bench.auditor.published(2, DUE_MS);
    bench.push(0);
    bench.succeed(0);
    assert_eq!(bench.auditor.report().outstanding, 1);
    assert_eq!(bench.auditor.outstanding_examples(), [1]);
}

#[test]
fn a_retry_that_never_comes_stays_outstanding() {
    let mut bench = Bench::new(0, 0);
    bench.accepted(0, DUE_MS);
    bench.push(0);
    bench.auditor.finished(Some(0), AttemptResult::RetryableFailure);
    assert_eq!(bench.auditor.report().outstanding, 1);
    assert_eq!(bench.push(0), Verdict::Again { n: 0 });
    bench.succeed(0);
    let report = bench.auditor.report();
    assert_eq!((report.outstanding, report.duplicates, report.completed), (0, 0, 1));
}

#[test]
fn one_nanosecond_early_is_early() {
    let mut bench = Bench::new(0, 0);
    bench.accepted(0, DUE_MS);
    bench.push_as(0, |push, _| push.received_wall_ns -= 1);
    assert_eq!(bench.counts(), [("early", 1)]);
    assert_eq!(bench.auditor.report().early.examples, [0]);
}

#[test]
fn a_flipped_bit_a_moved_due_time_and_an_invented_event_are_wrong() {
    let mut bench = Bench::new(0, 0);
    bench.accepted(0, DUE_MS);
    bench.accepted(1, DUE_MS);
    bench.push_as(0, |_, data| data[9] ^= 0x10);
    bench.push_as(1, |push, _| push.event.schedule_time_ms += 1);
    bench.push(2);
    assert_eq!(bench.counts(), [("wrong_payload", 3)]);
}

#[test]
fn a_forged_number_takes_no_memory() {
    let mut bench = Bench::new(0, 0);
    bench.push(crate::generator::EVENTS_MAX - 1);
    assert_eq!(bench.auditor.table.live_pages(), 0);
    assert_eq!(bench.counts(), [("wrong_payload", 1)]);
}

#[test]
fn an_event_of_another_load_is_foreign_and_not_a_breach() {
    let mut bench = Bench::new(0, 0);
    assert_eq!(bench.push_as(0, |push, _| push.id = b"somebody"), Verdict::Foreign);
    bench.auditor.finished(None, AttemptResult::Success);
    assert_eq!((bench.counts(), bench.auditor.report().foreign), (vec![], 1));
}

#[test]
fn a_second_push_is_a_duplicate_while_running_after_the_end_and_after_its_page_is_gone() {
    let mut bench = Bench::new(0, 0);
    for n in 0..4096 {
        bench.accepted(n, DUE_MS);
    }
    bench.push(0);
    bench.push(0);
    bench.succeed(0);
    bench.succeed(0);
    bench.push(0);
    bench.succeed(0);
    for n in 1..4096 {
        bench.push(n);
        bench.succeed(n);
    }
    bench.push(0);
    let report = bench.auditor.report();
    assert_eq!((report.duplicates, report.completed, report.outstanding), (3, 4096, 0));
    assert!(report.is_clean());
}

#[test]
fn a_refused_event_that_is_pushed_is_a_breach_before_and_after_the_answer() {
    let mut bench = Bench::new(0, 0);
    bench.auditor.published(0, DUE_MS);
    bench.auditor.refused(0);
    bench.push(0);
    bench.auditor.published(1, DUE_MS);
    bench.push(1);
    bench.auditor.refused(1);
    assert_eq!(bench.counts(), [("refused_but_pushed", 2)]);
    assert_eq!((bench.auditor.report().refused, bench.auditor.report().outstanding), (2, 0));
}

#[test]
fn a_push_under_another_id_than_the_receipts_is_misnamed_unless_it_was_sent_twice() {
    let mut bench = Bench::new(0, 0);
    for n in 0..3 {
        bench.auditor.published(n, DUE_MS);
    }
    bench.auditor.acknowledged(0, 10, place(99));
    bench.push(0);
    bench.push(1);
    bench.auditor.acknowledged(1, 10, place(99));
    bench.auditor.resent(2);
    bench.auditor.acknowledged(2, 10, place(99));
    bench.push(2);
    assert_eq!(bench.counts(), [("misnamed", 2)]);
}

#[test]
fn one_more_running_than_the_limit_is_caught() {
    let mut bench = Bench::new(0, 2);
    for n in 0..4 {
        bench.accepted(n, DUE_MS);
    }
    bench.push(0);
    bench.push(1);
    bench.succeed(0);
    bench.push(2);
    assert!(bench.auditor.report().is_clean());
    bench.push(3);
    assert_eq!(bench.counts(), [("over_limit", 1)]);
    assert_eq!(bench.auditor.report().running_most, 3);
}

#[test]
fn a_key_is_delivered_by_due_time_then_sequence() {
    let run = |first: u64, second: u64, dues: [u64; 2]| {
        let mut bench = Bench::new(1, 0);
        bench.accepted(0, dues[0]);
        bench.accepted(1, dues[1]);
        for n in [first, second] {
            bench.push_due(n, dues[n as usize]);
            bench.succeed(n);
        }
        bench.counts()
    };
    assert_eq!(run(0, 1, [500, 500]), []);
    assert_eq!(run(1, 0, [500, 500]), [("out_of_order", 1)]);
    assert_eq!(run(1, 0, [501, 500]), []);
    assert_eq!(run(0, 1, [501, 500]), [("out_of_order", 1)]);
}

#[test]
fn an_event_accepted_after_another_was_due_may_be_overtaken_by_it() {
    let mut bench = Bench::new(1, 0);
    bench.accepted(0, 500);
    bench.auditor.published(1, 400);
    bench.auditor.acknowledged(1, 500, place(2));
    bench.push_due(0, 500);
    bench.succeed(0);
    bench.push_as(1, |push, _| (push.event.schedule_time_ms, push.due_ms) = (400, 400));
    bench.succeed(1);
    assert_eq!(bench.counts(), []);
}

#[test]
fn an_event_is_due_when_the_node_says_only_once_its_rescheduling_was_asked_for() {
    let push = |is_asked: bool, due_ms: u64, at_ms: u64| {
        let mut bench = Bench::new(1, 0);
        bench.accepted(0, DUE_MS);
        if is_asked {
            bench.auditor.rescheduled(0);
        }
        let verdict = bench.push_as(0, |push, _| {
            (push.due_ms, push.received_wall_ns) = (due_ms, at_ms * 1_000_000 + 7);
        });
        (verdict, bench.counts())
    };
    let in_time = Verdict::First { n: 0, lateness_ns: 7 };
    for due_ms in [DUE_MS - 100, DUE_MS + 100] {
        assert_eq!(push(true, due_ms, due_ms), (in_time, vec![]));
        assert_eq!(push(true, due_ms, due_ms - 1).1, [("early", 1)]);
        assert_eq!(push(false, due_ms, due_ms).1, [("wrong_payload", 1)]);
    }
}

#[test]
fn two_attempts_of_a_key_at_once_are_caught() {
    let mut bench = Bench::new(1, 0);
    bench.accepted(0, DUE_MS);
    bench.accepted(1, DUE_MS);
    bench.push(0);
    bench.push(1);
    assert_eq!(bench.counts(), [("out_of_order", 1)]);
}

#[test]
fn a_key_that_waits_for_a_retry_lets_no_other_event_pass() {
    let mut bench = Bench::new(1, 0);
    bench.accepted(0, DUE_MS);
    bench.accepted(1, DUE_MS);
    bench.push(0);
    bench.auditor.finished(Some(0), AttemptResult::RetryableFailure);
    bench.push(0);
    bench.succeed(0);
    bench.push(1);
    bench.auditor.finished(Some(1), AttemptResult::RetryableFailure);
    assert_eq!(bench.counts(), []);
    bench.accepted(2, DUE_MS);
    bench.push(2);
    assert_eq!(bench.counts(), [("out_of_order", 1)]);
}

#[test]
fn memory_follows_what_is_outstanding_and_not_what_has_passed() {
    let mut bench = Bench::new(0, 0);
    for n in 0..200_000 {
        bench.accepted(n, DUE_MS);
        if let Some(done) = n.checked_sub(5_000) {
            bench.push(done);
            bench.succeed(done);
        }
    }
    assert!(bench.auditor.table.live_pages() <= 4, "{}", bench.auditor.table.live_pages());
    assert_eq!(bench.auditor.report().outstanding, 5_000);
}
