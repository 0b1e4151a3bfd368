//! Copies of a log that is written to, trimmed and recycled meanwhile.

mod common;

use common::{IDENTITY, Rig, records};
use escapement_wal::conformance::Found;
use escapement_wal::memory::MemDisk;
use escapement_wal::*;

/// The blocks with records that a copy opens to, and the epoch that opening begins.
fn opened(copy: &mut MemDisk) -> (Vec<(BlockSeq, Vec<u8>)>, u32) {
    let mut found = Vec::new();
    let mut visit = |block: RecoveredBlock<'_>| {
        if Found::from_recovered(&block).is_some() {
            found.push((block.seq, block.records.to_vec()));
        }
    };
    let (_, report) = open(copy, IDENTITY, &WalConfig::tiny(), &mut visit).expect("a copy opens");
    (found, report.epoch.0)
}

fn copied(rig: &mut Rig, cut: &LogCut) -> Result<(MemDisk, CopiedLog), CopyError> {
    let mut copy = MemDisk::new(99);
    let done = copy_log(&mut rig.disk, &mut copy, IDENTITY, &rig.config, cut)?;
    check_copy(&mut copy, IDENTITY, &rig.config, cut)?;
    Ok((copy, done))
}

#[test]
fn a_copy_holds_what_was_durable_at_the_cut_and_nothing_that_came_after() {
    for seed in 0..40 {
        let mut rig = Rig::new(seed, WalConfig::tiny());
        let mut written = Vec::new();
        let mut held: Option<LogCut> = None;
        for tag in 0..60 {
            let records = records(tag, 700 + (tag as usize * 977 + seed as usize * 131) % 9_000);
            let Ok(seq) = rig.submit(&records) else { break };
            written.push((seq, records));
            // Blocks are in flight at most cuts.
            if tag % 3 == 0 || rig.wal.in_flight() > 2 {
                rig.step();
            }
            if tag == 25 + seed % 10 {
                held = Some(rig.wal.cut());
            }
            if held.is_none() {
                rig.settle();
                rig.wal.trim(BlockSeq(rig.wal.durable().0.saturating_sub(9)));
            } else if !rig.wal.ready() {
                rig.step();
            }
        }
        let cut = held.expect("a cut was made");
        let (mut copy, done) = copied(&mut rig, &cut).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(done.segment_count, cut.end_segment_id - cut.first_segment_id + 1);
        let (found, epoch) = opened(&mut copy);
        let inside = |seq: &BlockSeq| (cut.first_block_seq..=cut.through).contains(seq);
        written.retain(|(seq, _)| inside(seq));
        assert_eq!(found, written, "seed {seed}");
        assert!(!written.is_empty());
        assert!(epoch > cut.epoch.0 + COPY_EPOCH_STEP);
        let (again, later) = opened(&mut copy);
        assert_eq!((again, later), (found, epoch + 1));
    }
}

#[test]
fn a_copy_of_a_log_that_was_freed_meanwhile_is_refused() {
    let mut rig = Rig::new(1, WalConfig::tiny());
    for tag in 0..8 {
        rig.submit(&records(tag, 15_000)).expect("there is room");
        rig.settle();
    }
    let cut = rig.wal.cut();
    for tag in 8..40 {
        rig.wal.trim(rig.wal.durable());
        rig.settle();
        rig.submit(&records(tag, 15_000)).expect("there is room");
        rig.settle();
    }
    let refused = copied(&mut rig, &cut).expect_err("the first segment was recycled");
    assert!(matches!(refused, CopyError::SegmentMissing(id) if id == cut.first_segment_id), "{refused}");
}

#[test]
fn damage_in_the_log_is_found_in_the_copy() {
    let mut rig = Rig::new(2, WalConfig::tiny());
    for tag in 0..6 {
        rig.submit(&records(tag, 9_000)).expect("there is room");
        rig.settle();
    }
    let cut = rig.wal.cut();
    let path = FileId::Slot(0).path();
    let mut page = AlignedBuf::zeroed(4096);
    rig.disk.read_at(&path, 8192, &mut page).expect("it is there");
    page[300] ^= 1;
    rig.disk.write_at(&path, 8192, &page).expect("it is there");
    let refused = copied(&mut rig, &cut).expect_err("an acknowledged block is damaged");
    assert!(matches!(refused, CopyError::Copy(OpenError::Corrupt { .. })), "{refused}");
}

#[test]
fn a_log_of_which_everything_durable_was_trimmed_is_copied_as_an_empty_one() {
    let mut rig = Rig::new(3, WalConfig::tiny());
    let cut = loop {
        let seq = rig.submit(&records(1, 9_000)).expect("there is room");
        // The first block of a segment is in flight, and all before it is durable and not needed.
        rig.wal.trim(BlockSeq(seq.0 - 1));
        let cut = rig.wal.cut();
        if cut.through < cut.first_block_seq {
            break cut;
        }
        rig.settle();
    };
    let (mut copy, _) = copied(&mut rig, &cut).expect("it is a log");
    assert_eq!(opened(&mut copy).0, []);
}
