//! The writing half of opening: makes the end of the chain durable and clean, and starts the epoch.

use std::collections::VecDeque;

use escapement_protocol::Epoch;

use super::Recovery;
use super::error::OpenError;
use super::slots::{Content, Slot};
use crate::aligned::AlignedBuf;
use crate::disk::{Directory, FileId, SEGMENT_DIR};
use crate::format::{
    BlockHeader, BlockKind, Checksum, EXTENT_ALIGN_BYTES, IN_FLIGHT_COUNT_MAX, IN_FLIGHT_WINDOW_BYTES,
    SEGMENT_HEADER_SIZE_BYTES, SUPER_COPY_SIZE_BYTES, SUPER_SIZE_BYTES, SegmentHeader, Superblock,
    encode_extent,
};
use crate::local::{Next, Opened, Segment, Space, Supers};
use crate::log::BlockSeq;

/// Bytes written at a time when more than the window is erased.
const ERASE_SIZE_BYTES: u64 = 1024 * 1024;

/// Header and first extent's sector: without them a file holds no segment.
const SEGMENT_HEAD_BYTES: u64 = (SEGMENT_HEADER_SIZE_BYTES + EXTENT_ALIGN_BYTES) as u64;

/// Writes one generation of `SUPER`, in its two steps, to the file at `path`.
pub(super) fn write_super(
    dir: &mut dyn Directory,
    path: &str,
    superblock: &Superblock,
) -> Result<(), OpenError> {
    let mut pair = AlignedBuf::new();
    superblock.encode_pair(&mut pair);
    for offset in [0, 2 * SUPER_COPY_SIZE_BYTES as u64] {
        dir.write_at(path, offset, &pair).map_err(OpenError::io("write", path))?;
    }
    Ok(())
}

/// Writes the header of the slot file that it names.
pub(super) fn write_header(dir: &mut dyn Directory, header: &SegmentHeader) -> Result<(), OpenError> {
    let path = FileId::Slot(header.slot).path();
    let mut buf = AlignedBuf::new();
    header.encode(&mut buf);
    dir.write_at(&path, 0, &buf).map_err(OpenError::io("write", path))
}

/// Writes zeros over `from..to` of a file, only where something else stands.
fn erase(dir: &mut dyn Directory, file: FileId, from: u64, to: u64) -> Result<(), OpenError> {
    let path = file.path();
    let mut buf = AlignedBuf::new();
    let mut offset = from;
    while offset < to {
        buf.set_len_stale((to - offset).min(ERASE_SIZE_BYTES) as usize);
        let read = dir.read_at(&path, offset, &mut buf).map_err(OpenError::io("read", &path))?;
        buf.set_len_stale(read);
        if buf.is_empty() {
            break;
        }
        if buf.iter().any(|&byte| byte != 0) {
            buf.fill(0);
            dir.write_at(&path, offset, &buf).map_err(OpenError::io("write", &path))?;
        }
        offset += read as u64;
    }
    Ok(())
}

impl Recovery {
    /// Everything that opening writes. Each step is durable before the next begins.
    pub(super) fn repair(
        mut self,
        dir: &mut dyn Directory,
        accepted_loss: bool,
        least: Epoch,
    ) -> Result<Opened, OpenError> {
        let last = BlockSeq(self.scan.cursor.next.0 - 1);
        let epoch = Epoch(self.scan.evidence.epoch.max(self.scan.cursor.epoch).0 + 1).max(least);
        self.sync_tail(dir)?;
        if accepted_loss {
            self.erase_behind_end(dir)?;
        }
        self.complete_super(dir)?;
        self.superblock.generation += 1;
        self.superblock.epoch = epoch;
        self.superblock.committed_through = last;
        write_super(dir, &FileId::Super.path(), &self.superblock)?;
        self.tidy_slots(dir)?;
        let mut space = self.space(dir, epoch)?;
        let last_checksum = self.open_epoch(dir, &mut space, epoch, last)?;
        Ok(Opened {
            config: self.config,
            identity: self.identity,
            epoch,
            space,
            supers: Supers::new(self.superblock),
            last_checksum,
            leader_time: self.scan.cursor.leader_time,
        })
    }

    /// Makes all copies agree on the generation that was chosen, touching only those that don't: a write of the next
    /// one may tear a pair, and whatever the other pair holds must then suffice.
    fn complete_super(&self, dir: &mut dyn Directory) -> Result<(), OpenError> {
        let path = FileId::Super.path();
        dir.sync(&path).map_err(OpenError::io("sync", &path))?;
        let mut copy = AlignedBuf::new();
        self.superblock.encode_copy(&mut copy);
        for offset in (0..SUPER_SIZE_BYTES).step_by(SUPER_COPY_SIZE_BYTES) {
            if self.super_file.get(offset..offset + SUPER_COPY_SIZE_BYTES) != Some(&copy[..]) {
                dir.write_at(&path, offset as u64, &copy).map_err(OpenError::io("write", &path))?;
            }
        }
        Ok(())
    }

    /// A process that was killed may have left writes that can be read and are not yet durable.
    fn sync_tail(&self, dir: &mut dyn Directory) -> Result<(), OpenError> {
        let oldest_in_doubt = self.live.len().saturating_sub(IN_FLIGHT_COUNT_MAX);
        let tail = self.live.iter().skip(oldest_in_doubt).map(|segment| segment.slot);
        let next = self.slot_of(self.end_place().0 + 1).map(|slot| slot.number);
        for slot in tail.chain(next) {
            let path = FileId::Slot(slot).path();
            dir.sync(&path).map_err(OpenError::io("sync", path))?;
        }
        dir.sync_dir(SEGMENT_DIR).map_err(OpenError::io("sync", SEGMENT_DIR))
    }

    /// After an accepted loss: nothing behind the end may give evidence any more.
    fn erase_behind_end(&mut self, dir: &mut dyn Directory) -> Result<(), OpenError> {
        let (end_id, end_offset) = self.end_place();
        for slot in &mut self.slots {
            match slot.content {
                Content::Absent | Content::Unfinished => {}
                Content::Segment { id, .. } if id < end_id => {}
                Content::Segment { id, .. } if id == end_id => {
                    erase(dir, slot.file(), end_offset, self.config.segment_size_bytes)?;
                }
                Content::Segment { .. } | Content::Unknown | Content::Blank => {
                    erase(dir, slot.file(), 0, self.config.segment_size_bytes)?;
                    slot.content = Content::Blank;
                }
            }
        }
        Ok(())
    }

    /// Erases what writes in flight may have left behind the end, and leaves every slot either with the
    /// segment that it is known for, or free.
    fn tidy_slots(&mut self, dir: &mut dyn Directory) -> Result<(), OpenError> {
        let (end_id, end_offset) = self.end_place();
        let segment_size_bytes = self.config.segment_size_bytes;
        for slot in &mut self.slots {
            let file = slot.file();
            match slot.content {
                Content::Segment { id, header_intact } if id == end_id => {
                    erase(
                        dir,
                        file,
                        end_offset,
                        segment_size_bytes.min(end_offset + IN_FLIGHT_WINDOW_BYTES),
                    )?;
                    if !header_intact {
                        // Written again below, with the other damaged headers of live segments.
                        continue;
                    }
                }
                Content::Segment { id, header_intact: true } if id == end_id + 1 => {
                    let from = SEGMENT_HEADER_SIZE_BYTES as u64;
                    erase(dir, file, from, segment_size_bytes.min(from + IN_FLIGHT_WINDOW_BYTES))?;
                }
                Content::Segment { id, .. } if id > end_id => {
                    erase(dir, file, 0, SEGMENT_HEAD_BYTES)?;
                    slot.content = Content::Blank;
                }
                Content::Unfinished => {
                    let path = file.path();
                    dir.remove(&path).map_err(OpenError::io("remove", path))?;
                    slot.content = Content::Absent;
                }
                Content::Segment { .. } | Content::Unknown | Content::Blank | Content::Absent => {}
            }
        }
        while self.slots.last().is_some_and(|slot| slot.content == Content::Absent) {
            self.slots.pop();
        }
        for slot in &mut self.slots {
            if slot.content == Content::Absent {
                let path = slot.file().path();
                dir.create_zeroed(&path, segment_size_bytes).map_err(OpenError::io("create", path))?;
                slot.content = Content::Blank;
            }
        }
        Ok(())
    }

    /// The slots as the running log sees them.
    fn space(&mut self, dir: &mut dyn Directory, epoch: Epoch) -> Result<Space, OpenError> {
        for segment in &self.live {
            if self.slots[segment.slot as usize].content
                == (Content::Segment { id: segment.id, header_intact: false })
            {
                write_header(dir, &self.header(segment, epoch))?;
            }
        }
        if self.live.is_empty() {
            // The first segment never got a durable header, and nothing in it was acknowledged.
            let slot = self.free_slot(dir)?;
            let (first, prev_checksum) = (self.scan.cursor.next, self.scan.cursor.prev_checksum);
            let segment = Segment::new(self.superblock.first_segment_id, slot, first, prev_checksum);
            write_header(dir, &self.header(&segment, epoch))?;
            self.live.push(segment);
        }
        let end_id = self.end_place().0;
        let mut next = Next::Absent;
        let mut reusable = VecDeque::new();
        for slot in &self.slots {
            if self.live.iter().any(|segment| segment.slot == slot.number) {
                continue;
            }
            if slot.segment_id() == Some(end_id + 1) {
                next = Next::Ready { slot: slot.number };
            } else {
                reusable.push_back(slot.number);
            }
        }
        Ok(Space {
            segment_size_bytes: self.config.segment_size_bytes as u32,
            extent_size_bytes_max: self.config.extent_size_bytes_max as u32,
            slot_count_max: self.config.slot_count_max(),
            ahead_count: self.config.ahead_count as usize,
            live: std::mem::take(&mut self.live).into(),
            next,
            reusable,
            retiring: VecDeque::new(),
            creating: None,
            create_refused: false,
            slot_count: self.slots.len() as u32,
        })
    }

    fn header(&self, segment: &Segment, epoch: Epoch) -> SegmentHeader {
        SegmentHeader {
            cluster: self.identity.cluster,
            shard: self.identity.shard,
            slot: segment.slot,
            segment_id: segment.id,
            segment_size_bytes: self.config.segment_size_bytes,
            first_seq_min: segment.first,
            epoch,
        }
    }

    /// A slot that holds nothing needed, made if there is none: opening may exceed the log's size by one segment, since
    /// a full log must still open.
    fn free_slot(&mut self, dir: &mut dyn Directory) -> Result<u32, OpenError> {
        let first_live = self.superblock.first_segment_id;
        let free = self.slots.iter().find(|slot| match slot.content {
            Content::Segment { id, .. } => id < first_live,
            Content::Blank | Content::Unknown => true,
            Content::Unfinished | Content::Absent => false,
        });
        if let Some(slot) = free {
            return Ok(slot.number);
        }
        let number = self.slots.len() as u32;
        let path = FileId::Slot(number).path();
        dir.create_zeroed(&path, self.config.segment_size_bytes).map_err(OpenError::io("create", path))?;
        self.slots.push(Slot { number, content: Content::Blank });
        Ok(number)
    }

    /// Appends the first block of the epoch; answers its checksum.
    fn open_epoch(
        &mut self,
        dir: &mut dyn Directory,
        space: &mut Space,
        epoch: Epoch,
        last: BlockSeq,
    ) -> Result<Checksum, OpenError> {
        let size_bytes = EXTENT_ALIGN_BYTES as u32;
        if u64::from(space.current().used_bytes + size_bytes) > self.config.segment_size_bytes {
            self.make_next_ready(dir, space, epoch)?;
        }
        let prev_checksum = self.scan.cursor.prev_checksum;
        let (slot, place) = space.place(size_bytes, prev_checksum);
        let header = BlockHeader {
            kind: BlockKind::EpochOpen,
            prev_checksum,
            cluster: self.identity.cluster,
            shard: self.identity.shard,
            epoch,
            block_seq: last.next(),
            committed_through: last,
            leader_time: self.scan.cursor.leader_time,
            record_count: 0,
            records_size_bytes: 0,
        };
        let mut buf = AlignedBuf::new();
        let checksum = encode_extent(&mut buf, place, &header, &[]);
        let path = FileId::Slot(slot).path();
        dir.write_at(&path, u64::from(place.offset), &buf).map_err(OpenError::io("write", path))?;
        Ok(checksum)
    }

    fn make_next_ready(
        &mut self,
        dir: &mut dyn Directory,
        space: &mut Space,
        epoch: Epoch,
    ) -> Result<(), OpenError> {
        if matches!(space.next, Next::Ready { .. }) {
            return Ok(());
        }
        let slot = match space.reusable.pop_front() {
            Some(slot) => slot,
            None => {
                let slot = space.slot_count;
                let path = FileId::Slot(slot).path();
                dir.create_zeroed(&path, self.config.segment_size_bytes)
                    .map_err(OpenError::io("create", path))?;
                space.slot_count += 1;
                slot
            }
        };
        let first = self.scan.cursor.next;
        let segment = Segment::new(space.next_segment_id(), slot, first, self.scan.cursor.prev_checksum);
        write_header(dir, &self.header(&segment, epoch))?;
        space.next = Next::Ready { slot };
        Ok(())
    }
}
