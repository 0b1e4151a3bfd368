//! One subscription: its settings, its queues, its sessions.

use std::hash::{BuildHasherDefault, Hasher};

use escapement_protocol::{Sequence, ShardId, SubscriptionId, SubscriptionSettings};
use hashbrown::HashMap;

use crate::Stats;
use crate::order::Keys;
use crate::pool::{List, Pool};
use crate::session::Sessions;

/// A subscription with fewer tasks than this is searched task by task.
pub(crate) const LOOKUP_TASKS_MIN: usize = 64;

/// Hashes what is evenly distributed already or small, without a random state: the order of everything
/// that the router does is a function of its inputs.
#[derive(Clone, Copy, Default)]
pub(crate) struct FixedHasher(u64);

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let wide = u128::from((self.0 ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15)) * 0xD6E8_FEB8_6659_FD93;
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }
}

pub(crate) type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<FixedHasher>>;

pub(crate) struct Subscription {
    pub(crate) id: SubscriptionId,
    pub(crate) settings: SubscriptionSettings,
    /// Tasks that had an attempt and may go now: before the others, as they are older.
    pub(crate) retries: List,
    /// Tasks that may go now for the first time, in the order of offer.
    pub(crate) fresh: List,
    pub(crate) backoff: List,
    pub(crate) keys: Keys,
    /// Tasks in all states.
    pub(crate) tasks: usize,
    pub(crate) running: u32,
    /// Attached and cut ones.
    pub(crate) sessions: Vec<u32>,
    /// Attached sessions with credit.
    pub(crate) open: Vec<u32>,
    /// Whose turn it is among the open ones.
    pub(crate) turn: usize,
    /// Whether it waits for its turn to pick.
    pub(crate) dirty: bool,
    /// Where each task is: kept only from the first withdrawal out of a large backlog until that is gone.
    pub(crate) lookup: Option<FixedMap<(ShardId, Sequence), u32>>,
    /// The counts that only rise.
    pub(crate) counts: Stats,
}

impl Subscription {
    pub(crate) fn new(id: SubscriptionId, settings: SubscriptionSettings) -> Self {
        Subscription {
            id,
            settings,
            retries: List::EMPTY,
            fresh: List::EMPTY,
            backoff: List::EMPTY,
            keys: Keys::default(),
            tasks: 0,
            running: 0,
            sessions: Vec::new(),
            open: Vec::new(),
            turn: 0,
            dirty: false,
            lookup: None,
            counts: Stats::default(),
        }
    }

    pub(crate) fn below_limit(&self) -> bool {
        let limit = self.settings.max_concurrent_dispatches;
        limit == 0 || self.running < limit
    }

    /// The task whose turn it is.
    pub(crate) fn front(&self) -> Option<u32> {
        self.retries.front().or(self.fresh.front())
    }

    /// Whether an attempt could start, but for the bytes of the first task.
    pub(crate) fn can_pick(&self) -> bool {
        !self.open.is_empty() && self.below_limit() && self.front().is_some()
    }

    /// Every task, in all states.
    pub(crate) fn all<'a>(
        &'a self,
        pool: &'a Pool,
        sessions: &'a Sessions,
    ) -> impl Iterator<Item = u32> + use<'a> {
        let lanes = self.sessions.iter().flat_map(|at| &sessions[*at].lanes).map(|lane| lane.list);
        let lists = [self.retries, self.fresh, self.backoff].into_iter();
        lists.chain(self.keys.blocked()).chain(lanes).flat_map(|list| list.iter(pool))
    }

    pub(crate) fn find(
        &mut self,
        pool: &Pool,
        sessions: &Sessions,
        shard: ShardId,
        sequence: Sequence,
    ) -> Option<u32> {
        let id_of = |index: u32| (pool[index].task.shard, pool[index].task.sequence);
        if self.lookup.is_none() && self.tasks >= LOOKUP_TASKS_MIN {
            self.lookup = Some(self.all(pool, sessions).map(|index| (id_of(index), index)).collect());
        }
        match &self.lookup {
            Some(lookup) => lookup.get(&(shard, sequence)).copied(),
            None => self.all(pool, sessions).find(|index| id_of(*index) == (shard, sequence)),
        }
    }

    pub(crate) fn stats(&self, sessions: &Sessions) -> Stats {
        let held = self.sessions.iter().filter(|at| !sessions[**at].attached);
        Stats {
            queued: self.tasks - self.running as usize - self.backoff.len as usize,
            running: self.running as usize,
            held: held.clone().map(|at| sessions[*at].tasks as usize).sum(),
            backoff: self.backoff.len as usize,
            sessions: self.sessions.len() - held.count(),
            ..self.counts
        }
    }
}
