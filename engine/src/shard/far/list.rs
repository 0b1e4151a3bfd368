//! The part of a listing that is in runs.

use std::io;
use std::ops::Range;

use escapement_protocol::frame::EventPlace;

use super::look_up::RETRY_AFTER_MS;
use super::{Purpose, Shard};
use crate::effects::Effects;
use crate::far::format::RunBlock;
use crate::far::{Ahead, RunDamage, RunError, RunId, RunOp};
use crate::shard::list::{Candidate, Page};

/// Bytes of blocks that are read for one page, unless a single block is larger.
const READ_SIZE_BYTES: usize = 256 * 1024;

/// Pages that wait for the disk at once.
const PAGE_COUNT_MAX: usize = 16;

impl Shard {
    /// Goes on to the next blocks that may have what is asked for, of the run that the page is at then: none where it has to
    /// stop for now; nothing where none are ahead.
    pub(in crate::shard) fn blocks_ahead(&self, page: &mut Page) -> Option<Range<u32>> {
        let runs = &self.durable.runs;
        let due = page.list.from..page.list.until;
        loop {
            if page.looks == 0 {
                return Some(0..0);
            }
            page.looks -= 1;
            let (id, run) = runs.first_from(RunId(page.at.run))?;
            let mut block = page.at.run_block;
            if id.0 != page.at.run {
                (page.at.run, page.at.entry, block) = (id.0, 0, 0);
            }
            let ahead = run.block_ahead(&mut block, page.list.topic, &due, &mut page.looks);
            if block != page.at.run_block {
                (page.at.run_block, page.at.entry) = (block, 0);
            }
            match ahead {
                Ahead::Block(first) => {
                    let footer = run.footer.as_ref()?;
                    let (mut end, mut len, mut count) = (first, 0, 0);
                    for place in footer.index.get(first as usize..run.moved as usize).unwrap_or_default() {
                        let found = footer.topics.count(end, page.list.topic) as usize;
                        let is_enough = len + place.size_bytes as usize > READ_SIZE_BYTES
                            || count >= page.list.page_count_max()
                            || place.first.0 >= due.end
                            || found == 0;
                        if end > first && is_enough {
                            break;
                        }
                        (end, len, count) = (end + 1, len + place.size_bytes as usize, count + found);
                    }
                    return Some(first..end);
                }
                Ahead::Unknown => return Some(0..0),
                // A run gets no more blocks once there is a later one.
                Ahead::Nothing => match id.0.checked_add(1).and_then(|next| runs.first_from(RunId(next))) {
                    Some((next, _)) => {
                        (page.at.run, page.at.run_block, page.at.entry) = (next.0, 0, 0);
                    }
                    None => return None,
                },
            }
        }
    }

    /// Reads the blocks that a page needs.
    pub(in crate::shard) fn read_listed(&mut self, page: Box<Page>, blocks: Range<u32>, out: &mut Effects) {
        if self.volatile.far.page_count >= PAGE_COUNT_MAX {
            return self.refuse_page(&page, RETRY_AFTER_MS, out);
        }
        let run = RunId(page.at.run);
        let footer = self.durable.runs.get(run).and_then(|run| run.footer.as_ref());
        let index = &footer.expect("a run whose blocks are ahead is known").index;
        let places = &index[blocks.start as usize..blocks.end as usize];
        let len = places.iter().map(|place| place.size_bytes as usize).sum();
        let op = RunOp::Read { run, offset: places[0].offset, len };
        let (first_block, block_count) = (blocks.start, blocks.len() as u32);
        let far = &mut self.volatile.far;
        far.page_count += 1;
        far.request(Purpose::List { page, run, first_block, block_count }, op, out);
    }

    /// The blocks that a page needs were read.
    pub(super) fn list_read(
        &mut self,
        mut page: Box<Page>,
        run: RunId,
        blocks: Range<u32>,
        result: io::Result<Vec<u8>>,
        out: &mut Effects,
    ) {
        if let Err(error) = self.list_blocks(&mut page, run, blocks.clone(), result) {
            self.pass_over(&mut page, run, blocks, &error);
        }
        self.fill_page(page, false, out);
    }

    /// Goes on behind what can't be read of these blocks, and counts what may be in it. A block that is damaged is held from
    /// now on; a read that has failed may succeed for the next listing.
    fn pass_over(&mut self, page: &mut Page, id: RunId, blocks: Range<u32>, error: &RunError) {
        let unread = match error {
            RunError::Damaged(_, RunDamage::Block(number)) => *number..*number + 1,
            _ => blocks,
        };
        if let RunError::Damaged(..) = error {
            self.hold(id, unread.start, error);
        }
        let run = self.durable.runs.get(id).expect("a run that is read is known");
        page.unread += run.pending_of(page.list.topic, unread.clone());
        (page.at.run_block, page.at.entry) = (unread.end, 0);
    }

    fn list_blocks(
        &self,
        page: &mut Page,
        id: RunId,
        blocks: Range<u32>,
        result: io::Result<Vec<u8>>,
    ) -> Result<(), RunError> {
        let Some(run) = self.durable.runs.get(id) else { return Ok(()) };
        // What has come to memory meanwhile is ahead there.
        if run.loaded >= blocks.end {
            return Ok(());
        }
        let bytes = result.map_err(|error| RunError::Io(id, error))?;
        let footer = run.footer.as_ref().ok_or(RunError::Missing(id))?;
        let start = footer.index[blocks.start as usize].offset;
        for number in blocks.start.max(run.loaded)..blocks.end {
            let place = &footer.index[number as usize];
            let block = bytes.get((place.offset - start) as usize..).unwrap_or_default();
            let block = RunBlock::parse_at(block, self.config.shard, id, number, place);
            let block = block.map_err(|damage| RunError::Damaged(id, damage))?;
            let seen = if number == page.at.run_block { page.at.entry } else { 0 };
            for (at, entry) in (0..).zip(block.entries()).skip(seen as usize) {
                if page.is_full() {
                    (page.at.run_block, page.at.entry) = (number, at);
                    return Ok(());
                }
                let (due, sequence) = entry.key;
                if run.ended.contains_key(&entry.key) || !page.wants(sequence, entry.topic, due) {
                    continue;
                }
                if self.durable.is_cancelled_with_group(entry.topic, sequence, entry.event) {
                    continue;
                }
                let forwarded = footer.forwarded(sequence);
                let candidate = Candidate {
                    sequence,
                    due: self.durable.due_with_group(entry.topic, sequence, entry.event, due),
                    schedule_time: forwarded.map_or(due, |forwarded| forwarded.forward.schedule_time),
                    topic: entry.topic,
                    place: EventPlace::Run,
                    tasks: &[],
                    bytes: entry.event,
                };
                page.offer(self.config.shard, self.volatile.now.wall, &candidate);
            }
            (page.at.run_block, page.at.entry) = (number + 1, 0);
        }
        Ok(())
    }
}
