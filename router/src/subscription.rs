//! One subscription: its settings, its queues, its sessions.

use std::hash::{BuildHasherDefault, Hasher};

use escapement_protocol::{Sequence, ShardId, SubscriptionId, SubscriptionSettings};
use hashbrown::HashMap;
use smallvec::SmallVec;

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

/// Ten thousand subscriptions do not fit a core's cache: what a task in its steady course needs comes
/// first and fills two cache lines, the rest is apart.
#[repr(align(64))]
pub(crate) struct Subscription {
    pub(crate) id: SubscriptionId,
    /// Most attempts at once; 0 for no limit.
    pub(crate) limit: u32,
    pub(crate) max_attempts: u32,
    pub(crate) deadline_ms: u32,
    /// Tasks that had an attempt and may go now: before the others, as they are older.
    pub(crate) retries: List,
    /// Tasks that may go now for the first time, in the order of offer.
    pub(crate) fresh: List,
    /// Tasks in all states.
    pub(crate) tasks: usize,
    pub(crate) running: u32,
    /// Attached sessions with credit.
    pub(crate) open: SmallVec<[u32; 4]>,
    /// Whose turn it is among the open ones.
    pub(crate) turn: u32,
    /// Whether it waits for its turn to pick.
    pub(crate) dirty: bool,
    pub(crate) dispatched: u64,
    pub(crate) completed: u64,
    /// Where each task is: kept only from the first withdrawal out of a large backlog until that is gone.
    pub(crate) lookup: Option<Box<FixedMap<(ShardId, Sequence), u32>>>,
    pub(crate) apart: Box<Apart>,
}

const _: () = assert!(size_of::<Option<Subscription>>() <= 128);

/// What only some tasks need.
pub(crate) struct Apart {
    pub(crate) settings: SubscriptionSettings,
    pub(crate) backoff: List,
    pub(crate) keys: Keys,
    /// Attached and cut ones.
    pub(crate) sessions: Vec<u32>,
    /// The counts that only rise, but for the two that are kept close.
    pub(crate) counts: Stats,
}

impl Subscription {
    pub(crate) fn new(id: SubscriptionId, settings: &SubscriptionSettings) -> Self {
        let mut subscription = Subscription {
            id,
            limit: 0,
            max_attempts: 0,
            deadline_ms: 0,
            retries: List::EMPTY,
            fresh: List::EMPTY,
            tasks: 0,
            running: 0,
            open: SmallVec::new(),
            turn: 0,
            dirty: false,
            dispatched: 0,
            completed: 0,
            lookup: None,
            apart: Box::new(Apart {
                settings: SubscriptionSettings::default(),
                backoff: List::EMPTY,
                keys: Keys::default(),
                sessions: Vec::new(),
                counts: Stats::default(),
            }),
        };
        subscription.set(settings);
        subscription
    }

    pub(crate) fn set(&mut self, settings: &SubscriptionSettings) {
        self.limit = settings.max_concurrent_dispatches;
        self.max_attempts = settings.max_attempts;
        self.deadline_ms = u32::try_from(settings.attempt_deadline_ms).unwrap_or(u32::MAX);
        self.apart.settings = settings.clone();
    }

    pub(crate) fn below_limit(&self) -> bool {
        self.limit == 0 || self.running < self.limit
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
        let lanes = self.apart.sessions.iter().flat_map(|at| &sessions[*at].lanes).map(|lane| lane.list);
        let lists = [self.retries, self.fresh, self.apart.backoff].into_iter();
        lists.chain(self.apart.keys.blocked()).chain(lanes).flat_map(|list| list.iter(pool))
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
            let places = self.all(pool, sessions).map(|index| (id_of(index), index)).collect();
            self.lookup = Some(Box::new(places));
        }
        match &self.lookup {
            Some(lookup) => lookup.get(&(shard, sequence)).copied(),
            None => self.all(pool, sessions).find(|index| id_of(*index) == (shard, sequence)),
        }
    }

    pub(crate) fn stats(&self, sessions: &Sessions) -> Stats {
        let held = self.apart.sessions.iter().filter(|at| !sessions[**at].attached);
        Stats {
            queued: self.tasks - self.running as usize - self.apart.backoff.len as usize,
            running: self.running as usize,
            held: held.clone().map(|at| sessions[*at].tasks as usize).sum(),
            backoff: self.apart.backoff.len as usize,
            sessions: self.apart.sessions.len() - held.count(),
            dispatched: self.dispatched,
            completed: self.completed,
            ..self.apart.counts
        }
    }
}
