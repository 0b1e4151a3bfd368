//! The timing wheel at ten million entries due over ten minutes, and the intrusive alternative.
//!
//! `expire` counts everything from the first tick to the last: moving down, sorting within each tick,
//! and the owner's look-ups in a table of 160 MB; `expire_without_table` computes due times instead.
//! Keys are inserted ascending before the first of them is due, so few ticks need sorting; `steady` inserts while
//! others come due, as a shard does, and has old and new keys mixed in each tick.
//! `cancel` is what a cancel costs: the owner's removal here, unlinking there.
#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use escapement_bench::Random;
use escapement_bench::clock::Stopwatch;
use escapement_bench::intrusive::IntrusiveWheel;
use escapement_bench::table::Table;
use escapement_engine::wheel::{Tick, Wheel};

const ENTRIES: u64 = 10_000_000;
const SPAN_MS: u64 = 600_000;
const START_MS: u64 = 1_800_000_000_000;
const CANCELLED: usize = ENTRIES as usize / 10;

fn dues() -> Vec<u64> {
    let mut random = Random(7);
    (0..ENTRIES).map(|_| START_MS + 1 + random.below(SPAN_MS)).collect()
}

/// A tenth of all sequences, in random order.
fn to_cancel() -> Vec<u64> {
    let mut random = Random(11);
    let mut sequences: Vec<u64> = (0..ENTRIES).step_by(10).collect();
    for at in (1..sequences.len()).rev() {
        sequences.swap(at, random.below(at as u64 + 1) as usize);
    }
    sequences
}

fn filled(dues: &[u64]) -> (Wheel, Duration) {
    let mut wheel = Wheel::new(Tick(START_MS));
    let began = Stopwatch::start();
    for (sequence, due) in (0..).zip(dues) {
        wheel.insert(Tick(*due), sequence);
    }
    (wheel, began.elapsed())
}

fn table(dues: &[u64]) -> Table {
    let mut table = Table::default();
    for (sequence, due) in (0..).zip(dues) {
        table.insert(sequence, *due, sequence);
    }
    table
}

/// A due time that needs no memory.
fn computed(sequence: u64) -> u64 {
    START_MS + 1 + (((sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) * SPAN_MS) >> 32)
}

fn expire(wheel: &mut Wheel, due_of: impl Fn(u64) -> Option<u64>) -> (u64, Duration) {
    let (mut out, mut count) = (Vec::new(), 0);
    let began = Stopwatch::start();
    for now in START_MS..=START_MS + SPAN_MS {
        while wheel.advance(Tick(now), 4_096, |key| due_of(key).map(Tick), &mut out) {}
        count += out.len() as u64;
        out.clear();
    }
    (count, began.elapsed())
}

/// Events that arrive in each millisecond of [`steady`], due within 30 s of it.
const STEADY_PER_MS: u64 = 100;
const STEADY_MS: u64 = 90_000;

/// Inserts and expires at one rate. Counts what was yielded.
fn steady(delays: &[u64]) -> (u64, Duration) {
    let mut wheel = Wheel::new(Tick(START_MS));
    let due = |key: u64| Tick(START_MS + key / STEADY_PER_MS + delays[key as usize % delays.len()]);
    let (mut out, mut count) = (Vec::new(), 0);
    let began = Stopwatch::start();
    for now in 0..STEADY_MS {
        (now * STEADY_PER_MS..(now + 1) * STEADY_PER_MS).for_each(|key| wheel.insert(due(key), key));
        while wheel.advance(Tick(START_MS + now), 4_096, |key| Some(due(key)), &mut out) {}
        count += out.len() as u64;
        out.clear();
    }
    (count, began.elapsed())
}

fn intrusive(dues: &[u64]) -> (IntrusiveWheel, Vec<u32>, Duration) {
    let mut wheel = IntrusiveWheel::new(START_MS);
    let mut handles = Vec::with_capacity(dues.len());
    let began = Stopwatch::start();
    for (sequence, due) in (0..).zip(dues) {
        handles.push(wheel.insert(*due, sequence));
    }
    (wheel, handles, began.elapsed())
}

fn times(iterations: u64, mut one: impl FnMut() -> Duration) -> Duration {
    (0..iterations).map(|_| one()).sum()
}

fn wheel(c: &mut Criterion) {
    let dues = dues();
    let cancelled = to_cancel();
    let mut group = c.benchmark_group("wheel");
    group.sample_size(10).throughput(Throughput::Elements(ENTRIES));
    group.bench_function("insert", |b| b.iter_custom(|n| times(n, || filled(&dues).1)));
    let all = table(&dues);
    group.bench_function("expire", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let (count, took) = expire(&mut filled(&dues).0, |key| all.due(key));
                assert_eq!(count, ENTRIES);
                took
            })
        });
    });
    let no_table: Vec<u64> = (0..ENTRIES).map(computed).collect();
    group.bench_function("expire_without_table", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let (count, took) = expire(&mut filled(&no_table).0, |key| Some(computed(key)));
                assert_eq!(count, ENTRIES);
                took
            })
        });
    });
    let mut random = Random(13);
    let delays: Vec<u64> = (0..1 << 16).map(|_| 1 + random.below(30_000)).collect();
    group.throughput(Throughput::Elements(steady(&delays).0));
    group.bench_function("steady", |b| b.iter_custom(|n| times(n, || steady(&delays).1)));
    group.throughput(Throughput::Elements(CANCELLED as u64));
    group.bench_function("cancel", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let mut table = table(&dues);
                let began = Stopwatch::start();
                for sequence in &cancelled {
                    black_box(table.remove(*sequence));
                }
                began.elapsed()
            })
        });
    });
    group.throughput(Throughput::Elements(1_000_000));
    group.bench_function("a_million_in_one_tick", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let mut wheel = Wheel::new(Tick(START_MS));
                (0..1_000_000).for_each(|key| wheel.insert(Tick(START_MS + 1), key));
                let mut out = Vec::with_capacity(1 << 20);
                let began = Stopwatch::start();
                while wheel.advance(Tick(START_MS + 1), 4_096, |_| Some(Tick(START_MS + 1)), &mut out) {}
                assert_eq!(out.len(), 1_000_000);
                began.elapsed()
            })
        });
    });
    group.finish();
}

fn alternative(c: &mut Criterion) {
    let dues = dues();
    let cancelled = to_cancel();
    let mut group = c.benchmark_group("intrusive");
    group.sample_size(10).throughput(Throughput::Elements(ENTRIES));
    group.bench_function("insert", |b| b.iter_custom(|n| times(n, || intrusive(&dues).2)));
    group.bench_function("expire", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let (mut wheel, ..) = intrusive(&dues);
                let (mut out, mut count) = (Vec::new(), 0);
                let began = Stopwatch::start();
                for _ in 0..SPAN_MS {
                    wheel.tick(&mut out);
                    count += out.len() as u64;
                    out.clear();
                }
                assert_eq!(count, ENTRIES);
                began.elapsed()
            })
        });
    });
    group.throughput(Throughput::Elements(CANCELLED as u64));
    group.bench_function("cancel", |b| {
        b.iter_custom(|n| {
            times(n, || {
                let (mut wheel, handles, _) = intrusive(&dues);
                let began = Stopwatch::start();
                for sequence in &cancelled {
                    wheel.cancel(handles[*sequence as usize]);
                }
                began.elapsed()
            })
        });
    });
    group.finish();
}

criterion_group!(benches, wheel, alternative);
criterion_main!(benches);
