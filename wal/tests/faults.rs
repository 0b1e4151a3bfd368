//! Errors of the disk while the log runs, and everything else that opening refuses.

mod common;

use common::{IDENTITY, Rig, records};
use escapement_protocol::ShardId;
use escapement_wal::memory::{Faults, MemDisk};
use escapement_wal::*;

fn rig() -> Rig {
    Rig::new(1, WalConfig::tiny())
}

/// A log with data in several segments.
fn used_rig() -> Rig {
    let mut rig = rig();
    for tag in 0..30 {
        while rig.submit(&records(tag, 6_000)).is_err() {
            assert!(rig.step());
        }
    }
    rig.settle();
    rig
}

fn refusal(rig: &mut Rig) -> OpenError {
    rig.reopen().map(|(_, report)| report).expect_err("this log must not open")
}

#[test]
fn the_first_failed_write_poisons_the_log() {
    let mut rig = rig();
    rig.submit(&records(1, 100)).expect("a new log takes a block");
    rig.settle();
    let before = rig.wal.durable();
    rig.disk.set_faults(Faults { write_fails_after: Some(0), ..Faults::default() });
    rig.submit(&records(2, 100)).expect("the fault shows later");
    rig.settle();
    assert_eq!(rig.wal.error(), Some(LogError::Poisoned));
    assert!(rig.wal.poison_cause().is_some());
    assert_eq!(rig.submit(&records(3, 100)), Err(LogError::Poisoned));
    assert_eq!(rig.wal.seal_idle(), None);
    assert_eq!(rig.wal.read(before), Err(LogError::Poisoned));
    assert!(!rig.wal.ready());
    assert_eq!(rig.wal.durable(), before);
    assert!(rig.wal.poll_op().is_none(), "a poisoned log writes nothing");

    rig.disk.power_cut();
    let (found, _) = rig.reopen().expect("recovery clears the poison");
    assert_eq!(found[0].records, records(1, 100));
    assert_eq!(rig.wal.error(), None);
}

#[test]
fn a_block_completed_after_a_failed_one_is_not_acknowledged() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed, WalConfig::tiny());
        rig.settle();
        let before = rig.wal.durable();
        for tag in 0..4 {
            rig.submit(&records(tag, 100)).expect("four blocks may be in flight");
        }
        rig.disk.set_faults(Faults { write_fails_after: Some(0), ..Faults::default() });
        rig.settle();
        assert_eq!(rig.wal.durable(), before, "seed {seed}: the first completion was a failure");
    }
}

#[test]
fn a_full_disk_refuses_and_heals() {
    let mut rig = rig();
    rig.disk.set_faults(Faults { no_space: true, ..Faults::default() });
    let mut tag = 0;
    let refused = loop {
        match rig.submit(&records(tag, 6_000)) {
            Ok(_) => tag += 1,
            Err(LogError::Backpressure) => assert!(rig.step(), "backpressure with nothing in flight"),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, LogError::Full);
    assert_eq!(rig.wal.error(), Some(LogError::Full));
    assert!(!rig.wal.ready());
    rig.wal.heal();
    rig.settle();
    assert_eq!(rig.wal.error(), Some(LogError::Full), "the disk is still full");
    // What is left of the last segment takes a smaller block, such as one whose records free a segment.
    assert!(rig.wal.is_at_its_end());
    let room = rig.wal.room_size_bytes();
    assert!(room > 0, "{room} bytes");
    let last = vec![7; room];
    rig.submit(&last).expect("it fits");
    rig.settle();
    assert_eq!(rig.wal.room_size_bytes(), 0);
    tag += 1;

    rig.disk.set_faults(Faults::default());
    rig.wal.heal();
    rig.settle();
    assert_eq!(rig.wal.error(), None);
    rig.submit(&records(tag, 6_000)).expect("there is room again");
    rig.settle();
    rig.disk.power_cut();
    assert_eq!(rig.reopen().expect("nothing was damaged").0.len() as u64, tag + 1);
}

#[test]
fn a_log_at_its_limit_is_full_until_it_is_trimmed() {
    let mut rig = rig();
    let mut last = BlockSeq(0);
    let refused = loop {
        match rig.submit(&records(0, 6_000)) {
            Ok(seq) => last = seq,
            Err(LogError::Backpressure) => assert!(rig.step()),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, LogError::Full);
    let usage = rig.wal.usage();
    assert_eq!(usage.size_bytes, rig.config.log_size_bytes_max);
    assert!(usage.free_bytes < 6_000 + 128);
    let frees = usage.oldest_sealed_last_block_seq.expect("many segments are sealed");
    rig.settle();
    rig.wal.trim(BlockSeq(frees.0 - 1));
    assert_eq!(rig.wal.error(), Some(LogError::Full), "one block still holds the oldest segment");
    rig.wal.trim(frees);
    rig.settle();
    assert_eq!(rig.wal.error(), None);
    assert_eq!(rig.wal.usage().oldest_block_seq, frees.next());
    assert_eq!(rig.wal.read(frees), Err(LogError::Unavailable));
    assert!(rig.submit(&records(0, 6_000)).expect("there is room again") > last);
}

#[test]
fn a_full_log_opens_as_often_as_it_takes() {
    let mut rig = rig();
    while rig.submit(&records(0, 6_000)) != Err(LogError::Full) {
        rig.settle();
    }
    let mut count = None;
    for _ in 0..40 {
        rig.disk.kill();
        let (found, _) = rig.reopen().expect("a full log opens, past its limit if it must");
        assert_eq!(*count.get_or_insert(found.len()), found.len());
    }
}

#[test]
fn a_seal_is_written_once_and_only_when_idle() {
    let mut rig = rig();
    rig.settle();
    assert!(!rig.wal.seal_due(), "opening the epoch needs no seal");
    rig.submit(&records(1, 10)).expect("a new log takes a block");
    assert!(!rig.wal.seal_due(), "the block is in flight");
    rig.settle();
    assert!(rig.wal.seal_due());
    let sealed = rig.wal.seal_idle().expect("one is due");
    rig.pump();
    rig.settle();
    assert_eq!(rig.wal.durable(), sealed);
    assert!(!rig.wal.seal_due());
    assert_eq!(rig.wal.seal_idle(), None);
}

#[test]
fn a_directory_without_a_log_is_not_opened_and_one_with_a_log_is_not_formatted() {
    let mut disk = MemDisk::new(1);
    let config = WalConfig::tiny();
    let error = open(&mut disk, IDENTITY, &config, &mut |_| {}).expect_err("nothing is here");
    assert!(matches!(error, OpenError::NotFormatted));
    format_log(&mut disk, IDENTITY, &config).expect("nothing is here");
    let error = format_log(&mut disk, IDENTITY, &config).expect_err("a log is here");
    assert!(matches!(error, OpenError::AlreadyFormatted { .. }));
    disk.remove("SUPER").expect("it is there");
    let error = format_log(&mut disk, IDENTITY, &config).expect_err("segments are here");
    assert!(
        matches!(error, OpenError::AlreadyFormatted { .. }),
        "a log that lost SUPER must not be overwritten"
    );
}

#[test]
fn a_format_cut_short_never_opens_as_a_log_with_another_content() {
    for power_fails_after in 0..12 {
        for seed in 0..20 {
            let mut disk = MemDisk::new(seed);
            let faults = Faults { power_fails_after: Some(power_fails_after), ..Faults::default() };
            disk.set_faults(faults);
            let formatted = format_log(&mut disk, IDENTITY, &WalConfig::tiny());
            disk.power_cut();
            match open(&mut disk, IDENTITY, &WalConfig::tiny(), &mut |_| {}) {
                Ok((_, report)) => assert_eq!(report.block_count, 0),
                Err(OpenError::NotFormatted) => assert!(formatted.is_err()),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn another_shards_directory_is_refused() {
    let mut rig = used_rig();
    for identity in [
        LogIdentity { cluster: 1, ..IDENTITY },
        LogIdentity { shard: ShardId(6), ..IDENTITY },
        LogIdentity { shard_count: 16, ..IDENTITY },
    ] {
        let error = open(&mut rig.disk, identity, &rig.config, &mut |_| {}).expect_err("not this log");
        assert!(matches!(error, OpenError::ForeignSuper { .. }), "{error}");
        assert!(error.to_string().contains(&format!("that of {identity} belongs here")), "{error}");
    }
}

#[test]
fn a_segment_of_another_shard_is_refused() {
    let mut rig = used_rig();
    let other = LogIdentity { shard: ShardId(3), ..IDENTITY };
    let mut disk = MemDisk::new(2);
    format_log(&mut disk, other, &rig.config).expect("nothing is here");
    rig.disk.put("wal/0000.seg", disk.bytes_mut("wal/0000.seg").expect("formatted").clone());
    assert!(matches!(refusal(&mut rig), OpenError::ForeignSegment { shard: 3, .. }));
}

#[test]
fn two_segments_under_each_others_names_are_refused() {
    let mut rig = used_rig();
    rig.disk.rename("wal/0000.seg", "wal/x").expect("it is there");
    rig.disk.rename("wal/0001.seg", "wal/0000.seg").expect("it is there");
    rig.disk.rename("wal/x", "wal/0001.seg").expect("it is there");
    assert!(matches!(refusal(&mut rig), OpenError::ForeignSegment { .. }));
}

#[test]
fn stray_files_are_refused_by_name() {
    for name in ["0001.seg.bak", "lost+found", "4000000000.seg"] {
        let mut rig = used_rig();
        rig.disk.put(&format!("wal/{name}"), vec![0; 4096]);
        match refusal(&mut rig) {
            OpenError::UnexpectedFile { name: found } => assert_eq!(found, name),
            error => panic!("{error}"),
        }
    }
}

#[test]
fn every_missing_segment_that_held_acknowledged_blocks_is_noticed() {
    let rig = used_rig();
    let paths: Vec<String> =
        rig.disk.paths().filter(|path| path.starts_with("wal/")).map(str::to_owned).collect();
    let live_count = rig.wal.usage().segment_count;
    let mut refused_count = 0;
    for path in &paths {
        let mut damaged = Rig::new(1, rig.config);
        damaged.disk = rig.disk.clone();
        damaged.disk.remove(path).expect("listed");
        match damaged.reopen() {
            Ok((found, _)) => assert_eq!(found.len(), 30, "{path} held nothing"),
            Err(OpenError::Corrupt { first, last, .. }) => {
                assert!(first <= last);
                refused_count += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused_count, live_count);
}

#[test]
fn a_truncated_segment_is_refused() {
    let mut rig = used_rig();
    let bytes = rig.disk.bytes_mut("wal/0000.seg").expect("it is there");
    bytes.truncate(32 * 1024);
    assert!(matches!(refusal(&mut rig), OpenError::SegmentSize { found_bytes: 32_768, .. }));
}

#[test]
fn what_an_interrupted_creation_left_is_cleared_away() {
    let mut rig = used_rig();
    let slot_count = rig.wal.usage().slot_count;
    rig.disk.put(&FileId::Slot(slot_count).path(), vec![0; 4096 * 3]);
    let (found, _) = rig.reopen().expect("an unfinished file is nothing to worry about");
    assert_eq!(found.len(), 30);
    assert!(!rig.disk.exists(&FileId::Slot(slot_count).path()).expect("the disk works"));
}

#[test]
fn super_survives_two_rotten_copies_and_says_so_about_three() {
    for lost in 0..16_u32 {
        let mut rig = used_rig();
        let bytes = rig.disk.bytes_mut("SUPER").expect("it is there");
        for copy in 0..4 {
            if lost >> copy & 1 == 1 {
                bytes[copy * 4096 + 40] ^= 1;
            }
        }
        let intact_count = 4 - lost.count_ones() as usize;
        match rig.reopen() {
            Ok((found, _)) => assert!(intact_count >= 2 && found.len() == 30),
            Err(OpenError::SuperDamaged { intact_count: seen }) => {
                assert!(seen == intact_count && intact_count < 2);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn another_format_is_named_and_left_alone() {
    let restated =
        |bytes: &mut [u8], format_at: usize, checksum_at: usize, covered_from: usize, wide: bool| {
            bytes[format_at] = 9;
            if wide {
                let checksum = xxhash_rust::xxh3::xxh3_128(&bytes[covered_from..4096]);
                bytes[checksum_at..checksum_at + 16].copy_from_slice(&checksum.to_le_bytes());
            } else {
                let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[covered_from..4096]);
                bytes[checksum_at..checksum_at + 8].copy_from_slice(&checksum.to_le_bytes());
            }
        };
    let mut rig = used_rig();
    for copy in 0..4 {
        let bytes = rig.disk.bytes_mut("SUPER").expect("it is there");
        restated(&mut bytes[copy * 4096..], 20, 0, 16, true);
    }
    let error = refusal(&mut rig);
    assert!(matches!(error, OpenError::OtherFormat { file: FileId::Super, found: 9 }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");

    let mut rig = used_rig();
    restated(rig.disk.bytes_mut("wal/0001.seg").expect("it is there"), 12, 0, 8, false);
    assert!(matches!(refusal(&mut rig), OpenError::OtherFormat { file: FileId::Slot(1), found: 9 }));
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let tiny = WalConfig::tiny();
    for config in [
        WalConfig { segment_size_bytes: 64 * 1024 + 1, ..tiny },
        WalConfig { segment_size_bytes: 16 * 1024, ..tiny },
        WalConfig { extent_size_bytes_max: 1_000, ..tiny },
        WalConfig { extent_size_bytes_max: 1024 * 1024, segment_size_bytes: 4 << 20, ..tiny },
        WalConfig { in_flight_count_max: 0, ..tiny },
        WalConfig { in_flight_count_max: 5, ..tiny },
        WalConfig { spare_count: 0, ..tiny },
    ] {
        let error =
            format_log(&mut MemDisk::new(1), IDENTITY, &config).expect_err("not a possible configuration");
        assert!(matches!(error, OpenError::InvalidConfig(_)), "{error}");
    }
}
