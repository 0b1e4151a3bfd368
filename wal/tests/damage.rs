//! Damage to what was acknowledged: found, refused by name, never served as data, never a panic.

mod common;

use common::{IDENTITY, Rig, records};
use escapement_wal::conformance::Found;
use escapement_wal::memory::{MemDisk, Rng};
use escapement_wal::*;

/// A settled, sealed log with some recycled segments, and what it holds.
fn sealed_log(seed: u64) -> (Rig, Vec<Found>) {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new(seed, WalConfig { log_size_bytes_max: 5 * 64 * 1024, ..WalConfig::tiny() });
    let (rounds, kept) = (20 + rng.below(60), 5 + rng.below(20));
    for tag in 0..rounds {
        let size_bytes = 8 + rng.below(9_000) as usize;
        while rig.submit(&records(tag, size_bytes)).is_err() {
            assert!(rig.step(), "a log that is trimmed always takes another block");
        }
        if rng.one_in(2) {
            rig.settle();
        }
        rig.wal.trim(BlockSeq(rig.wal.durable().0.saturating_sub(kept)));
    }
    rig.settle();
    assert!(rig.wal.seal_idle().is_some());
    rig.settle();
    let mut pristine = rig.disk.clone();
    let mut found = Vec::new();
    let mut visitor = |block: RecoveredBlock<'_>| found.extend(Found::from_recovered(&block));
    open(&mut pristine, IDENTITY, &rig.config, &mut visitor).expect("an undamaged log opens");
    assert!(!found.is_empty());
    (rig, found)
}

/// Plants one fault, of at most 4 KiB in one place.
fn damage(disk: &mut MemDisk, rng: &mut Rng) -> String {
    let paths: Vec<String> = disk.paths().map(str::to_owned).collect();
    let path = &paths[rng.below(paths.len() as u64) as usize];
    let other = paths[rng.below(paths.len() as u64) as usize].clone();
    let other = disk.bytes_mut(&other).expect("listed").clone();
    let bytes = disk.bytes_mut(path).expect("listed");
    let sector_at = |rng: &mut Rng, len: usize| rng.below(len as u64 / 4096) as usize * 4096;
    let at = sector_at(rng, bytes.len());
    match rng.below(5) {
        0 => {
            let at = at + rng.below(4096) as usize;
            bytes[at] ^= 1 << rng.below(8);
            format!("a bit of {path} at {at}")
        }
        1 => {
            bytes[at..at + 4096].fill(0);
            format!("zeros in {path} at {at}")
        }
        2 => {
            let at = at + 512 * rng.below(8) as usize;
            bytes[at..at + 512].iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
            format!("noise in {path} at {at}")
        }
        3 => {
            let from = sector_at(rng, bytes.len());
            bytes.copy_within(from..from + 4096, at);
            format!("a write to {path} at {from} misdirected to {at}")
        }
        _ => {
            let from = sector_at(rng, other.len());
            bytes[at..at + 4096].copy_from_slice(&other[from..from + 4096]);
            format!("a write to another file misdirected to {path} at {at}")
        }
    }
}

fn seed_count() -> u64 {
    if cfg!(debug_assertions) { 25 } else { 500 }
}

#[test]
fn one_fault_is_survived_or_refused_and_loses_nothing_silently() {
    let (mut survived, mut refused) = (0, 0);
    for seed in 0..seed_count() {
        let (rig, written) = sealed_log(seed);
        let mut rng = Rng::new(seed ^ 0xda);
        for _ in 0..20 {
            let mut disk = rig.disk.clone();
            let what = damage(&mut disk, &mut rng);
            let mut found = Vec::new();
            let mut visitor = |block: RecoveredBlock<'_>| found.extend(Found::from_recovered(&block));
            match open(&mut disk, IDENTITY, &rig.config, &mut visitor) {
                Ok(_) => {
                    survived += 1;
                    assert_eq!(found, written, "seed {seed}: {what}");
                }
                Err(OpenError::Corrupt { first, last, .. }) => {
                    refused += 1;
                    assert!(first <= last, "seed {seed}: {what}");
                    assert_eq!(found, written[..found.len()], "seed {seed}: {what}");
                    let missing = written.get(found.len()).map(|block| block.seq);
                    assert!(missing.is_none_or(|missing| first <= missing), "seed {seed}: {what}");
                }
                Err(
                    OpenError::DuplicateSegment { .. }
                    | OpenError::ForeignSegment { .. }
                    | OpenError::SuperDamaged { .. },
                ) => refused += 1,
                Err(error) => panic!("seed {seed}: {what}: {error}"),
            }
        }
    }
    assert!(survived > 0 && refused > 0, "{survived} survived, {refused} refused");
}

#[test]
fn any_number_of_faults_never_shows_wrong_data_and_never_panics() {
    for seed in 0..seed_count() {
        let (rig, written) = sealed_log(seed);
        let mut rng = Rng::new(seed ^ 0xbad);
        for _ in 0..20 {
            let mut disk = rig.disk.clone();
            let faults: Vec<String> = (0..2 + rng.below(12)).map(|_| damage(&mut disk, &mut rng)).collect();
            let mut found = Vec::new();
            let mut visitor = |block: RecoveredBlock<'_>| found.extend(Found::from_recovered(&block));
            let _ = open(&mut disk, IDENTITY, &rig.config, &mut visitor);
            assert_eq!(found, written[..found.len()], "seed {seed}: {faults:?}");
        }
    }
}

/// A log of three sealed blocks' worth of damage, its error, and how many blocks come before it.
fn corrupt_log() -> (Rig, OpenError, usize) {
    let (mut rig, written) = sealed_log(5);
    for path in rig.disk.paths().map(str::to_owned).collect::<Vec<_>>() {
        let bytes = rig.disk.bytes_mut(&path).expect("listed");
        let tag = written[1].records[..8].to_vec();
        if let Some(at) = (4096..bytes.len()).step_by(4096).find(|at| bytes[at + 128..at + 136] == tag) {
            bytes[at + 200] ^= 1;
        }
    }
    let error = rig.reopen().expect_err("acknowledged data is damaged");
    (rig, error, 1)
}

#[test]
fn a_refused_log_is_left_as_it_is() {
    let (mut rig, first, _) = corrupt_log();
    let mut paths: Vec<String> = rig.disk.paths().map(str::to_owned).collect();
    let before: Vec<Vec<u8>> =
        paths.iter().filter_map(|path| rig.disk.bytes_mut(path).map(|bytes| bytes.clone())).collect();
    let second = rig.reopen().expect_err("still damaged");
    assert_eq!(first.to_string(), second.to_string());
    let after: Vec<Vec<u8>> =
        paths.drain(..).filter_map(|path| rig.disk.bytes_mut(&path).map(|bytes| bytes.clone())).collect();
    assert_eq!(before, after);
}

#[test]
fn a_loss_is_accepted_only_with_the_token_of_exactly_that_finding() {
    let (mut rig, error, kept_count) = corrupt_log();
    let OpenError::Corrupt { token, first, last, .. } = error else {
        panic!("not what was planted: {error}")
    };
    rig.config.accept_loss = Some(token ^ 1);
    rig.reopen().expect_err("another token is no consent");
    rig.config.accept_loss = Some(token);
    let (found, report) = rig.reopen().expect("the loss is accepted");
    assert_eq!(report.accepted_loss, Some(Loss { first, last }));
    assert_eq!(found.len(), kept_count);

    // Nothing that was given up may haunt a later opening, also after the log has grown again.
    rig.config.accept_loss = None;
    for tag in 100..130 {
        while rig.submit(&records(tag, 3_000)).is_err() {
            assert!(rig.step());
        }
    }
    rig.settle();
    rig.disk.power_cut();
    let (found, report) = rig.reopen().expect("the log is whole again");
    assert_eq!(report.accepted_loss, None);
    assert_eq!(found.len(), kept_count + 30);
}
