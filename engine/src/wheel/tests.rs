//! The wheel against a model that does everything the slow and obvious way.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{BATCH_ENTRIES, Tick, Wheel};

/// The owner's table and the keys that wait, as plain sets.
struct Model {
    wheel: Wheel,
    due_of: BTreeMap<u64, u64>,
    waiting: BTreeSet<(u64, u64)>,
    now: u64,
}

impl Model {
    fn new(now: u64) -> Self {
        Model { wheel: Wheel::new(Tick(now)), due_of: BTreeMap::new(), waiting: BTreeSet::new(), now }
    }

    fn insert(&mut self, key: u64, due: u64) {
        if let Some(before) = self.due_of.insert(key, due) {
            self.waiting.remove(&(before, key));
        }
        self.waiting.insert((due, key));
        self.wheel.insert(Tick(due), key);
    }

    fn cancel(&mut self, key: u64) {
        if let Some(due) = self.due_of.remove(&key) {
            self.waiting.remove(&(due, key));
        }
    }

    /// One call, compared with the model's answer.
    fn advance(&mut self, by: u64, limit: usize) -> bool {
        self.now += by;
        let mut out = Vec::new();
        let due_of = &self.due_of;
        let more =
            self.wheel.advance(Tick(self.now), limit, |key| due_of.get(&key).copied().map(Tick), &mut out);
        let expected: Vec<(u64, u64)> =
            self.waiting.range(..=(self.now, u64::MAX)).take(limit).copied().collect();
        let keys: Vec<u64> = expected.iter().map(|(_, key)| *key).collect();
        if more {
            // A call may end early among cancelled keys, but never with the wrong keys.
            assert!(keys.starts_with(&out), "{out:?} instead of {keys:?}");
        } else {
            assert_eq!(out, keys);
        }
        for due in &expected[..out.len()] {
            self.waiting.remove(due);
        }
        let left = self.waiting.first().map(|(due, _)| *due);
        assert!(more || left.is_none_or(|due| due > self.now), "due {left:?} is left at {}", self.now);
        if let Some(due) = left {
            let next = self.wheel.next_due().expect("something waits");
            assert!(next.0 <= due, "the next call would be at {next:?}, and {due} is due before");
        }
        assert!(self.wheel.len() >= self.waiting.len());
        more
    }

    fn sweep(&mut self, most: usize) -> bool {
        let due_of = &self.due_of;
        let ended = self.wheel.sweep(most, |key| due_of.get(&key).copied().map(Tick));
        assert!(self.wheel.len() >= self.waiting.len());
        ended
    }

    fn advance_fully(&mut self, by: u64, limit: usize) {
        let mut by = by;
        while self.advance(by, limit) {
            by = 0;
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { key: u64, delay: i64 },
    Again { key: u64 },
    Cancel { key: u64 },
    Advance { by: u64, limit: usize },
    AdvanceFully { by: u64, limit: usize },
    FollowNextDue,
    Sweep { most: usize },
}

/// Times around every border: ticks, windows, levels, decades.
fn span() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..8u64,
        4 => 0..5_000u64,
        2 => 0..10_000_000u64,
        2 => 0..20_000_000_000u64,
        1 => 0..330_000_000_000u64,
        2 => (0..40u32, 0..3u64).prop_map(|(bits, near)| (1u64 << bits) + near - 1),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..40u64;
    prop_oneof![
        6 => (key(), span(), 0..10u8).prop_map(|(key, delay, past)| Op::Insert {
            key,
            delay: if past == 0 { -((delay % 10_000) as i64) } else { delay as i64 },
        }),
        1 => key().prop_map(|key| Op::Again { key }),
        2 => key().prop_map(|key| Op::Cancel { key }),
        3 => (span(), 0..6usize).prop_map(|(by, limit)| Op::Advance { by, limit }),
        2 => (span(), 1..6usize).prop_map(|(by, limit)| Op::AdvanceFully { by, limit }),
        2 => Just(Op::FollowNextDue),
        2 => prop_oneof![0..8usize, Just(1_000)].prop_map(|most| Op::Sweep { most }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_wheel_yields_what_the_model_yields(
        start in prop_oneof![Just(0u64), Just((1 << 41) - 3), 1_700_000_000_000..1_900_000_000_000u64],
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut model = Model::new(start);
        for op in ops {
            match op {
                Op::Insert { key, delay } => {
                    let due = model.now.saturating_add_signed(delay);
                    model.insert(key, due);
                }
                // Away and back: two entries of one due time, and one yield.
                Op::Again { key } => {
                    if let Some(&due) = model.due_of.get(&key) {
                        model.insert(key, due + 3_000);
                        model.insert(key, due);
                    }
                }
                Op::Cancel { key } => model.cancel(key),
                Op::Advance { by, limit } => {
                    model.advance(by, limit);
                }
                Op::AdvanceFully { by, limit } => model.advance_fully(by, limit),
                Op::Sweep { most } => {
                    model.sweep(most);
                }
                Op::FollowNextDue => {
                    if let Some(next) = model.wheel.next_due() {
                        model.advance_fully(next.0.saturating_sub(model.now), 3);
                    }
                }
            }
        }
        // Only those who follow the wheel's own advice must also reach the end.
        while let Some(next) = model.wheel.next_due() {
            model.advance_fully(next.0.saturating_sub(model.now), 7);
        }
        prop_assert!(model.waiting.is_empty());
        prop_assert!(model.wheel.is_empty());
    }

    #[test]
    fn steady_time_yields_what_the_model_yields(
        delays in prop::collection::vec((0..9_000u64, 0..12u64), 1..400),
        step in 1..40u64,
    ) {
        let mut model = Model::new(1_800_000_000_000);
        for (key, (delay, pause)) in delays.into_iter().enumerate() {
            model.insert(key as u64, model.now + delay);
            model.advance_fully(pause, 2);
        }
        while !model.wheel.is_empty() {
            model.advance_fully(step, 3);
        }
        prop_assert!(model.waiting.is_empty());
    }
}

#[test]
fn a_million_keys_of_one_tick_come_out_in_bounded_calls() {
    let mut wheel = Wheel::new(Tick(1_000));
    for key in (0..1_000_000).rev() {
        wheel.insert(Tick(5_000_000), key);
    }
    let mut out = Vec::new();
    assert!(!wheel.advance(Tick(4_999_999), 10_000, |_| Some(Tick(5_000_000)), &mut out));
    assert!(out.is_empty(), "never early");
    let mut calls = 0;
    while wheel.advance(Tick(5_000_000), 10_000, |_| Some(Tick(5_000_000)), &mut out) {
        calls += 1;
        assert_eq!(out.len(), calls * 10_000);
    }
    assert!(out.iter().copied().eq(0..1_000_000));
}

#[test]
fn crowded_ticks_stay_in_order_among_late_insertions_and_returns() {
    let mut model = Model::new(1_800_000_000_000);
    // Enough for several chunks of each tick, from different distances, in no order of keys.
    for at in 0..12_000u64 {
        let (key, spans) = (at * 7_919 % 12_000, [300, 70_000, 140_000]);
        let span = spans[at as usize % spans.len()];
        model.insert(key, 1_800_000_000_000 + span + at % 4);
    }
    // Away and back: two entries of one tick.
    for key in (0..12_000).step_by(17) {
        let due = model.due_of[&key];
        model.insert(key, due + 400);
        model.insert(key, due);
    }
    let mut late = 20_000;
    while let Some(next) = model.wheel.next_due() {
        let mut by = next.0.saturating_sub(model.now);
        while model.advance(by, 700) {
            by = 0;
            if late < 20_200 {
                // Before, at and after the ticks that are handed out.
                (0..4).for_each(|back| model.insert(late + back * 1_000, model.now - back));
                // Some keys between those of the tick.
                model.insert(late % 12_000 + 1, model.now);
                late += 7;
            }
        }
    }
    assert!(late > 20_050, "insertions while a tick was handed out");
    assert!(model.waiting.is_empty());
    assert!(model.wheel.is_empty());
}

#[test]
fn a_crowd_of_cancelled_keys_does_not_hold_a_call() {
    let mut wheel = Wheel::new(Tick(0));
    for key in 0..100_000 {
        wheel.insert(Tick(10), key);
    }
    let (mut looks, mut out) = (0, Vec::new());
    let look = |key| {
        looks += 1;
        (key == 99_999).then_some(Tick(10))
    };
    assert!(wheel.advance(Tick(10), 100, look, &mut out));
    assert!(out.is_empty());
    assert!(looks <= 400, "{looks} keys looked at for a limit of 100");
}

#[test]
fn memory_is_near_that_of_the_keys_and_returns() {
    let mut wheel = Wheel::new(Tick(0));
    let empty = wheel.memory_bytes();
    let count = 2_000_000;
    for key in 0..count {
        wheel.insert(Tick(1 + key * 7_919 % 3_600_000), key);
    }
    let per_entry = (wheel.memory_bytes() - empty) as f64 / count as f64;
    assert!(per_entry < 9.0, "{per_entry} bytes an entry");
    let mut out = Vec::new();
    while wheel.advance(Tick(3_600_000), 10_000, |_| None, &mut out) {}
    assert!(wheel.is_empty());
    assert!(wheel.memory_bytes() < empty + (4 << 20), "an empty wheel keeps little");
}

#[test]
fn entries_come_down_gradually_while_time_passes() {
    let mut wheel = Wheel::new(Tick(0));
    // All of them in one slot of 66 seconds, two further on.
    for key in 0..300_000 {
        wheel.insert(Tick(131_072 + key % 65_536), key);
    }
    let (mut out, mut most, mut before) = (Vec::new(), 0, 300_000);
    for now in 0..131_072 {
        assert!(!wheel.advance(Tick(now), usize::MAX, |_| None, &mut out));
        let waiting = wheel.levels[1].slot_len(2);
        most = most.max(before - waiting);
        before = waiting;
    }
    assert_eq!((out.len(), before), (0, 0));
    assert!(most < 2 * BATCH_ENTRIES, "{most} entries came down in one millisecond");
}

#[test]
fn a_sweep_drops_the_dead_and_keeps_the_living() {
    let mut model = Model::new(1_800_000_000_000);
    let spans = [600, 70_000, 1 << 24, 1 << 30, 1 << 36];
    for key in 0..5_000u64 {
        let span = spans[key as usize % spans.len()];
        model.insert(key, model.now + span + key * 7_919 % span);
    }
    for key in (0..5_000).filter(|key| key % 4 != 0) {
        model.cancel(key);
    }
    for key in (0..5_000).step_by(40) {
        let due = model.due_of[&key];
        model.insert(key, due + 5_000);
    }
    let mut calls = 1;
    while !model.sweep(64) {
        calls += 1;
    }
    assert!((5_000 / 64..200).contains(&calls), "{calls} calls of 64 for 5,000 entries");
    assert_eq!(model.wheel.len(), 1_250);
    while let Some(next) = model.wheel.next_due() {
        model.advance_fully(next.0 - model.now, 100);
    }
    assert!(model.waiting.is_empty());
}

#[test]
fn a_sweep_that_time_overtook_starts_on_what_is_there_now() {
    let mut model = Model::new(0);
    model.insert(1, 600);
    model.insert(2, 600);
    assert!(!model.sweep(1), "it rests in the middle of a slot");
    model.advance_fully(131_000, 10);
    assert!(model.waiting.is_empty());
    // Once around the ring, in the place of that slot.
    model.insert(3, 600 + (512 << 8));
    assert!(model.sweep(10));
    model.advance_fully(10_000, 10);
    assert!(model.waiting.is_empty());
}

#[test]
fn what_is_taken_many_at_a_time_is_what_would_be_yielded_each_once_and_in_the_order_of_its_tick() {
    let mut wheel = Wheel::new(Tick(1_000));
    let mut expected = BTreeSet::new();
    for key in 0..2_000 {
        let due = 1_100 + key % 3;
        wheel.insert(Tick(due), key);
        expected.insert((due, key));
    }
    let mut yielded = Vec::new();
    assert!(wheel.advance(Tick(1_200), 50, |key| Some(Tick(1_100 + key % 3)), &mut yielded));
    for key in yielded {
        assert!(expected.remove(&(1_100, key)));
    }
    // Earlier ones, and one that is there already.
    for (due, key) in [(1_050, 5_000), (1_101, 5_001), (1_100, 1_800)] {
        wheel.insert(Tick(due), key);
        expected.insert((due, key));
    }
    let (mut taken, mut calls) = (Vec::new(), 0);
    let due_of = |key| Some(Tick(1_100 + key % 3));
    while wheel.take_due(Tick(1_200), 300, due_of, |tick, keys| {
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        taken.extend(keys.iter().map(|key| (tick.0, *key)));
    }) {
        calls += 1;
    }
    assert!(calls >= 5, "300 at a time at most: {calls}");
    taken.sort_unstable();
    assert_eq!(taken, expected.into_iter().collect::<Vec<_>>());
    assert!(wheel.is_empty());
}

#[test]
fn a_tick_of_very_many_keys_is_yielded_in_parts_each_key_once_also_one_that_came_back() {
    for by_advance in [true, false] {
        let mut wheel = Wheel::new(Tick(0));
        (1..=10_000).for_each(|key| wheel.insert(Tick(300), key));
        let mut yielded = Vec::new();
        let due_of = |_| Some(Tick(300));
        let take = |wheel: &mut Wheel, most, yielded: &mut Vec<u64>| {
            if by_advance {
                return wheel.advance(Tick(300), most, due_of, yielded);
            }
            wheel.take_due(Tick(300), most, due_of, |_, keys| yielded.extend(keys))
        };
        assert!(take(&mut wheel, 700, &mut yielded));
        assert!(wheel.run.len() < 1_000, "the rest is where it was: {}", wheel.run.len());
        assert_eq!((wheel.len(), wheel.next_due()), (9_300, Some(Tick(300))));
        // Rescheduled away and back: it is due once.
        wheel.insert(Tick(300), 9_999);
        let mut calls = 0;
        while take(&mut wheel, 700, &mut yielded) {
            calls += 1;
            assert!(calls < 100, "each yields something");
        }
        assert!(yielded.iter().copied().eq(1..=10_000), "{} keys", yielded.len());
        assert!(wheel.is_empty() && wheel.next_due().is_none());
    }
}
