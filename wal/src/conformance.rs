//! What every [`ShardLog`] must do, as checks that run over any implementation.
//!
//! A check panics with the claim that does not hold.

use escapement_protocol::WallMs;

use crate::format::BlockKind;
use crate::log::{BlockContent, BlockSeq, LogError, ShardLog};
use crate::recovery::RecoveredBlock;

/// A log under test, with whatever drives it.
pub trait Subject {
    /// The log.
    fn log(&mut self) -> &mut dyn ShardLog;

    /// Lets one piece of background work happen; answers false when there was none.
    fn drive(&mut self) -> bool;

    /// Stops without warning, loses what is not durable, opens again, and answers the records of every block found.
    fn crash(&mut self) -> Vec<Found>;
}

/// A block with records that was found after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its position.
    pub seq: BlockSeq,
    /// The time it was submitted with.
    pub leader_time: WallMs,
    /// The count it was submitted with.
    pub record_count: u32,
    /// Its records.
    pub records: Vec<u8>,
}

impl Found {
    /// What a visitor was handed, where it carries records.
    #[must_use]
    pub fn from_recovered(block: &RecoveredBlock<'_>) -> Option<Found> {
        (block.kind == BlockKind::Data).then(|| Found {
            seq: block.seq,
            leader_time: block.leader_time,
            record_count: block.record_count,
            records: block.records.to_vec(),
        })
    }
}

/// Runs every check, each on a log of its own made by `make`.
///
/// # Panics
/// With the claim that does not hold.
pub fn run(make: &mut dyn FnMut() -> Box<dyn Subject>) {
    a_new_log_is_idle_and_ready(&mut *make());
    durability_arrives_in_order_and_completely(&mut *make());
    a_log_that_is_full_of_work_says_so_and_recovers(&mut *make());
    the_largest_block_is_taken(&mut *make());
    durable_blocks_can_be_read_back(&mut *make());
    reads_are_refused_where_there_is_nothing_to_read(&mut *make());
    for driven_count in 0..6 {
        a_crash_loses_nothing_that_was_durable(&mut *make(), driven_count);
    }
    epochs_rise_and_old_blocks_stay(&mut *make());
    trimming_lets_a_log_run_forever(&mut *make());
}

/// The `index`-th block of a check.
fn records(index: u64) -> Vec<u8> {
    let size_bytes = 1 + (index * 1_237 % 6_000) as usize;
    (0..size_bytes).map(|at| (index as usize + at) as u8).collect()
}

fn submit(log: &mut dyn ShardLog, index: u64) -> Result<Found, LogError> {
    let found = Found {
        seq: BlockSeq(0),
        leader_time: WallMs(1_000 + index),
        record_count: 1 + index as u32,
        records: records(index),
    };
    let content = BlockContent {
        records: &found.records,
        record_count: found.record_count,
        leader_time: found.leader_time,
    };
    let seq = log.submit(content)?;
    Ok(Found { seq, ..found })
}

fn drive_all(subject: &mut dyn Subject) {
    while subject.drive() {}
}

/// Submits, driving while the log can't take more.
fn submit_driving(subject: &mut dyn Subject, index: u64) -> Found {
    loop {
        match submit(subject.log(), index) {
            Ok(found) => return found,
            Err(LogError::Backpressure) => assert!(subject.drive(), "backpressure with nothing in flight"),
            Err(error) => panic!("block {index} was refused: {error}"),
        }
    }
}

fn a_new_log_is_idle_and_ready(subject: &mut dyn Subject) {
    drive_all(subject);
    let log = subject.log();
    assert_eq!(log.in_flight(), 0, "nothing is in flight in a new log");
    assert_eq!(log.error(), None, "a new log has no error");
    assert!(log.ready(), "a new log takes a block");
    assert!(log.records_size_bytes_max() >= 4096, "a block holds at least a page of records");
}

fn durability_arrives_in_order_and_completely(subject: &mut dyn Subject) {
    let mut last = subject.log().durable();
    let mut submitted = subject.log().durable();
    for index in 0..50 {
        let found = submit_driving(subject, index);
        assert!(found.seq > submitted, "sequences ascend");
        submitted = found.seq;
        let durable = subject.log().durable();
        assert!(durable >= last, "the watermark never falls");
        assert!(durable <= submitted, "nothing is durable that was not submitted");
        last = durable;
    }
    drive_all(subject);
    assert!(subject.log().durable() >= submitted, "everything becomes durable");
    assert_eq!(subject.log().in_flight(), 0, "and nothing is in flight then");
}

fn a_log_that_is_full_of_work_says_so_and_recovers(subject: &mut dyn Subject) {
    let mut taken = 0;
    let refusal = loop {
        match submit(subject.log(), taken) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 1_000, "the number of blocks in flight is bounded");
    };
    assert_eq!(refusal, LogError::Backpressure, "a busy log answers with backpressure");
    assert!(!subject.log().ready(), "a busy log is not ready");
    assert!(subject.log().in_flight() > 0, "backpressure means that something is in flight");
    drive_all(subject);
    assert!(subject.log().ready(), "a log that caught up is ready again");
}

fn the_largest_block_is_taken(subject: &mut dyn Subject) {
    let largest = vec![0xa5; subject.log().records_size_bytes_max()];
    let content = BlockContent { records: &largest, record_count: 1, leader_time: WallMs(1) };
    for _ in 0..5 {
        while !subject.log().ready() {
            assert!(subject.drive(), "a log that is not ready has work to do");
        }
        subject.log().submit(content).expect("a ready log takes a block of any allowed size");
    }
    drive_all(subject);
    let found = subject.crash();
    assert_eq!(found.len(), 5, "every large block is found");
    assert!(found.iter().all(|block| block.records == largest), "and is what was written");
}

fn durable_blocks_can_be_read_back(subject: &mut dyn Subject) {
    let written: Vec<Found> = (0..60).map(|index| submit_driving(subject, index)).collect();
    drive_all(subject);
    let mut read = Vec::new();
    let mut from = written[0].seq;
    let last = written[written.len() - 1].seq;
    while from <= last {
        subject.log().read(from).expect("a durable block can be read");
        assert_eq!(subject.log().read(from), Err(LogError::Backpressure), "one read at a time");
        let chunk = loop {
            match subject.log().poll_read() {
                Some(chunk) => break chunk.expect("an undamaged block is read"),
                None => assert!(subject.drive(), "a read ends"),
            }
        };
        assert!(!chunk.is_empty(), "a read holds at least the block that was asked for");
        for block in chunk.blocks() {
            assert_eq!(block.header().block_seq, from, "blocks come in order, without gaps");
            from = from.next();
            if block.header().kind == BlockKind::Data {
                read.push(block.records().to_vec());
            }
        }
    }
    assert!(written.iter().map(|block| &block.records).eq(&read), "what is read is what was written");
}

fn reads_are_refused_where_there_is_nothing_to_read(subject: &mut dyn Subject) {
    drive_all(subject);
    let beyond = subject.log().durable().next();
    assert_eq!(subject.log().read(beyond), Err(LogError::Unavailable), "what is not there can't be read");
    assert!(subject.log().poll_read().is_none(), "a refused read has no result");
}

fn a_crash_loses_nothing_that_was_durable(subject: &mut dyn Subject, driven_count: u32) {
    let mut written = Vec::new();
    for index in 0..5 {
        written.push(submit_driving(subject, index));
        drive_all(subject);
    }
    while let Ok(found) = submit(subject.log(), written.len() as u64) {
        written.push(found);
    }
    for _ in 0..driven_count {
        subject.drive();
    }
    let durable = subject.log().durable();
    let found = subject.crash();
    let durable_count = written.iter().filter(|block| block.seq <= durable).count();
    assert!(
        found.len() >= durable_count,
        "{} of {durable_count} durable blocks were found after a crash",
        found.len()
    );
    assert_eq!(found, written[..found.len()], "what is found is a prefix of what was written");
    let again = subject.crash();
    assert_eq!(again, found, "opening twice finds the same");
}

fn epochs_rise_and_old_blocks_stay(subject: &mut dyn Subject) {
    let mut written = Vec::new();
    for round in 0..4 {
        let epoch = subject.log().epoch();
        written.push(submit_driving(subject, round));
        drive_all(subject);
        assert_eq!(subject.crash(), written, "every epoch finds what all before it wrote");
        assert!(subject.log().epoch() > epoch, "every opening begins a higher epoch");
    }
}

fn trimming_lets_a_log_run_forever(subject: &mut dyn Subject) {
    let mut last = BlockSeq(0);
    for index in 0..600 {
        last = submit_driving(subject, index).seq;
        let durable = subject.log().durable();
        subject.log().trim(BlockSeq(durable.0.saturating_sub(3)));
    }
    drive_all(subject);
    assert_eq!(subject.log().error(), None, "a log that is trimmed does not fill up");
    subject.log().trim(BlockSeq(u64::MAX));
    drive_all(subject);
    let found = subject.crash();
    assert!(found.iter().is_sorted_by_key(|block| block.seq), "what is left is in order");
    assert!(found.iter().all(|block| block.seq <= last), "and is part of what was written");
    submit_driving(subject, 0);
}
