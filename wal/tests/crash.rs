//! Power cuts and kills at any moment, in recovery too: nothing acknowledged is lost, and what is found is a prefix.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use common::{IDENTITY, Rig, records};
use escapement_protocol::WallMs;
use escapement_wal::conformance::Found;
use escapement_wal::memory::{Faults, MemDisk, Rng};
use escapement_wal::*;

/// Bugs planted in what drives the log, to see that the check finds them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// Completions are reported before the writes happen.
    CompletesEarly,
    /// Recovery's syncs do nothing.
    IgnoresSync,
    /// Writes of `SUPER` are reported and never happen.
    DropsSuper,
}

/// The disk as recovery sees it, through the bug.
struct Buggy<'a> {
    disk: &'a mut MemDisk,
    bug: Bug,
}

impl Directory for Buggy<'_> {
    fn list(&mut self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn size(&mut self, path: &str) -> io::Result<Option<u64>> {
        self.disk.size(path)
    }
    fn read_at(&mut self, path: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(path, offset, buf)
    }
    fn write_at(&mut self, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(path, offset, bytes)
    }
    fn create_zeroed(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        self.disk.create_zeroed(path, size_bytes)
    }
    fn create_dir(&mut self, dir: &str) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync(&mut self, path: &str) -> io::Result<()> {
        if self.bug == Bug::IgnoresSync { Ok(()) } else { self.disk.sync(path) }
    }
    fn sync_dir(&mut self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

/// One life of a log over many crashes, and the model that it is held against.
struct Life {
    rng: Rng,
    disk: MemDisk,
    config: WalConfig,
    wal: LocalWal,
    bug: Bug,
    /// Blocks with records that were submitted and not given up by a crash.
    written: BTreeMap<BlockSeq, Found>,
    acknowledged: BlockSeq,
    trimmed: BlockSeq,
    /// What the log called trimmed for good.
    trimmed_through: BlockSeq,
    /// Operations that a bug has reported already.
    reported: BTreeSet<OpId>,
    tag: u64,
}

impl Life {
    fn new(seed: u64, bug: Bug) -> Life {
        let mut rng = Rng::new(seed);
        let segment_sectors = [6, 8, 16][rng.below(3) as usize];
        let config = WalConfig {
            segment_size_bytes: segment_sectors * 4096,
            extent_size_bytes_max: 16 * 1024,
            spare_count: 1 + rng.below(2) as u32,
            ahead_count: 1,
            log_size_bytes_max: (4 + rng.below(6)) * segment_sectors * 4096,
            in_flight_count_max: 1 + rng.below(4) as usize,
            accept_loss: None,
        };
        let mut disk = MemDisk::new(rng.next_u64());
        format_log(&mut disk, IDENTITY, &config).expect("an empty disk can be formatted");
        let (wal, _) = open(&mut disk, IDENTITY, &config, &mut |_| {}).expect("a new log opens");
        let acknowledged = wal.durable();
        Life {
            rng,
            disk,
            config,
            wal,
            bug,
            written: BTreeMap::new(),
            acknowledged,
            trimmed: BlockSeq(0),
            trimmed_through: BlockSeq(0),
            reported: BTreeSet::new(),
            tag: 0,
        }
    }

    fn pump(&mut self) {
        while let Some(op) = self.wal.poll_op() {
            match op {
                DiskOp::Write { id, file, buf, .. }
                    if self.bug == Bug::DropsSuper && file == FileId::Super =>
                {
                    self.wal.on_completion(DiskCompletion { id, result: Ok(()), buf: Some(buf) });
                }
                DiskOp::Write { id, .. } if self.bug == Bug::CompletesEarly => {
                    self.disk.submit(op);
                    self.reported.insert(id);
                    self.wal.on_completion(DiskCompletion { id, result: Ok(()), buf: None });
                }
                op => self.disk.submit(op),
            }
        }
    }

    fn step(&mut self) -> bool {
        self.pump();
        let Some(completion) = self.disk.step() else { return false };
        if !self.reported.remove(&completion.id) {
            self.wal.on_completion(completion);
        }
        self.pump();
        self.note_promises();
        true
    }

    /// What must hold whatever happens next.
    fn note_promises(&mut self) {
        self.acknowledged = self.acknowledged.max(self.wal.durable());
        self.trimmed_through = self.trimmed_through.max(self.wal.trimmed_through());
    }

    fn act(&mut self) {
        match self.rng.below(16) {
            0..=5 => self.submit(),
            6..=12 => {
                self.step();
            }
            13 => {
                let kept = self.rng.below(20);
                let upto = BlockSeq(self.wal.durable().0.saturating_sub(kept));
                self.trimmed = self.trimmed.max(upto);
                self.wal.trim(upto);
            }
            14 => {
                self.wal.seal_idle();
            }
            _ => self.wal.heal(),
        }
        self.pump();
        self.note_promises();
    }

    fn submit(&mut self) {
        let size_bytes = match self.rng.below(4) {
            0 => self.config.records_size_bytes_max(),
            1 => 1 + self.rng.below(self.config.records_size_bytes_max() as u64) as usize,
            _ => 8 + self.rng.below(3_000) as usize,
        };
        self.tag += 1;
        let found = Found {
            seq: BlockSeq(0),
            leader_time: WallMs(self.tag),
            record_count: 1 + self.rng.below(100) as u32,
            records: records(self.tag, size_bytes),
        };
        let content = BlockContent {
            records: &found.records,
            record_count: found.record_count,
            leader_time: found.leader_time,
        };
        match self.wal.submit(content) {
            Ok(seq) => {
                self.written.insert(seq, Found { seq, ..found });
            }
            Err(error) => assert!(
                matches!(error, LogError::Backpressure | LogError::Full | LogError::Poisoned),
                "refused with {error}"
            ),
        }
    }

    /// Opens, and holds what is found against the model.
    fn open_and_check(&mut self) -> Result<(), String> {
        let (found, report) = loop {
            let mut found = Vec::new();
            let mut next = None;
            let mut gap = None;
            let mut visitor = |block: RecoveredBlock<'_>| {
                if next.is_some_and(|next| next != block.seq) {
                    gap = Some(block.seq);
                }
                next = Some(block.seq.next());
                found.extend(Found::from_recovered(&block));
            };
            let mut dir = Buggy { disk: &mut self.disk, bug: self.bug };
            let opened = open(&mut dir, IDENTITY, &self.config, &mut visitor);
            if let Some(seq) = gap {
                return Err(format!("a gap before block {seq}"));
            }
            match opened {
                Ok((wal, report)) => {
                    self.wal = wal;
                    break (found, report);
                }
                Err(OpenError::Io { source, .. }) if source.to_string() == "the power failed" => {
                    self.disk.power_cut();
                    self.maybe_fail_power();
                }
                Err(error) => return Err(format!("refused: {error}")),
            }
        };
        if report.last < self.acknowledged {
            return Err(format!(
                "block {} was acknowledged, the log ends at {}",
                self.acknowledged, report.last
            ));
        }
        if report.first > self.trimmed.next() {
            return Err(format!("trimmed up to {}, the log begins at {}", self.trimmed, report.first));
        }
        if report.first <= self.trimmed_through {
            let (upto, first) = (self.trimmed_through, report.first);
            return Err(format!("trimmed for good up to {upto}, the log begins at {first}"));
        }
        self.written = self.written.split_off(&report.first);
        // A block that was never acknowledged may be gone, and all after it: an opening that the power cut short may
        // have put its own block there.
        let survived = |seq: &BlockSeq| found.binary_search_by_key(seq, |block| block.seq).is_ok();
        let first_lost = self.written.keys().copied().find(|seq| !survived(seq));
        if let Some(lost) = first_lost {
            if lost <= self.acknowledged {
                return Err(format!("block {lost} was acknowledged and is gone"));
            }
            self.written.split_off(&lost);
        }
        if !self.written.values().eq(found.iter()) {
            return Err("what is found is not a prefix of what was written".to_owned());
        }
        self.acknowledged = self.wal.durable();
        self.trimmed_through = self.wal.trimmed_through();
        if self.trimmed_through.next() != report.first {
            return Err(format!("the log begins at {}, not behind {}", report.first, self.trimmed_through));
        }
        self.reported.clear();
        Ok(())
    }

    fn maybe_fail_power(&mut self) {
        let power_fails_after = self.rng.one_in(2).then(|| self.rng.below(14) as u32);
        self.disk.set_faults(Faults { power_fails_after, ..Faults::default() });
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..6 {
            let write_fails_after = self.rng.one_in(6).then(|| self.rng.below(60) as u32);
            let no_space = self.rng.one_in(6);
            self.disk.set_faults(Faults { write_fails_after, no_space, ..Faults::default() });
            for _ in 0..self.rng.below(160) {
                self.act();
                if self.wal.error() == Some(LogError::Poisoned) {
                    let frozen = self.wal.durable();
                    while self.step() {}
                    if self.wal.durable() != frozen {
                        return Err("the watermark rose after a failed write".to_owned());
                    }
                    break;
                }
            }
            self.disk.set_faults(Faults::default());
            if self.rng.one_in(2) {
                self.disk.kill();
            } else {
                self.disk.power_cut();
            }
            self.maybe_fail_power();
            self.open_and_check()?;
            let (before, last) = (self.written.clone(), self.wal.durable());
            // What opening showed must stay, whatever happens next.
            self.disk.set_faults(Faults::default());
            if self.rng.one_in(2) {
                self.disk.power_cut();
            }
            self.open_and_check()?;
            if self.written != before || self.wal.durable() != last.next() {
                return Err("opening twice found something else".to_owned());
            }
        }
        Ok(())
    }
}

fn seed_that_finds(bug: Bug, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| Life::new(seed, bug).run().err().map(|fault| (seed, fault)))
}

/// How many lives each run leads; `WAL_CRASH_SEEDS=from..to` leads others.
fn seeds() -> std::ops::Range<u64> {
    let named = std::env::var("WAL_CRASH_SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    // Without optimisation a life takes a fifth of a second.
    named.unwrap_or(0..if cfg!(debug_assertions) { 100 } else { 2_000 })
}

#[test]
fn crashes_at_any_moment_lose_nothing_that_was_acknowledged() {
    if let Some((seed, fault)) = seed_that_finds(Bug::None, seeds()) {
        panic!("WAL_CRASH_SEEDS={seed}..{}: {fault}", seed + 1);
    }
}

#[test]
fn a_driver_that_completes_early_is_caught() {
    assert!(seed_that_finds(Bug::CompletesEarly, 0..50).is_some());
}

#[test]
fn a_recovery_that_does_not_sync_what_it_read_is_caught() {
    assert!(seed_that_finds(Bug::IgnoresSync, 0..200).is_some());
}

#[test]
fn a_segment_recycled_before_super_let_go_of_it_is_caught() {
    assert!(seed_that_finds(Bug::DropsSuper, 0..50).is_some());
}

#[test]
fn a_block_is_trimmed_for_good_only_once_super_says_so() {
    let mut seen_again = 0;
    for seed in 0..40 {
        let mut rig = Rig::new(seed, WalConfig::tiny());
        for tag in 0..20 {
            while rig.submit(&records(tag, 6_000)).is_err() {
                assert!(rig.step());
            }
        }
        rig.settle();
        assert_eq!(rig.wal.trimmed_through(), BlockSeq(0));
        let upto = rig.wal.usage().oldest_sealed_last_block_seq.expect("many segments are sealed");
        rig.wal.trim(upto);
        let told = rig.wal.usage().oldest_block_seq;
        assert_eq!(
            (told, rig.wal.trimmed_through()),
            (upto.next(), BlockSeq(0)),
            "SUPER is still to be written"
        );
        for _ in 0..seed % 4 {
            rig.step();
        }
        let promised = rig.wal.trimmed_through();
        assert!(promised == BlockSeq(0) || promised == upto);
        rig.disk.power_cut();
        let (_, report) = rig.reopen().expect("a log opens after a power cut");
        assert!(report.first > promised, "seed {seed}");
        assert_eq!(rig.wal.trimmed_through().next(), report.first);
        seen_again += u32::from(report.first < told);
    }
    assert!(seen_again > 0, "a trim that SUPER does not know yet can be lost");
}
