//! [`LocalWal`]: a [`ShardLog`] on one machine's disk. Sans-IO: after opening it never touches a file, it hands out
//! [`DiskOp`]s and takes back [`DiskCompletion`]s.
//!
//! Invariants, kept by `maintain` after every event:
//!
//! * at most `in_flight_count_max` blocks are in flight; the watermark rises over a contiguous prefix only;
//! * a block is written to a segment only once that segment's header is durable;
//! * a slot gets a new header only once `SUPER` says durably that its segment is no longer needed;
//! * after the first failed write nothing is handed out any more and the watermark stands still.

mod reads;
mod space;
mod supers;

use std::collections::VecDeque;
use std::io;

use escapement_protocol::{Epoch, WallMs};

use crate::aligned::AlignedBuf;
use crate::config::{LogIdentity, WalConfig};
use crate::disk::{DiskCompletion, DiskOp, FileId, OpId};
use crate::format::{
    BlockHeader, BlockKind, Checksum, EXTENT_OVERHEAD_BYTES, SEGMENT_HEADER_SIZE_BYTES, SegmentHeader,
    encode_extent, extent_size_bytes,
};
use crate::log::{BlockContent, BlockSeq, LogError, ReadChunk, ShardLog};
use crate::snapshot::LogCut;

use reads::Reads;
use space::Room;
pub(crate) use space::{Next, Segment, Space};
pub(crate) use supers::Supers;

/// Buffers kept for reuse: every block in flight, and one that is being filled.
const POOL_COUNT_MAX: usize = 5;

/// How much a log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogUsage {
    /// Segments that hold blocks still needed.
    pub segment_count: usize,
    /// Segment files on the disk.
    pub slot_count: u32,
    /// Bytes of those files.
    pub size_bytes: u64,
    /// Bytes that can still be written without trimming, an estimate: the ends of segments are not always used.
    pub free_bytes: u64,
    /// Segment number of the oldest segment still needed.
    pub oldest_segment_id: u64,
    /// First block of that segment.
    pub oldest_block_seq: BlockSeq,
    /// Last block of that segment, once it is sealed: trimming up to here frees it.
    pub oldest_sealed_last_block_seq: Option<BlockSeq>,
    /// Last block handed to the disk.
    pub last_block_seq: BlockSeq,
    /// Bytes of extents handed to the disk since the log was opened.
    pub written_bytes: u64,
}

/// What opening found out, and the running log continues from.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) config: WalConfig,
    pub(crate) identity: LogIdentity,
    pub(crate) epoch: Epoch,
    pub(crate) space: Space,
    pub(crate) supers: Supers,
    pub(crate) last_checksum: Checksum,
    pub(crate) leader_time: WallMs,
}

#[derive(Debug)]
struct InFlight {
    seq: BlockSeq,
    op: OpId,
    done: bool,
    end: BlockEnd,
}

/// Where a block ends: a segment, and an offset in its file.
#[derive(Clone, Copy, Debug)]
struct BlockEnd {
    segment_id: u64,
    offset: u32,
}

/// The end of the chain, as handed to the disk.
#[derive(Debug)]
struct Tail {
    last: BlockSeq,
    last_checksum: Checksum,
    leader_time: WallMs,
    /// The last block carries records, so nothing on the disk proves yet that it was acknowledged.
    unproven: bool,
}

/// A shard's log on a local disk. See the module of [`crate::open`] for how one comes to be.
///
/// Methods fall into three families: [`ShardLog`] for the owner; [`LocalWal::poll_op`] and
/// [`LocalWal::on_completion`] for the driver, which executes every operation in any order and brings back every
/// completion; and the rest, for deciding when to trim, seal and heal.
#[derive(Debug)]
pub struct LocalWal {
    config: WalConfig,
    identity: LogIdentity,
    epoch: Epoch,
    space: Space,
    supers: Supers,
    tail: Tail,
    durable: BlockSeq,
    durable_end: BlockEnd,
    in_flight: VecDeque<InFlight>,
    reads: Reads,
    ops: VecDeque<DiskOp>,
    next_op: u64,
    pool: Vec<AlignedBuf>,
    poison: Option<io::Error>,
    written_bytes: u64,
}

impl LocalWal {
    pub(crate) fn from_opened(opened: Opened) -> LocalWal {
        let current = opened.space.current();
        let (last, durable_end) =
            (current.last, BlockEnd { segment_id: current.id, offset: current.used_bytes });
        let mut wal = LocalWal {
            config: opened.config,
            identity: opened.identity,
            epoch: opened.epoch,
            space: opened.space,
            supers: opened.supers,
            tail: Tail {
                last,
                last_checksum: opened.last_checksum,
                leader_time: opened.leader_time,
                unproven: false,
            },
            durable: last,
            durable_end,
            in_flight: VecDeque::new(),
            reads: Reads::default(),
            ops: VecDeque::new(),
            next_op: 1,
            pool: Vec::new(),
            poison: None,
            written_bytes: 0,
        };
        wal.maintain();
        wal
    }

    /// The next operation to execute, until there is none. Call it after every call that changes the log.
    pub fn poll_op(&mut self) -> Option<DiskOp> {
        self.ops.pop_front()
    }

    /// Takes an operation's end. The first failed write poisons the log; a failed creation does not.
    ///
    /// # Panics
    /// If the operation is not one of those handed out and not yet completed, see [`OpId::is_foreign`].
    pub fn on_completion(&mut self, completion: DiskCompletion) {
        let DiskCompletion { id, result, buf } = completion;
        assert!(!id.is_foreign(), "completion of an operation that is not the log's");
        if self.reads.is(id) {
            let oldest_segment_id = self.space.live.front().map_or(0, |oldest| oldest.id);
            self.reads.complete(result, buf, oldest_segment_id);
            return;
        }
        if let Some(buf) = buf {
            self.recycle(buf);
        }
        match self.space.creating {
            Some((slot, op)) if op == id => self.created(slot, result.is_ok()),
            _ => match result {
                Err(error) => self.poisoned_by(error),
                Ok(()) => self.written(id),
            },
        }
        self.maintain();
    }

    fn created(&mut self, slot: u32, succeeded: bool) {
        self.space.creating = None;
        if succeeded {
            self.space.slot_count += 1;
            self.space.reusable.push_back(slot);
        } else {
            self.space.create_refused = true;
        }
    }

    fn written(&mut self, id: OpId) {
        if let Some(block) = self.in_flight.iter_mut().find(|block| block.op == id) {
            block.done = true;
        } else if let Next::Preparing { slot, op } = self.space.next
            && op == id
        {
            self.space.next = Next::Ready { slot };
        } else if self.supers.is(id) {
            if let Some(retired_count) = self.supers.complete() {
                self.space.reusable.extend(self.space.retiring.drain(..retired_count));
            }
        } else {
            assert!(self.poison.is_some(), "completion of an operation that is not under way");
        }
    }

    fn poisoned_by(&mut self, error: io::Error) {
        self.poison.get_or_insert(error);
        self.ops.clear();
        self.reads.abort();
    }

    /// Brings everything to where it should be. Idempotent.
    fn maintain(&mut self) {
        if self.poison.is_some() {
            return;
        }
        while self.in_flight.front().is_some_and(|block| block.done) {
            if let Some(block) = self.in_flight.pop_front() {
                (self.durable, self.durable_end) = (block.seq, block.end);
            }
        }
        self.write_super();
        self.prepare_next();
        if let Some(slot) = self.space.slot_to_create() {
            let id = self.op_id();
            self.space.creating = Some((slot, id));
            let size_bytes = u64::from(self.space.segment_size_bytes);
            self.ops.push_back(DiskOp::Create { id, file: FileId::Slot(slot), size_bytes });
        }
    }

    fn prepare_next(&mut self) {
        let Some(slot) = self.space.take_slot_to_prepare() else { return };
        let header = SegmentHeader {
            cluster: self.identity.cluster,
            shard: self.identity.shard,
            slot,
            segment_id: self.space.next_segment_id(),
            segment_size_bytes: u64::from(self.space.segment_size_bytes),
            first_seq_min: self.tail.last.next(),
            epoch: self.epoch,
        };
        let mut buf = self.buf();
        header.encode(&mut buf);
        let id = self.op_id();
        self.space.next = Next::Preparing { slot, op: id };
        self.ops.push_back(DiskOp::Write { id, file: FileId::Slot(slot), offset: 0, buf });
    }

    fn write_super(&mut self) {
        let oldest = self.space.live.front().expect("a log always has a segment");
        let retiring_count = self.space.retiring.len();
        let current = self.space.current();
        let Some((offset, superblock)) =
            self.supers.next_write(oldest, current, self.durable, retiring_count)
        else {
            return;
        };
        let mut buf = self.buf();
        superblock.encode_pair(&mut buf);
        let id = self.op_id();
        self.supers.started(id);
        self.ops.push_back(DiskOp::Write { id, file: FileId::Super, offset, buf });
    }

    fn append(&mut self, kind: BlockKind, content: BlockContent<'_>) -> Result<BlockSeq, LogError> {
        if self.poison.is_some() {
            return Err(LogError::Poisoned);
        }
        if self.in_flight.len() >= self.config.in_flight_count_max {
            return Err(LogError::Backpressure);
        }
        let size_bytes = extent_size_bytes(content.records.len()) as u32;
        match self.space.room(size_bytes) {
            Room::InCurrent | Room::InNext => {}
            Room::Soon => return Err(LogError::Backpressure),
            Room::No => return Err(LogError::Full),
        }
        let seq = self.tail.last.next();
        let header = BlockHeader {
            kind,
            prev_checksum: self.tail.last_checksum,
            cluster: self.identity.cluster,
            shard: self.identity.shard,
            epoch: self.epoch,
            block_seq: seq,
            committed_through: self.durable,
            leader_time: content.leader_time,
            record_count: content.record_count,
            records_size_bytes: content.records.len() as u32,
        };
        let (slot, place) = self.space.place(size_bytes, self.tail.last_checksum);
        let mut buf = self.buf();
        let checksum = encode_extent(&mut buf, place, &header, content.records);
        self.tail = Tail {
            last: seq,
            last_checksum: checksum,
            leader_time: content.leader_time,
            unproven: kind == BlockKind::Data,
        };
        self.written_bytes += u64::from(size_bytes);
        let id = self.op_id();
        let end = BlockEnd { segment_id: place.segment_id, offset: place.offset + size_bytes };
        self.in_flight.push_back(InFlight { seq, op: id, done: false, end });
        self.ops.push_back(DiskOp::Write {
            id,
            file: FileId::Slot(slot),
            offset: u64::from(place.offset),
            buf,
        });
        self.maintain();
        Ok(seq)
    }

    /// Whether the log is idle and its last block carries records: a seal would prove that it was acknowledged.
    #[must_use]
    pub fn seal_due(&self) -> bool {
        self.tail.unproven && self.in_flight.is_empty() && self.poison.is_none()
    }

    /// Writes an empty block, where one is due and there is room for it. The caller does so a few milliseconds after
    /// the log went idle; until then, damage to the last acknowledged blocks can't be told from a torn write.
    pub fn seal_idle(&mut self) -> Option<BlockSeq> {
        if !self.seal_due() {
            return None;
        }
        let leader_time = self.tail.leader_time;
        self.append(BlockKind::Seal, BlockContent { records: &[], record_count: 0, leader_time }).ok()
    }

    /// Allows another attempt to create a file after one failed. The caller does so once in a while, so that a log
    /// that found the disk full recovers by itself.
    pub fn heal(&mut self) {
        self.space.create_refused = false;
        self.maintain();
    }

    /// How much the log holds.
    #[must_use]
    pub fn usage(&self) -> LogUsage {
        let oldest = self.space.live.front().expect("a log always has a segment");
        LogUsage {
            segment_count: self.space.live.len(),
            slot_count: self.space.slot_count,
            size_bytes: u64::from(self.space.slot_count) * u64::from(self.space.segment_size_bytes),
            free_bytes: self.space.free_bytes(),
            oldest_segment_id: oldest.id,
            oldest_block_seq: oldest.first,
            oldest_sealed_last_block_seq: (self.space.live.len() > 1).then_some(oldest.last),
            last_block_seq: self.tail.last,
            written_bytes: self.written_bytes,
        }
    }

    /// Where the log stands, for [`copy_log`](crate::copy_log). What was acknowledged until now is before it.
    #[must_use]
    pub fn cut(&self) -> LogCut {
        let oldest = self.space.live.front().expect("a log always has a segment");
        // What is durable may all have been trimmed: then the log begins where nothing is written yet.
        let begins_here = self.durable < oldest.first;
        let start = BlockEnd { segment_id: oldest.id, offset: SEGMENT_HEADER_SIZE_BYTES as u32 };
        let end = if begins_here { start } else { self.durable_end };
        LogCut {
            epoch: self.epoch,
            first_segment_id: oldest.id,
            first_block_seq: oldest.first,
            first_prev_checksum: oldest.first_prev_checksum,
            through: self.durable,
            end_segment_id: end.segment_id,
            end_offset: end.offset,
        }
    }

    /// The last block that is trimmed for good: no later opening sees it or one before it, whatever happens. It
    /// follows [`ShardLog::trim`] by the writes of `SUPER` that say so, and goes by whole segments.
    #[must_use]
    pub fn trimmed_through(&self) -> BlockSeq {
        BlockSeq(self.supers.durable_first().0 - 1)
    }

    /// The files there are: what a driver opens before it executes the first operation. Later ones are announced by
    /// [`DiskOp::Create`].
    pub fn files(&self) -> impl Iterator<Item = FileId> + use<> {
        (0..self.space.slot_count).map(FileId::Slot).chain([FileId::Super])
    }

    /// The error that poisoned the log.
    #[must_use]
    pub fn poison_cause(&self) -> Option<&io::Error> {
        self.poison.as_ref()
    }

    fn op_id(&mut self) -> OpId {
        self.next_op += 1;
        let id = OpId(self.next_op);
        assert!(!id.is_foreign(), "the log has used up its operation ids");
        id
    }

    fn buf(&mut self) -> AlignedBuf {
        self.pool.pop().unwrap_or_default()
    }

    /// Takes a buffer back for reuse.
    pub fn recycle(&mut self, buf: AlignedBuf) {
        if self.pool.len() < POOL_COUNT_MAX {
            self.pool.push(buf);
        }
    }
}

impl LocalWal {
    /// Most bytes of records that a block takes now; 0 where none is taken, now or before a segment is freed. At the end
    /// of a log that can't grow it is what is left of the last segment: enough, mostly, for the records that free one.
    #[must_use]
    pub fn room_size_bytes(&self) -> usize {
        if self.poison.is_some() || self.in_flight.len() >= self.config.in_flight_count_max {
            return 0;
        }
        match self.space.room(self.config.extent_size_bytes_max as u32) {
            Room::InCurrent | Room::InNext => self.config.records_size_bytes_max(),
            Room::Soon => 0,
            Room::No => self.space.left_in_current().saturating_sub(EXTENT_OVERHEAD_BYTES),
        }
    }

    /// Whether what is left of the last segment is all there is, until one is freed.
    #[must_use]
    pub fn is_at_its_end(&self) -> bool {
        self.space.room(self.config.extent_size_bytes_max as u32) == Room::No
    }
}

impl ShardLog for LocalWal {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn submit(&mut self, block: BlockContent<'_>) -> Result<BlockSeq, LogError> {
        assert!(!block.records.is_empty() && block.record_count > 0, "a submitted block holds records");
        assert!(
            block.records.len() <= self.records_size_bytes_max(),
            "{} bytes in one block",
            block.records.len()
        );
        self.append(BlockKind::Data, block)
    }

    fn ready(&self) -> bool {
        self.poison.is_none()
            && self.in_flight.len() < self.config.in_flight_count_max
            && matches!(
                self.space.room(self.config.extent_size_bytes_max as u32),
                Room::InCurrent | Room::InNext
            )
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn durable(&self) -> BlockSeq {
        self.durable
    }

    fn records_size_bytes_max(&self) -> usize {
        self.config.records_size_bytes_max()
    }

    fn read(&mut self, from: BlockSeq) -> Result<(), LogError> {
        if self.poison.is_some() {
            return Err(LogError::Poisoned);
        }
        if !self.reads.is_idle() {
            return Err(LogError::Backpressure);
        }
        if from > self.durable {
            return Err(LogError::Unavailable);
        }
        let segment = self.space.find(from).ok_or(LogError::Unavailable)?;
        let through = segment.last.min(self.durable);
        let offset = segment.seek(from);
        let (id, slot, written_bytes) = (segment.id, segment.slot, segment.used_bytes);
        debug_assert!(offset as usize >= SEGMENT_HEADER_SIZE_BYTES);
        let op = self.op_id();
        let op = self.reads.start(
            op,
            FileId::Slot(slot),
            reads::Span { segment_id: id, offset, written_bytes, from, through },
        );
        self.ops.push_back(op);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<Result<ReadChunk, LogError>> {
        self.reads.take()
    }

    fn trim(&mut self, upto: BlockSeq) {
        if self.space.trim(upto.min(self.durable)) {
            self.space.create_refused = false;
        }
        self.maintain();
    }

    fn error(&self) -> Option<LogError> {
        if self.poison.is_some() {
            return Some(LogError::Poisoned);
        }
        let full = self.space.room(self.config.extent_size_bytes_max as u32) == Room::No;
        full.then_some(LogError::Full)
    }
}
