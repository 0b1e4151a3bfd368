//! From memory and the log into a run of names, a little in each turn.

use escapement_protocol::{MonoNs, Sequence};

use super::super::far::Purpose;
use crate::effects::Effects;
use crate::far::{Merge, RunError, RunFiles, RunId, RunOp};
use crate::names::format::{NamesFooter, NamesWriter, TopicNames};
use crate::names::{NAME_SIZE_BYTES, Name, read_footer};
use crate::shard::Shard;

/// Names that are sorted at a time, and that are put into blocks in one turn.
const PIECE_LEN: usize = 2_048;

/// Bytes of complete blocks that are written at once, while the next are put together.
const WRITE_SIZE_BYTES: usize = 1024 * 1024;

/// How long a shard whose disk refused a run waits before it tries another.
const RETRY_AFTER_MS: u64 = 1_000;

/// Where the log is short, names are written to a run once they are this part of what makes one.
const SHORT_SHARE: usize = 16;

/// A run that is being made. Its names stay in memory and in the log until the log says that it is there.
#[derive(Debug)]
pub(super) struct Flush {
    run: RunId,
    /// Counted anew as the names are read.
    topics: Vec<TopicNames>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its file is being made.
    Creating,
    /// Names are read, topic by topic, from a sequence on, and sorted in pieces.
    Sorting { topic: usize, next: Sequence, pieces: Vec<Vec<Name>> },
    /// Blocks are put together, and written where `is_writing`.
    Filling { rest: Merge<Name>, writer: NamesWriter, bytes: Vec<u8>, written: u64, is_writing: bool },
    /// The last of it is being written.
    Ending { footer: NamesFooter },
}

impl Flush {
    pub(super) fn memory_bytes(&self) -> usize {
        match &self.stage {
            Stage::Creating => 0,
            Stage::Sorting { pieces, .. } => pieces.iter().map(Vec::len).sum::<usize>() * NAME_SIZE_BYTES,
            Stage::Filling { writer, bytes, .. } => {
                let count: usize = self.topics.iter().map(|held| held.count as usize).sum();
                count * NAME_SIZE_BYTES + writer.memory_bytes() + bytes.capacity()
            }
            Stage::Ending { footer } => footer.memory_bytes(),
        }
    }

    fn has_work(&self) -> bool {
        match &self.stage {
            Stage::Sorting { .. } => true,
            Stage::Filling { rest, bytes, is_writing, .. } => {
                !is_writing || (rest.peek().is_some() && bytes.len() < WRITE_SIZE_BYTES)
            }
            Stage::Creating | Stage::Ending { .. } => false,
        }
    }
}

impl Shard {
    /// When names are to be written, or work on that goes on.
    pub(in crate::shard) fn names_deadline(&self) -> Option<MonoNs> {
        let (now, naming) = (self.volatile.now.mono, &self.volatile.naming);
        if self.volatile.draining {
            return None;
        }
        match &naming.flush {
            Some(flush) => flush.has_work().then_some(now),
            None => self.wants_names_run().then_some(now.max(naming.retry_at)),
        }
    }

    fn wants_names_run(&self) -> bool {
        let names = &self.durable.names;
        // What a run that is not in the log yet takes away is counted until then.
        if names.count() == 0 || !self.volatile.naming.footers.is_empty() {
            return false;
        }
        let (size_bytes, most) = (names.newest_memory_bytes(), self.config.names_run_size_bytes);
        let is_short = names.statements_size_bytes() > self.log_room_bytes() / 2;
        size_bytes >= most || (is_short && size_bytes >= most / SHORT_SHARE)
    }

    /// Goes on with the run that is being made, or begins one.
    pub(in crate::shard) fn flush_names(&mut self, out: &mut Effects) {
        if self.names_deadline().is_none_or(|at| at > self.volatile.now.mono) {
            return;
        }
        match self.volatile.naming.flush.as_ref().map(|flush| &flush.stage) {
            None => self.begin_names_run(out),
            Some(Stage::Sorting { .. }) => self.sort_names(),
            Some(_) => self.fill_names(out),
        }
    }

    fn begin_names_run(&mut self, out: &mut Effects) {
        let registry = &self.durable.registry;
        let window_ms = |topic| registry.topic(topic).map_or(0, |topic| topic.settings.dedup_window_ms);
        let topics = self.durable.names.seal(window_ms);
        let run = self.volatile.far.next_run();
        self.volatile.naming.flush = Some(Flush { run, topics, stage: Stage::Creating });
        self.volatile.far.request(Purpose::NamesFlush(run), RunOp::Create { run }, out);
    }

    /// Sorts the next piece; once there is none, blocks can be put together.
    fn sort_names(&mut self) {
        let shard = self.config.shard;
        let names = &self.durable.names;
        let Some(Flush { run, topics, stage }) = &mut self.volatile.naming.flush else { return };
        let Stage::Sorting { topic, next, pieces } = stage else { return };
        let mut piece: Vec<Name> = Vec::with_capacity(PIECE_LEN);
        while let Some(held) = topics.get_mut(*topic)
            && piece.len() < PIECE_LEN
        {
            let before = piece.len();
            piece.extend(names.range(held.topic, *next, held.last).take(PIECE_LEN - before));
            let count = piece.len() - before;
            held.count += count as u32;
            if piece.len() < PIECE_LEN {
                *topic += 1;
                *next = Sequence(0);
            } else if let Some(last) = piece.last() {
                *next = Sequence(last.sequence.0 + 1);
            }
        }
        if !piece.is_empty() {
            piece.sort_unstable();
            pieces.push(piece);
            return;
        }
        let count: usize = pieces.iter().map(Vec::len).sum();
        let rest = Merge::new(std::mem::take(pieces), count * NAME_SIZE_BYTES);
        let writer = NamesWriter::new(shard, *run, count);
        *stage = Stage::Filling { rest, writer, bytes: Vec::new(), written: 0, is_writing: false };
    }

    /// Puts the next blocks together, and hands over what is worth a write.
    fn fill_names(&mut self, out: &mut Effects) {
        let shard = self.config.shard;
        let Some(Flush { run, topics, stage }) = &mut self.volatile.naming.flush else { return };
        let run = *run;
        let Stage::Filling { rest, writer, bytes, written, is_writing } = stage else { return };
        if bytes.len() < WRITE_SIZE_BYTES {
            rest.by_ref().take(PIECE_LEN).for_each(|name| writer.push(bytes, &name));
        }
        if *is_writing {
            return;
        }
        let (offset, bytes) = if rest.peek().is_none() {
            let (offset, mut bytes) = (*written, std::mem::take(bytes));
            let writer = std::mem::replace(writer, NamesWriter::new(shard, run, 0));
            let footer = writer.finish(std::mem::take(topics), &mut bytes);
            *stage = Stage::Ending { footer };
            (offset, bytes)
        } else if bytes.len() >= WRITE_SIZE_BYTES {
            let offset = *written;
            *written += bytes.len() as u64;
            *is_writing = true;
            (offset, std::mem::take(bytes))
        } else {
            return;
        };
        self.volatile.far.request(Purpose::NamesFlush(run), RunOp::Write { run, offset, bytes }, out);
    }

    /// An operation on the run that is being made has ended.
    pub(in crate::shard) fn names_flush_op_done(&mut self, run: RunId, has_failed: bool, out: &mut Effects) {
        let naming = &mut self.volatile.naming;
        let flush = naming.flush.as_mut().filter(|flush| flush.run == run);
        let flush = flush.expect("one run of names is made at a time");
        if has_failed {
            // Nothing has left memory for it.
            naming.flush = None;
            naming.retry_at = self.volatile.now.mono.plus_ms(RETRY_AFTER_MS);
            return self.volatile.far.request(Purpose::Remove, RunOp::Remove { run }, out);
        }
        match &mut flush.stage {
            Stage::Creating => {
                flush.topics.iter_mut().for_each(|held| held.count = 0);
                flush.stage = Stage::Sorting { topic: 0, next: Sequence(0), pieces: Vec::new() };
            }
            Stage::Filling { is_writing, .. } => *is_writing = false,
            Stage::Ending { footer } => {
                let footer = std::mem::take(footer);
                naming.flush = None;
                for held in &footer.topics {
                    // What is in the run once that is durable is not stated after it.
                    let left = naming.forgetting.entry(held.topic).or_default();
                    *left = (*left).max(Sequence(held.last.0 + 1));
                }
                out.log().names_run(run, footer.id);
                naming.footers.push_back((run, footer));
            }
            Stage::Sorting { .. } => unreachable!("nothing is written while names are sorted"),
        }
    }

    /// Names are in a run, or it is said so again.
    pub(in crate::shard) fn apply_names_run(
        &mut self,
        block: u64,
        run: RunId,
        footer_id: u64,
        files: &mut dyn RunFiles,
    ) {
        if self.durable.names.runs.get(run).is_some() {
            return self.durable.names.runs.state_again(run, block);
        }
        let footer = if self.recovering {
            read_footer(self.config.shard, run, footer_id, files)
        } else {
            let made = self.volatile.naming.footers.pop_front();
            let (of, footer) = made.expect("the log states first what this shard has just written");
            assert_eq!(of, run, "runs of names are stated in the order of their making");
            Ok(footer)
        };
        let left = footer.iter().flat_map(|footer: &NamesFooter| &footer.topics);
        for held in left {
            self.durable.names.forget(held.topic, Sequence(held.last.0 + 1));
        }
        self.durable.names.runs.state(run, block, footer_id, footer);
    }

    /// Says of each run that all windows have passed, once they have.
    pub(super) fn end_names_runs(&mut self, out: &mut Effects) {
        let (registry, now) = (&self.durable.registry, self.volatile.now.wall);
        let window_ms = |topic| registry.topic(topic).map_or(0, |topic| topic.settings.dedup_window_ms);
        for (id, run) in self.durable.names.runs.iter_mut().filter(|(_, run)| !run.is_ending && !run.is_ended)
        {
            let Some(footer) = &run.footer else { continue };
            if footer.topics.iter().all(|held| held.accepted.plus_ms(window_ms(held.topic)) <= now) {
                run.is_ending = true;
                out.log().names_run_ended(id);
            }
        }
    }

    /// States runs of names again that blocks up to `upto` state.
    pub(in crate::shard) fn restate_names_runs(&mut self, upto: u64, out: &mut Effects) {
        for (id, run) in self.durable.names.runs.iter_mut() {
            if run.block <= upto && !run.is_stating && !run.is_ending && !run.is_ended {
                run.is_stating = true;
                out.log().names_run(id, run.footer_id);
            }
        }
    }

    /// Why a run of names that is needed can't be used, in recovery.
    pub(in crate::shard) fn names_run_fault(&mut self) -> Option<RunError> {
        self.durable.names.runs.take_fault()
    }
}
