//! Listing pending events, a page at a time.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::items::{TaskState, u16_at, u32_at, u64_at};
use super::query::EventInfo;
use crate::ids::shard_of;
use crate::{Sequence, ShardId, TopicId, WallMs};

/// Most events of one page.
pub const EVENT_PAGE_COUNT_MAX: u32 = 1_000;

/// Bytes of events, as [`ListedEvent::size_bytes`] counts them, from which on a page takes no more.
pub const EVENT_PAGE_SIZE_BYTES_MAX: usize = 128 * 1024;

/// Bytes of a page token.
pub const PAGE_TOKEN_SIZE_BYTES: usize = 56;

const TOKEN_VERSION: u8 = 1;

/// Which events are asked for, and how many of them at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEvents {
    /// Events of this topic.
    pub topic: TopicId,
    /// In this state: `Scheduled`, `Ready` or `Backoff`; `None` for any.
    pub state: Option<TaskState>,
    /// With this ordering key; empty for any and none.
    pub ordering_key: Vec<u8>,
    /// Due at this moment or later.
    pub from: WallMs,
    /// Due before this moment; the latest one for no bound.
    pub until: WallMs,
    /// Most events of the page; 0 and more than [`EVENT_PAGE_COUNT_MAX`] for that many.
    pub count_max: u32,
    /// Where the page before ended, as it said itself; empty for the first page.
    pub token: Vec<u8>,
    /// Who is asked. Not on the wire: the door finds it by [`ListEvents::position`].
    pub shard: ShardId,
}

impl Default for ListEvents {
    fn default() -> Self {
        ListEvents {
            topic: TopicId(0),
            state: None,
            ordering_key: Vec::new(),
            from: WallMs(0),
            until: WallMs(u64::MAX),
            count_max: 0,
            token: Vec::new(),
            shard: ShardId(0),
        }
    }
}

impl ListEvents {
    /// Where the page begins, on a node of so many shards.
    ///
    /// # Errors
    /// The token is not one that such a node gave for these events.
    pub fn position(&self, shard_count: u16) -> Result<PageToken, TokenError> {
        let filter = self.filter();
        if self.token.is_empty() {
            let shard = match &self.ordering_key[..] {
                [] => ShardId(0),
                key => shard_of(self.topic, key, b"", b"", shard_count),
            };
            return Ok(PageToken::first(shard, filter));
        }
        let token = PageToken::parse(&self.token).ok_or(TokenError::Damaged)?;
        if token.filter != filter {
            return Err(TokenError::OtherEvents);
        }
        if token.shard.0 >= shard_count {
            return Err(TokenError::Stale);
        }
        Ok(token)
    }

    /// Whether more than one shard may have such events.
    #[must_use]
    pub fn is_of_every_shard(&self) -> bool {
        self.ordering_key.is_empty()
    }

    /// The token of the page that begins behind all that a shard has, on a node of so many shards; empty where no other one
    /// is to be asked.
    #[must_use]
    pub fn token_past(&self, shard: ShardId, shard_count: u16) -> Vec<u8> {
        let next = ShardId(shard.0 + 1);
        if self.is_of_every_shard() && next.0 < shard_count {
            PageToken::first(next, self.filter()).to_bytes()
        } else {
            Vec::new()
        }
    }

    /// Most events of the page.
    #[must_use]
    pub fn page_count_max(&self) -> usize {
        match self.count_max {
            0 => EVENT_PAGE_COUNT_MAX as usize,
            count => count.min(EVENT_PAGE_COUNT_MAX) as usize,
        }
    }

    /// A hash of what is asked for, without the page.
    fn filter(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(&self.topic.0.to_le_bytes());
        hasher.update(&[self.state.map_or(0, |state| state as u8)]);
        hasher.update(&self.from.0.to_le_bytes());
        hasher.update(&self.until.0.to_le_bytes());
        hasher.update(&self.ordering_key);
        hasher.digest()
    }
}

/// Why a page token is refused. In each case the listing has to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its bytes are not a token's.
    #[error(
        "the page token is not one that a node gave: pass on what the last page said, or list from the first page"
    )]
    Damaged,
    /// It belongs to a listing of other events.
    #[error(
        "the page token is of a listing with another topic, state, key or time range: repeat those, or list from the first page"
    )]
    OtherEvents,
    /// The node has started since, or it is another node's.
    #[error(
        "the page token is of an earlier start of the node, or of another node: list from the first page"
    )]
    Stale,
}

/// Where a page begins: whose turn it is, and how far that shard has come.
///
/// A shard passes over two sequences of places, in both of which what moves comes in at the end: the blocks of its log,
/// for what is in memory, and its runs. So what is pending is in a place that was passed over after it came there, or
/// in one that is still ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken {
    /// Whose turn it is.
    pub shard: ShardId,
    /// Names one start of the shard; 0 where it has not begun.
    pub start: u32,
    /// Of what is asked for.
    pub filter: u64,
    /// Events from this sequence on came after the shard began, and are left out.
    pub bound: Sequence,
    /// The block of the log from which on nothing in memory was looked at.
    pub block: u64,
    /// What comes next of what that block holds.
    pub index: u32,
    /// The run from which on nothing was looked at.
    pub run: u32,
    /// What comes next of that run's blocks.
    pub run_block: u32,
    /// And of that block's events.
    pub entry: u32,
}

impl PageToken {
    /// The beginning of a shard's part.
    #[must_use]
    pub fn first(shard: ShardId, filter: u64) -> PageToken {
        PageToken {
            shard,
            start: 0,
            filter,
            bound: Sequence(0),
            block: 0,
            index: 0,
            run: 0,
            run_block: 0,
            entry: 0,
        }
    }

    /// Reads the byte form.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<PageToken> {
        let bytes: &[u8; PAGE_TOKEN_SIZE_BYTES] = bytes.try_into().ok()?;
        let is_token = bytes[..2] == [TOKEN_VERSION, 0] && u64_at(bytes, 48) == xxh3_64(&bytes[..48]);
        is_token.then(|| PageToken {
            shard: ShardId(u16_at(bytes, 2)),
            start: u32_at(bytes, 4),
            filter: u64_at(bytes, 8),
            bound: Sequence(u64_at(bytes, 16)),
            block: u64_at(bytes, 24),
            index: u32_at(bytes, 32),
            run: u32_at(bytes, 36),
            run_block: u32_at(bytes, 40),
            entry: u32_at(bytes, 44),
        })
    }

    /// The byte form: [`PAGE_TOKEN_SIZE_BYTES`] of them.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PAGE_TOKEN_SIZE_BYTES);
        bytes.extend([TOKEN_VERSION, 0]);
        bytes.extend(self.shard.0.to_le_bytes());
        bytes.extend(self.start.to_le_bytes());
        for number in [self.filter, self.bound.0, self.block] {
            bytes.extend(number.to_le_bytes());
        }
        for number in [self.index, self.run, self.run_block, self.entry] {
            bytes.extend(number.to_le_bytes());
        }
        let checksum = xxh3_64(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }
}

/// One pending event of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEvent {
    /// What every answer about an event says.
    pub info: EventInfo,
    /// The id that its publisher gave it.
    pub id: String,
    /// Its ordering key; empty for none.
    pub ordering_key: Vec<u8>,
    /// Attempts that have failed, of the task with the most.
    pub attempt: u16,
}

impl ListedEvent {
    /// Bytes that it takes in a frame, about, and at most.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        80 + self.id.len() + self.ordering_key.len()
    }
}

/// The answer to [`ListEvents`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventPage {
    /// Events, in no order that means anything; maybe none, though there are more.
    pub events: Vec<ListedEvent>,
    /// For the next page; empty where this was the last.
    pub token: Vec<u8>,
    /// Pending events of the topic, about, in blocks of runs that can't be read and were passed over.
    pub unread: u64,
    /// Shards whose turn it was, and that are out of service: nothing of theirs is in this page, nor in a later one.
    pub missing: Vec<ShardId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> PageToken {
        let list = ListEvents { topic: TopicId(7), ..ListEvents::default() };
        let first = list.position(3).expect("no token is a good one");
        PageToken {
            shard: ShardId(2),
            start: 1,
            bound: Sequence(3),
            block: u64::MAX,
            index: 5,
            run: 6,
            run_block: 7,
            entry: 8,
            ..first
        }
    }

    #[test]
    fn a_token_survives_its_bytes_and_every_change_of_them_is_noticed() {
        let bytes = token().to_bytes();
        assert_eq!(bytes.len(), PAGE_TOKEN_SIZE_BYTES);
        assert_eq!(PageToken::parse(&bytes), Some(token()));
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(PageToken::parse(&changed), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(PageToken::parse(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(PageToken::parse(&[&bytes[..], &[0]].concat()), None);
    }

    #[test]
    fn a_token_is_refused_for_other_events_and_by_a_node_without_its_shard() {
        let list = ListEvents { topic: TopicId(7), token: token().to_bytes(), ..ListEvents::default() };
        assert_eq!(list.position(3), Ok(token()));
        assert_eq!(list.position(2), Err(TokenError::Stale));
        let damaged = ListEvents { token: vec![1; 3], ..list.clone() };
        assert_eq!(damaged.position(3), Err(TokenError::Damaged));
        let others = [
            ListEvents { topic: TopicId(8), ..list.clone() },
            ListEvents { state: Some(TaskState::Ready), ..list.clone() },
            ListEvents { ordering_key: vec![0], ..list.clone() },
            ListEvents { from: WallMs(1), ..list.clone() },
            ListEvents { until: WallMs(1), ..list.clone() },
        ];
        for other in others {
            assert_eq!(other.position(3), Err(TokenError::OtherEvents), "{other:?}");
        }
        let longer = ListEvents { count_max: 9, ..list };
        assert_eq!(longer.position(3), Ok(token()), "the size of a page may change from one to the next");
    }

    #[test]
    fn events_of_one_key_are_listed_by_the_shard_that_has_them() {
        let list = ListEvents { topic: TopicId(7), ordering_key: b"k".to_vec(), ..ListEvents::default() };
        let shard = shard_of(TopicId(7), b"k", b"source", b"id", 16);
        assert_eq!(list.position(16).map(|position| position.shard), Ok(shard));
        assert!(!list.is_of_every_shard());
        assert!(list.token_past(shard, 16).is_empty());
    }

    #[test]
    fn behind_each_shard_comes_the_next_and_behind_the_last_none() {
        let mut list = ListEvents { topic: TopicId(7), ..ListEvents::default() };
        for shard in (0..3).map(ShardId) {
            assert_eq!(list.position(3).map(|position| position.shard), Ok(shard));
            list.token = list.token_past(shard, 3);
        }
        assert!(list.token.is_empty());
    }
}
