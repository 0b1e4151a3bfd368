//! What a task costs in a shard alone, by stage, with a million events pending; and with two million of which most are
//! in runs, where every task goes through one.
#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use escapement_bench::far::{self, FarLoad};
use escapement_bench::shard::{PER_TURN, STAGES, ShardLoad};

const PENDING: usize = 1_000_000;
const TURNS: usize = 100;

fn shard(c: &mut Criterion) {
    let mut load = ShardLoad::new(PENDING);
    let mut group = c.benchmark_group("shard");
    group.sample_size(20).throughput(Throughput::Elements((TURNS * PER_TURN) as u64));
    let measure = |load: &mut ShardLoad, n: u64| {
        load.spent = [Duration::ZERO; STAGES.len()];
        load.turns(TURNS * n as usize);
        load.spent
    };
    group.bench_function("task", |b| b.iter_custom(|n| measure(&mut load, n).iter().sum()));
    for (at, stage) in STAGES.iter().enumerate() {
        group.bench_function(*stage, |b| b.iter_custom(|n| measure(&mut load, n)[at]));
    }
    group.finish();
}

fn through_runs(c: &mut Criterion) {
    let mut load = FarLoad::new(2 * PENDING);
    let mut group = c.benchmark_group("far");
    group.sample_size(10).throughput(Throughput::Elements((TURNS * PER_TURN) as u64));
    let measure = |load: &mut FarLoad, n: u64| {
        load.spent = [Duration::ZERO; far::STAGES.len()];
        load.turns(TURNS * n as usize);
        load.spent
    };
    group.bench_function("task", |b| b.iter_custom(|n| measure(&mut load, n).iter().sum()));
    for (at, stage) in far::STAGES.iter().enumerate() {
        group.bench_function(*stage, |b| b.iter_custom(|n| measure(&mut load, n)[at]));
    }
    group.finish();
}

criterion_group!(benches, shard, through_runs);
criterion_main!(benches);
