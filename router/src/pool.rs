//! All tasks of the router in one paged pool. A task keeps its place from offer to completion, and
//! hangs in one intrusive list at a time: queue, key, backoff or session.

use std::ops::{Index, IndexMut};

use escapement_protocol::{Epoch, MonoNs, Tag};

use crate::TaskRef;

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// Most tasks that one router holds.
pub const TASK_COUNT_MAX: usize = 1 << INDEX_BITS;

/// Nodes allocated together, so that growth never copies.
const PAGE_NODES: usize = 512;

/// A tag is, from the top: generation 28 bits, epoch 10 bits, index 26 bits. The epoch's low bits keep
/// results of attempts from before a restart from naming an attempt of this one.
const INDEX_BITS: u32 = 26;
const EPOCH_BITS: u32 = 10;
const GENERATION_MAX: u32 = (1 << (64 - INDEX_BITS - EPOCH_BITS)) - 1;

/// A freed node whose generation passed this is never used again, so that no tag repeats. What is left
/// is more than the attempts that one task can have.
const GENERATION_RETIRED: u32 = GENERATION_MAX - 2 * u16::MAX as u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    /// In one of its subscription's two queues.
    Ready,
    /// Behind another task of its ordering key.
    Blocked,
    /// In a lane of its session.
    Running,
    /// In its subscription's backoff list, and in the router's timers.
    Backoff,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    pub(crate) task: TaskRef,
    /// Of the running attempt.
    pub(crate) deadline: MonoNs,
    pub(crate) prev: u32,
    pub(crate) next: u32,
    /// Rises with every attempt and every reuse.
    pub(crate) generation: u32,
    pub(crate) subscription: u32,
    /// Index of the session while running.
    pub(crate) session: u32,
    /// The lane of the session while running.
    pub(crate) deadline_ms: u32,
    pub(crate) state: State,
}

const _: () = assert!(size_of::<Node>() <= 88);

#[derive(Debug)]
pub(crate) struct Pool {
    pages: Vec<Box<[Node; PAGE_NODES]>>,
    free: u32,
    used: usize,
    epoch: u64,
}

impl Pool {
    pub(crate) fn new(epoch: Epoch) -> Self {
        Pool {
            pages: Vec::new(),
            free: NIL,
            used: 0,
            epoch: (u64::from(epoch.0) & ((1 << EPOCH_BITS) - 1)) << INDEX_BITS,
        }
    }

    /// A node for the task, in no list.
    pub(crate) fn take(&mut self, task: TaskRef, subscription: u32) -> u32 {
        if self.free == NIL {
            self.grow();
        }
        let index = self.free;
        let node = &mut self[index];
        let free = std::mem::replace(&mut node.next, NIL);
        node.task = task;
        node.subscription = subscription;
        self.free = free;
        self.used += 1;
        index
    }

    #[cold]
    fn grow(&mut self) {
        let first = self.pages.len() * PAGE_NODES;
        assert!(first + PAGE_NODES <= TASK_COUNT_MAX, "at most {TASK_COUNT_MAX} tasks in one router");
        let last = first + PAGE_NODES - 1;
        let node = |at: usize| Node {
            task: TaskRef::default(),
            deadline: MonoNs(0),
            prev: NIL,
            next: if at == last { NIL } else { at as u32 + 1 },
            generation: 0,
            subscription: NIL,
            session: NIL,
            deadline_ms: 0,
            state: State::Free,
        };
        self.pages.push(Box::new(std::array::from_fn(|at| node(first + at))));
        self.free = first as u32;
    }

    /// Frees a node that is in no list.
    pub(crate) fn give_back(&mut self, index: u32) {
        self.used -= 1;
        let free = self.free;
        let node = &mut self[index];
        node.state = State::Free;
        node.generation += 1;
        if node.generation <= GENERATION_RETIRED {
            node.next = free;
            self.free = index;
        }
    }

    pub(crate) fn tag(&self, index: u32) -> Tag {
        let generation = u64::from(self[index].generation) << (INDEX_BITS + EPOCH_BITS);
        Tag(generation | self.epoch | u64::from(index))
    }

    /// The node whose running attempt the tag names.
    pub(crate) fn running(&self, tag: Tag) -> Option<u32> {
        let index = (tag.0 & ((1 << INDEX_BITS) - 1)) as u32;
        let node = &self.pages.get(index as usize / PAGE_NODES)?[index as usize % PAGE_NODES];
        (node.state == State::Running && self.tag(index) == tag).then_some(index)
    }

    pub(crate) fn used(&self) -> usize {
        self.used
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.pages.len() * PAGE_NODES * size_of::<Node>()
    }
}

impl Index<u32> for Pool {
    type Output = Node;

    #[inline]
    fn index(&self, index: u32) -> &Node {
        &self.pages[index as usize / PAGE_NODES][index as usize % PAGE_NODES]
    }
}

impl IndexMut<u32> for Pool {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.pages[index as usize / PAGE_NODES][index as usize % PAGE_NODES]
    }
}

/// A doubly linked list through the pool's nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

impl List {
    pub(crate) const EMPTY: List = List { head: NIL, tail: NIL, len: 0 };

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.len > 0).then_some(self.head)
    }

    pub(crate) fn push_back(&mut self, pool: &mut Pool, index: u32) {
        self.insert_after(pool, self.tail, index);
    }

    /// Puts `index` behind `after`, or first where `after` is [`NIL`].
    pub(crate) fn insert_after(&mut self, pool: &mut Pool, after: u32, index: u32) {
        let next = if after == NIL {
            std::mem::replace(&mut self.head, index)
        } else {
            std::mem::replace(&mut pool[after].next, index)
        };
        if next == NIL {
            self.tail = index;
        } else {
            pool[next].prev = index;
        }
        let node = &mut pool[index];
        (node.prev, node.next) = (after, next);
        self.len += 1;
    }

    /// Takes out a node that is in this list.
    pub(crate) fn remove(&mut self, pool: &mut Pool, index: u32) {
        let node = &mut pool[index];
        let (prev, next) = (node.prev, node.next);
        (node.prev, node.next) = (NIL, NIL);
        if prev == NIL {
            self.head = next;
        } else {
            pool[prev].next = next;
        }
        if next == NIL {
            self.tail = prev;
        } else {
            pool[next].prev = prev;
        }
        self.len -= 1;
    }

    pub(crate) fn pop_front(&mut self, pool: &mut Pool) -> Option<u32> {
        let index = self.front()?;
        self.remove(pool, index);
        Some(index)
    }

    pub(crate) fn iter<'a>(&self, pool: &'a Pool) -> impl Iterator<Item = u32> + use<'a> {
        let step = |index: u32| (index != NIL).then_some(index);
        std::iter::successors(step(self.head), move |&at| step(pool[at].next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(pool: &mut Pool) -> u32 {
        let index = pool.take(TaskRef::default(), 0);
        pool[index].state = State::Running;
        index
    }

    #[test]
    fn a_tag_names_one_attempt_of_one_epoch() {
        let mut pool = Pool::new(Epoch(7));
        let first = running(&mut pool);
        let tag = pool.tag(first);
        assert_eq!(pool.running(tag), Some(first));
        pool.give_back(first);
        assert_eq!(pool.running(tag), None);
        let again = running(&mut pool);
        assert_eq!(again, first);
        assert_ne!(pool.tag(again), tag);
        assert_eq!(pool.running(tag), None);
        for epoch in [6, 8] {
            let mut other = Pool::new(Epoch(epoch));
            let same = running(&mut other);
            assert_eq!((same, other[same].generation), (first, 0));
            assert_eq!(other.running(tag), None, "epoch {epoch}");
        }
        assert_eq!(pool.running(Tag(u64::MAX)), None);
    }

    #[test]
    fn a_spent_node_is_never_used_again() {
        let mut pool = Pool::new(Epoch(1));
        let spent = running(&mut pool);
        pool[spent].generation = GENERATION_RETIRED;
        pool.give_back(spent);
        for _ in 0..2 * PAGE_NODES {
            assert_ne!(running(&mut pool), spent);
        }
    }
}
