//! Formatting and opening a log.
//!
//! Opening reads first and writes only once it has decided:
//!
//! 1. `SUPER` says where the chain begins; a survey of the segment files says which holds which segment.
//! 2. Blocks are accepted along the chain and handed to the visitor, until one is rejected.
//! 3. Everything behind that place is searched for evidence that the rejected block was acknowledged. If there is
//!    any, the log is refused and nothing is written.
//! 4. Otherwise, in this order, each step durable before the next: the tail is synced, so that what was read is what
//!    stays; `SUPER` takes the new epoch; whatever writes in flight left behind the end is erased; an `EpochOpen` block is
//!    appended.
//!
//! A crash at any point leaves a log that opens to the same blocks.

mod error;
mod repair;
mod scan;
mod slots;
pub mod table;

pub use error::OpenError;

use escapement_protocol::{Epoch, WallMs};
use xxhash_rust::xxh3::xxh3_64;

use crate::aligned::AlignedBuf;
use crate::config::{LogIdentity, WalConfig};
use crate::disk::{Directory, FileId, RUN_DIR, SEGMENT_DIR};
use crate::format::{
    Block, BlockKind, Checksum, Place, SEGMENT_HEADER_SIZE_BYTES, SUPER_SIZE_BYTES, SegmentHeader,
    Superblock, SuperblockError,
};
use crate::local::{LocalWal, Segment};
use crate::log::BlockSeq;
use scan::{Cursor, Evidence, Scan, WINDOW_SIZE_BYTES};
use slots::{Content, Slot};
use table::{RecoveryCase, Verdict, verdict};

/// A block that opening found, verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredBlock<'a> {
    /// Position in the chain; consecutive from one call of the visitor to the next.
    pub seq: BlockSeq,
    /// Whether it carries records, or is one of the log's own.
    pub kind: BlockKind,
    /// Epoch that wrote it.
    pub epoch: Epoch,
    /// The writer's wall clock.
    pub leader_time: WallMs,
    /// Records in it.
    pub record_count: u32,
    /// The records, as they were submitted.
    pub records: &'a [u8],
}

impl<'a> From<&Block<'a>> for RecoveredBlock<'a> {
    fn from(block: &Block<'a>) -> RecoveredBlock<'a> {
        let header = block.header();
        RecoveredBlock {
            seq: header.block_seq,
            kind: header.kind,
            epoch: header.epoch,
            leader_time: header.leader_time,
            record_count: header.record_count,
            records: block.records(),
        }
    }
}

/// Takes the blocks that opening finds, in the order of the chain. What it builds from them is valid only once
/// [`open`] has returned `Ok`.
pub type Visitor<'a> = &'a mut dyn FnMut(RecoveredBlock<'_>);

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The new epoch; from [`check`] the newest that was found.
    pub epoch: Epoch,
    /// First block handed to the visitor, or the one that would have been.
    pub first: BlockSeq,
    /// Last block handed to the visitor; the one before `first` where there was none.
    pub last: BlockSeq,
    /// Blocks among them, the log's own included.
    pub block_count: u64,
    /// Records in those.
    pub record_count: u64,
    /// Bytes of their extents.
    pub scanned_bytes: u64,
    /// Highest leader time of any of them.
    pub leader_time: WallMs,
    /// Why the chain ended where it did.
    pub end: RecoveryCase,
    /// Where it did.
    pub end_place: Place,
    /// The acknowledged blocks that were given up, where an operator had asked for it.
    pub accepted_loss: Option<Loss>,
}

/// Acknowledged blocks that are no more: those that the refusal named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The first of them.
    pub first: BlockSeq,
    /// The last that is known to have been acknowledged.
    pub last: BlockSeq,
}

/// Makes a new, empty log in a directory that holds none.
///
/// # Errors
/// [`OpenError::AlreadyFormatted`], [`OpenError::InvalidConfig`], [`OpenError::Io`]. After a failure the directory
/// must be emptied by hand.
pub fn format(dir: &mut dyn Directory, identity: LogIdentity, config: &WalConfig) -> Result<(), OpenError> {
    if let Some(fault) = config.fault() {
        return Err(OpenError::InvalidConfig(fault));
    }
    let super_path = FileId::Super.path();
    if dir.exists(&super_path).map_err(OpenError::io("look for", &super_path))? {
        return Err(OpenError::AlreadyFormatted { found: super_path });
    }
    // Runs hold events of a log that was here: a new one must not take them for its own.
    for part in [SEGMENT_DIR, RUN_DIR] {
        if let Some(name) = dir.list(part).map_err(OpenError::io("list", part))?.pop() {
            return Err(OpenError::AlreadyFormatted { found: format!("{part}/{name}") });
        }
    }
    dir.create_dir(SEGMENT_DIR).map_err(OpenError::io("create", SEGMENT_DIR))?;
    for slot in 0..=config.spare_count {
        let path = FileId::Slot(slot).path();
        dir.create_zeroed(&path, config.segment_size_bytes).map_err(OpenError::io("create", path))?;
    }
    let header = SegmentHeader {
        cluster: identity.cluster,
        shard: identity.shard,
        slot: 0,
        segment_id: 1,
        segment_size_bytes: config.segment_size_bytes,
        first_seq_min: BlockSeq(1),
        epoch: Epoch(0),
    };
    repair::write_header(dir, &header)?;
    let superblock = Superblock {
        generation: 1,
        cluster: identity.cluster,
        shard: identity.shard,
        shard_count: identity.shard_count,
        epoch: Epoch(0),
        segment_size_bytes: config.segment_size_bytes,
        committed_through: BlockSeq(0),
        first_segment_id: 1,
        first_block_seq: BlockSeq(1),
        first_prev_checksum: Checksum::default(),
    };
    put_super(dir, &superblock)
}

/// Makes `SUPER` where there is none. It comes last, and whole: without it, there is no log.
pub(crate) fn put_super(dir: &mut dyn Directory, superblock: &Superblock) -> Result<(), OpenError> {
    let path = FileId::Super.path();
    let new = format!("{path}.new");
    if dir.exists(&new).map_err(OpenError::io("look for", &new))? {
        dir.remove(&new).map_err(OpenError::io("remove", &new))?;
    }
    dir.create_zeroed(&new, SUPER_SIZE_BYTES as u64).map_err(OpenError::io("create", &new))?;
    repair::write_super(dir, &new, superblock)?;
    dir.rename(&new, &path).map_err(OpenError::io("rename", &new))?;
    dir.sync_dir("").map_err(OpenError::io("sync", path))
}

/// Which files hold which segments, as far as their headers or first blocks say.
pub(crate) fn survey_segments(
    dir: &mut dyn Directory,
    identity: &LogIdentity,
    segment_size_bytes: u64,
) -> Result<Vec<(u64, FileId)>, OpenError> {
    let slots = slots::survey(dir, identity, segment_size_bytes)?;
    Ok(slots.iter().filter_map(|slot| Some((slot.segment_id()?, slot.file()))).collect())
}

/// Opens a log: hands every block to `visitor`, repairs a torn end, and starts a new epoch.
///
/// `config.segment_size_bytes` and `config.spare_count` matter only for formatting. Files outside the log, runs among
/// them, are neither looked at nor touched.
///
/// # Errors
/// [`OpenError`].
pub fn open(
    dir: &mut dyn Directory,
    identity: LogIdentity,
    config: &WalConfig,
    visitor: Visitor<'_>,
) -> Result<(LocalWal, RecoveryReport), OpenError> {
    read(dir, identity, config, visitor)?.open(dir, Epoch(0))
}

/// Reads a log as [`open`] does, and changes nothing yet: for whoever decides by what the blocks come to whether the log
/// may be written to.
///
/// # Errors
/// [`OpenError`], where opening would refuse before it writes.
pub fn read(
    dir: &mut dyn Directory,
    identity: LogIdentity,
    config: &WalConfig,
    visitor: Visitor<'_>,
) -> Result<ReadLog, OpenError> {
    let (recovery, report) = Recovery::read(dir, identity, config, visitor)?;
    Ok(ReadLog { recovery, report })
}

/// The newest epoch that `SUPER` knows of, also of a log that is refused.
///
/// # Errors
/// [`OpenError`], where `SUPER` can't be read.
pub fn last_epoch(dir: &mut dyn Directory, identity: LogIdentity) -> Result<Epoch, OpenError> {
    read_super(dir, &identity).map(|(superblock, _)| superblock.epoch)
}

/// A log that was read, and not written to.
pub struct ReadLog {
    recovery: Recovery,
    report: RecoveryReport,
}

impl std::fmt::Debug for ReadLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadLog").field("report", &self.report).finish_non_exhaustive()
    }
}

impl ReadLog {
    /// Repairs a torn end, and starts a new epoch: `least`, or a higher one where the log has seen that already.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        self,
        dir: &mut dyn Directory,
        least: Epoch,
    ) -> Result<(LocalWal, RecoveryReport), OpenError> {
        let ReadLog { recovery, mut report } = self;
        let opened = recovery.repair(dir, report.accepted_loss.is_some(), least)?;
        report.epoch = opened.epoch;
        Ok((LocalWal::from_opened(opened), report))
    }
}

/// Reads a log as [`open`] does, and changes nothing: hands every block to `visitor`, and answers what opening would find.
///
/// # Errors
/// [`OpenError`], where opening would refuse before it writes.
pub fn check(
    dir: &mut dyn Directory,
    identity: LogIdentity,
    config: &WalConfig,
    visitor: Visitor<'_>,
) -> Result<RecoveryReport, OpenError> {
    Recovery::read(dir, identity, config, visitor).map(|(_, report)| report)
}

/// Reads `SUPER` and checks whose it is.
fn read_super(
    dir: &mut dyn Directory,
    identity: &LogIdentity,
) -> Result<(Superblock, AlignedBuf), OpenError> {
    let path = FileId::Super.path();
    if !dir.exists(&path).map_err(OpenError::io("look for", &path))? {
        return Err(OpenError::NotFormatted);
    }
    let mut file = AlignedBuf::zeroed(SUPER_SIZE_BYTES);
    let read = dir.read_at(&path, 0, &mut file).map_err(OpenError::io("read", path))?;
    file.set_len_stale(read);
    let superblock = Superblock::choose(&file).map_err(|error| match error {
        SuperblockError::OtherFormat(found) => OpenError::OtherFormat { file: FileId::Super, found },
        SuperblockError::NoQuorum { intact_count } => OpenError::SuperDamaged { intact_count },
    })?;
    let found = LogIdentity {
        cluster: superblock.cluster,
        shard: superblock.shard,
        shard_count: superblock.shard_count,
    };
    if found != *identity {
        return Err(OpenError::ForeignSuper { found, expected: *identity });
    }
    Ok((superblock, file))
}

/// An opening under way.
struct Recovery {
    identity: LogIdentity,
    config: WalConfig,
    superblock: Superblock,
    /// `SUPER` as it was read.
    super_file: AlignedBuf,
    slots: Vec<Slot>,
    /// Segments that the chain reached, oldest first; consecutive ids.
    live: Vec<Segment>,
    scan: Scan,
}

impl Recovery {
    /// Everything that opening reads, and its decision.
    fn read(
        dir: &mut dyn Directory,
        identity: LogIdentity,
        config: &WalConfig,
        visitor: Visitor<'_>,
    ) -> Result<(Recovery, RecoveryReport), OpenError> {
        let (superblock, super_file) = read_super(dir, &identity)?;
        let config = WalConfig { segment_size_bytes: superblock.segment_size_bytes, ..*config };
        if let Some(fault) = config.fault() {
            return Err(OpenError::InvalidConfig(fault));
        }
        if !dir.has_dir(SEGMENT_DIR).map_err(OpenError::io("look for", SEGMENT_DIR))? {
            return Err(OpenError::SegmentsMissing { committed_through: superblock.committed_through });
        }
        let slots = slots::survey(dir, &identity, config.segment_size_bytes)?;
        let mut recovery = Recovery {
            identity,
            config,
            superblock,
            super_file,
            slots,
            live: Vec::new(),
            scan: Scan {
                identity,
                segment_size_bytes: superblock.segment_size_bytes,
                cursor: Cursor {
                    next: superblock.first_block_seq,
                    prev_checksum: superblock.first_prev_checksum,
                    epoch: Epoch(0),
                    leader_time: WallMs(0),
                    block_count: 0,
                    record_count: 0,
                    scanned_bytes: 0,
                },
                evidence: Evidence {
                    committed_through: superblock.committed_through,
                    epoch: superblock.epoch,
                },
                buf: AlignedBuf::new(),
            },
        };
        let end = recovery.follow_chain(dir, visitor)?;
        recovery.search_behind_end(dir)?;
        let accepted_loss = recovery.judge(end)?;
        let (segment_id, offset) = recovery.end_place();
        let report = RecoveryReport {
            epoch: recovery.scan.evidence.epoch,
            first: superblock.first_block_seq,
            last: BlockSeq(recovery.scan.cursor.next.0 - 1),
            block_count: recovery.scan.cursor.block_count,
            record_count: recovery.scan.cursor.record_count,
            scanned_bytes: recovery.scan.cursor.scanned_bytes,
            leader_time: recovery.scan.cursor.leader_time,
            end,
            end_place: Place { segment_id, offset: offset as u32 },
            accepted_loss,
        };
        Ok((recovery, report))
    }

    fn slot_of(&self, segment_id: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.segment_id() == Some(segment_id))
    }

    /// The segment where the next block should be, and the offset there.
    fn end_place(&self) -> (u64, u64) {
        match self.live.last() {
            Some(segment) => (segment.id, u64::from(segment.used_bytes)),
            None => (self.superblock.first_segment_id, SEGMENT_HEADER_SIZE_BYTES as u64),
        }
    }

    /// Follows the chain over all segments that it reaches, and answers why it ended.
    fn follow_chain(
        &mut self,
        dir: &mut dyn Directory,
        visitor: Visitor<'_>,
    ) -> Result<RecoveryCase, OpenError> {
        let mut end = RecoveryCase::SegmentMissing;
        let mut id = self.superblock.first_segment_id;
        while let Some(slot) = self.slot_of(id) {
            let mut segment =
                Segment::new(id, slot.number, self.scan.cursor.next, self.scan.cursor.prev_checksum);
            let case = self.scan.segment(dir, &mut segment, visitor)?;
            let first = self.live.is_empty();
            if segment.is_empty() && !first {
                // Rotation didn't happen here: what ended the segment before is what counts.
                break;
            }
            self.live.push(segment);
            end = case;
            if self.live.last().is_some_and(Segment::is_empty) {
                break;
            }
            id += 1;
        }
        Ok(end)
    }

    /// Collects evidence from everything that the chain did not reach and that is not known to be older than the chain.
    fn search_behind_end(&mut self, dir: &mut dyn Directory) -> Result<(), OpenError> {
        let segment_size_bytes = self.config.segment_size_bytes;
        let (end_id, end_offset) = self.end_place();
        for slot in self.slots.clone() {
            let range = match slot.content {
                Content::Absent | Content::Unfinished => continue,
                Content::Segment { id, .. } if id == end_id => end_offset..segment_size_bytes,
                Content::Segment { id, .. } if id < end_id => continue,
                Content::Segment { .. } | Content::Unknown => 0..segment_size_bytes,
                // Only lost sectors could hide blocks here, and blocks begin at the start.
                Content::Blank => 0..segment_size_bytes.min(WINDOW_SIZE_BYTES as u64),
            };
            self.scan.search(dir, slot.file(), range.start, range.end)?;
        }
        Ok(())
    }

    /// Decides about the end of the chain; answers which loss is accepted.
    fn judge(&self, case: RecoveryCase) -> Result<Option<Loss>, OpenError> {
        let (first, last) = (self.scan.cursor.next, self.scan.evidence.committed_through);
        if verdict(case, first, last) != Verdict::Corrupt {
            return Ok(None);
        }
        let (segment_id, offset) = self.end_place();
        let mut finding = [0; 64];
        let parts =
            [self.identity.cluster, u64::from(self.identity.shard.0), first.0, last.0, segment_id, offset];
        for (to, part) in finding.chunks_exact_mut(8).zip(parts) {
            to.copy_from_slice(&part.to_le_bytes());
        }
        finding[48..].copy_from_slice(&self.scan.cursor.prev_checksum.0.to_le_bytes());
        let token = xxh3_64(&finding);
        if self.config.accept_loss == Some(token) {
            return Ok(Some(Loss { first, last }));
        }
        Err(OpenError::Corrupt { first, last, case, segment_id, offset, token })
    }
}
