//! From memory and the log into a run, a little in each turn.

use hashbrown::HashMap;
use smallvec::SmallVec;

use escapement_protocol::{MonoNs, Sequence, TopicId, WallMs};

use super::{Moving, Purpose, RETRY_AFTER_MS, is_moving};
use crate::effects::Effects;
use crate::far::format::{BLOCK_SIZE_BYTES, Forwarded, RunFooter, RunWriter};
use crate::far::{Key, Merge, RunId, RunOp};
use crate::record::RunStatement;
use crate::shard::Shard;
use crate::shard::apply::WARM_COUNT;

/// Bytes of complete blocks that are written at once, while the next are put together. A write that makes a file longer
/// costs a disk some milliseconds whatever its size: here 62 MB/s at 256 KiB, 347 at 4 MiB.
const WRITE_SIZE_BYTES: u64 = 1024 * 1024;

/// An event that is in no run this long before its time is not waited for any more.
const RESCUE_MS_MAX: u64 = 30_000;

/// Events that one `Moved` record may have, unless a single block has more.
const MOVE_COUNT_MAX: usize = 1_024;

/// `Moved` records on their way to the disk at once.
const MOVING_COUNT_MAX: usize = 4;

/// A run that is being made.
#[derive(Debug)]
pub(super) struct Flush {
    run: RunId,
    /// What is still to be written.
    rest: Merge,
    /// What was written, in order.
    keys: Vec<Key>,
    /// Their topics, which nobody knows any more of what ends meanwhile.
    topics: Vec<TopicId>,
    /// Of these, how often those were rescheduled that were, when they were written.
    versions: HashMap<Sequence, u64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its file is being made.
    Creating,
    /// Blocks are put together, and written where `is_writing`.
    Filling { writer: RunWriter, bytes: Vec<u8>, written: u64, is_writing: bool },
    /// The last of it is being written.
    Ending { footer: RunFooter, size_bytes: u64 },
    /// Its events leave the log: up to `block`, and `at` of the keys.
    Moving { blocks: Vec<u32>, block: usize, at: usize },
}

impl Flush {
    pub(super) fn run(&self) -> RunId {
        self.run
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let bytes = match &self.stage {
            Stage::Filling { bytes, .. } => bytes.capacity(),
            _ => 0,
        };
        let versions = self.versions.capacity() * (size_of::<Forwarded>() + size_of::<(Sequence, u64)>());
        let topics = self.topics.capacity() * size_of::<TopicId>();
        self.keys.capacity() * size_of::<Key>() + topics + versions + bytes
    }

    fn moved_count(&self) -> usize {
        if let Stage::Moving { at, .. } = self.stage { at } else { 0 }
    }

    /// Whether another block may be put together while one write is under way.
    fn may_fill(&self, writer: &RunWriter, written: u64) -> bool {
        self.rest.peek().is_some() && writer.complete_size_bytes() - written < WRITE_SIZE_BYTES
    }

    /// The first event that has not left the log.
    fn first_left(&self) -> Option<Key> {
        self.keys.get(self.moved_count()).copied().or_else(|| self.rest.peek())
    }
}

impl Shard {
    /// How long before its time an event that is in no run goes on the wheel instead.
    pub(super) fn rescue_ms(&self) -> u64 {
        // Less than any far event had left when it came; and no more than a run takes, so that a horizon that grows again
        // does not call back what is on its way.
        (self.volatile.horizon_ms / 2).min(RESCUE_MS_MAX)
    }

    /// The earliest due time of what is far and in memory.
    pub(super) fn rescue_due(&self) -> Option<WallMs> {
        let far = &self.volatile.far;
        let flushing = far.flush.as_ref().and_then(Flush::first_left).map(|key| key.0);
        [flushing, far.buffer.due_min()].into_iter().flatten().min()
    }

    /// When the buffer is old enough to be written, or work on a run goes on.
    pub(super) fn flush_deadline(&self) -> Option<MonoNs> {
        let far = &self.volatile.far;
        let now = self.volatile.now.mono;
        match &far.flush {
            Some(flush) => match flush.stage {
                Stage::Filling { is_writing, ref writer, written, .. } => {
                    (!is_writing || flush.may_fill(writer, written)).then_some(now)
                }
                Stage::Moving { .. } if far.moving.len() < MOVING_COUNT_MAX => Some(now),
                _ => None,
            },
            None if far.buffer.is_empty() => None,
            None => {
                let old = far.since.map(|since| since.plus_ms(self.config.horizon_ms / 4));
                let is_ready = far.is_wanted || far.buffer.size_bytes() >= self.config.run_size_bytes;
                let at = if is_ready { now } else { old.unwrap_or(now) };
                Some(at.max(far.retry_at))
            }
        }
    }

    pub(super) fn flush(&mut self, out: &mut Effects) {
        if self.volatile.draining {
            return;
        }
        let rescue = self.volatile.now.wall.plus_ms(self.rescue_ms());
        if self.rescue_due().is_some_and(|due| due <= rescue) {
            self.give_up_flush(true, out);
            self.reschedule_buffer();
        }
        let far = &mut self.volatile.far;
        match &mut far.flush {
            Some(flush) => match flush.stage {
                Stage::Filling { .. } => self.fill(out),
                Stage::Moving { .. } => self.move_on(out),
                _ => {}
            },
            None => {
                if self.flush_deadline().is_some_and(|at| at <= self.volatile.now.mono) {
                    self.begin_flush(out);
                }
            }
        }
    }

    fn begin_flush(&mut self, out: &mut Effects) {
        let far = &mut self.volatile.far;
        let run = far.next_run();
        far.since = None;
        far.is_wanted = false;
        let rest = far.buffer.take_some(self.config.run_size_bytes);
        if !far.buffer.is_empty() {
            far.since = Some(self.volatile.now.mono);
        }
        far.flush = Some(Flush {
            run,
            rest,
            keys: Vec::new(),
            topics: Vec::new(),
            versions: HashMap::new(),
            stage: Stage::Creating,
        });
        far.request(Purpose::Flush(run), RunOp::Create { run }, out);
    }

    /// Events in one block of a run: such that its `Moved` record fits a block of the log with room to spare, and that
    /// small runs, too, have blocks enough to be loaded in parts.
    fn run_block_count_max(&self) -> u32 {
        count_max(&self.config).min(self.config.run_size_bytes / 512).max(1) as u32
    }

    /// Puts the next block of a run together, and hands over what is worth a write.
    fn fill(&mut self, out: &mut Effects) {
        let horizon = self.horizon();
        let Shard { durable, volatile, .. } = self;
        let far = &mut volatile.far;
        let Some(Flush { run, rest, keys, topics, versions, stage }) = &mut far.flush else { return };
        let run = *run;
        let Stage::Filling { writer, bytes, written, is_writing } = stage else { return };
        let block_end = writer.complete_size_bytes() + 1;
        // Taken together, events are written together: no more of them than about a block.
        let batch_len = (BLOCK_SIZE_BYTES / rest.mean_size_bytes().max(1)).clamp(1, WARM_COUNT);
        let mut batch: SmallVec<[Key; WARM_COUNT]> = SmallVec::new();
        while writer.complete_size_bytes() < block_end
            && writer.complete_size_bytes() - *written < WRITE_SIZE_BYTES
        {
            batch.extend(rest.by_ref().take(batch_len));
            if batch.is_empty() {
                break;
            }
            durable.warm(batch.iter().map(|key| key.1));
            for (due, sequence) in batch.drain(..) {
                let entry = durable.table.get(sequence).filter(|entry| entry.due == due);
                let Some(entry) = entry else { continue };
                // Its time begins to run again when that is durable.
                if volatile.rescheduling.contains_key(&sequence) {
                    continue;
                }
                if due <= horizon {
                    volatile.wheel.insert(crate::wheel::Tick(due.0), sequence.0);
                    continue;
                }
                if let Some(forward) = durable.forwards.get(&sequence) {
                    // One that was rescheduled away and back has two keys, and may be written or on its way by the other
                    // one. What it became since has its place in the buffer.
                    if versions.contains_key(&sequence) || is_moving(&far.moving, sequence).is_some() {
                        continue;
                    }
                    writer.forward(Forwarded { sequence, due, forward: *forward });
                    versions.insert(sequence, forward.version);
                }
                writer.push(bytes, (due, sequence), entry.topic, durable.payloads.event(entry.location));
                keys.push((due, sequence));
                topics.push(entry.topic);
            }
        }
        if *is_writing {
            return;
        }
        if rest.peek().is_some() {
            if writer.complete_size_bytes() - *written >= WRITE_SIZE_BYTES {
                let bytes = writer.take_complete(bytes);
                let offset = std::mem::replace(written, writer.complete_size_bytes());
                *is_writing = true;
                far.request(Purpose::Flush(run), RunOp::Write { run, offset, bytes }, out);
            }
            return;
        }
        if keys.is_empty() {
            far.flush = None;
            far.flush_ended();
            far.request(Purpose::Remove, RunOp::Remove { run }, out);
            return;
        }
        let offset = *written;
        let mut bytes = std::mem::take(bytes);
        let shard = self.config.shard;
        let writer = std::mem::replace(writer, RunWriter::new(shard, run, 1));
        let (footer, size_bytes) = writer.finish(&mut bytes);
        *stage = Stage::Ending { footer, size_bytes };
        far.request(Purpose::Flush(run), RunOp::Write { run, offset, bytes }, out);
    }

    pub(super) fn flush_op_done(&mut self, run: RunId, has_failed: bool, out: &mut Effects) {
        let (shard, count_max) = (self.config.shard, self.run_block_count_max());
        let far = &mut self.volatile.far;
        let Some(flush) = far.flush.as_mut().filter(|flush| flush.run == run) else {
            // It was given up meanwhile, and what was just made is left over.
            far.request(Purpose::Remove, RunOp::Remove { run }, out);
            return;
        };
        if has_failed {
            self.give_up_flush(false, out);
            return;
        }
        match &mut flush.stage {
            Stage::Creating => {
                let writer = RunWriter::new(shard, run, count_max);
                flush.stage = Stage::Filling { writer, bytes: Vec::new(), written: 0, is_writing: false };
            }
            Stage::Filling { is_writing, .. } => *is_writing = false,
            Stage::Ending { footer, size_bytes } => {
                let blocks = footer.index.iter().map(|place| place.count).collect();
                let (size_bytes, as_of) = (*size_bytes, self.durable.applied);
                let footer = std::mem::take(footer);
                flush.stage = Stage::Moving { blocks, block: 0, at: 0 };
                let (moved, loaded, footer_id) = (0, 0, footer.id);
                let closed = false;
                self.volatile.far.footers.push_back((run, footer));
                out.log().run(&RunStatement { run, closed, moved, loaded, footer_id, as_of, size_bytes });
            }
            Stage::Moving { .. } => unreachable!("nothing is written while events move"),
        }
    }

    /// Logs that the next blocks' events have left the log for the run.
    fn move_on(&mut self, out: &mut Effects) {
        let Shard { durable, volatile, .. } = self;
        let far = &mut volatile.far;
        if far.moving.len() >= MOVING_COUNT_MAX {
            return;
        }
        let Some(Flush { run, keys, topics, versions, stage, .. }) = &mut far.flush else { return };
        let run = *run;
        let Stage::Moving { blocks, block, at } = stage else { return };
        let (first_block, from) = (*block, *at);
        while let Some(count) = blocks.get(*block).map(|count| *count as usize) {
            if *block > first_block && *at + count - from > MOVE_COUNT_MAX.min(count_max(&self.config)) {
                break;
            }
            *block += 1;
            *at += count;
        }
        // The end of these is in the log already.
        let mut ending: Vec<Sequence> = volatile.ending.iter().copied().collect();
        ending.sort_unstable();
        let is_pending =
            |key: &Key| durable.table.get(key.1).is_some() && ending.binary_search(&key.1).is_err();
        // What was rescheduled since it was written, or is about to be, is elsewhere by now.
        let is_as_written = |key: &Key| {
            let version = durable.forwards.get(&key.1).map_or(0, |forward| forward.version);
            version == versions.get(&key.1).copied().unwrap_or(0)
                && !volatile.rescheduling.contains_key(&key.1)
                && (version == 0 || is_moving(&far.moving, key.1).is_none())
        };
        let (mut alive, mut dead) = (Vec::with_capacity(*at - from), Vec::new());
        let moved = keys[from..*at].chunks(WARM_COUNT).zip(topics[from..*at].chunks(WARM_COUNT));
        for (batch, topics) in moved {
            durable.table.touch(batch.iter().map(|key| key.1));
            for (key, topic) in batch.iter().zip(topics) {
                let stays = is_pending(key) && is_as_written(key);
                if stays { alive.push(key.1) } else { dead.push((*key, *topic)) }
            }
        }
        let (block_count, is_last) = (*block - first_block, *block == blocks.len());
        for part in dead.chunks(count_max(&self.config) / 2) {
            // Before the events move: in between, a crash must not bring these back.
            out.log().cancelled_in_run(run, part.iter().copied());
        }
        out.log().moved(run, first_block as u32, block_count as u32, &alive);
        alive.sort_unstable();
        far.moving.push_back(Moving { run, due: keys[from].0, sequences: alive });
        if is_last {
            far.flush = None;
            far.flush_ended();
        }
    }

    /// Ends the making of a run: what has not left the log goes back into the buffer. `is_busy` where an operation may
    /// be under way.
    fn give_up_flush(&mut self, is_busy: bool, out: &mut Effects) {
        let Some(flush) = self.volatile.far.flush.take() else { return };
        let far = &mut self.volatile.far;
        far.retry_at = self.volatile.now.mono.plus_ms(RETRY_AFTER_MS);
        far.flush_ended();
        match flush.stage {
            // The file goes once the operation under way has ended.
            Stage::Creating | Stage::Ending { .. } | Stage::Filling { is_writing: true, .. } if is_busy => {}
            // What was moved stays there.
            Stage::Moving { .. } => {}
            _ => far.request(Purpose::Remove, RunOp::Remove { run: flush.run }, out),
        }
        let moved = flush.moved_count();
        for key in flush.keys.into_iter().skip(moved).chain(flush.rest) {
            self.schedule_again(key);
        }
    }

    fn schedule_again(&mut self, (due, sequence): Key) {
        let entry = self.durable.table.get(sequence).filter(|entry| entry.due == due);
        // One that is about to be rescheduled begins again when that is durable.
        if let Some(entry) = entry.filter(|_| !self.volatile.rescheduling.contains_key(&sequence)) {
            let size_bytes = entry.location.event_len();
            self.schedule(due, sequence, size_bytes);
        }
    }

    /// Puts what is in the buffer and no longer far on the wheel.
    fn reschedule_buffer(&mut self) {
        let keys = self.volatile.far.buffer.take();
        self.volatile.far.since = None;
        for key in keys {
            self.schedule_again(key);
        }
    }
}

/// Events in one record, such that it fits a block of the log with room to spare.
fn count_max(config: &crate::ShardConfig) -> usize {
    config.block_size_bytes_max / 32
}
