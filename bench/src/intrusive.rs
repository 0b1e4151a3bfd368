//! The alternative to the wheel in use: a hierarchical wheel of doubly linked lists through a slab. It
//! cancels by unlinking, needs no table, and never meets a dead entry.

const NIL: u32 = u32::MAX;
const SLOT_BITS: u32 = 10;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;

#[derive(Clone, Copy, Debug)]
struct Node {
    due: u64,
    key: u64,
    next: u32,
    /// The previous node, or the list's number counted down from `NIL` where this is the first.
    prev: u32,
}

/// Timers of 24 bytes each, with handles.
#[derive(Debug)]
pub struct IntrusiveWheel {
    nodes: Vec<Node>,
    lists: Box<[u32]>,
    free: u32,
    now: u64,
}

impl IntrusiveWheel {
    /// An empty wheel, at `now`.
    #[must_use]
    pub fn new(now: u64) -> Self {
        let lists = vec![NIL; SLOTS * LEVELS].into_boxed_slice();
        IntrusiveWheel { nodes: Vec::new(), lists, free: NIL, now }
    }

    fn list_of(&self, due: u64) -> usize {
        let differ = (due ^ self.now) | 1;
        let level = ((63 - differ.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1);
        level as usize * SLOTS + (due >> (level * SLOT_BITS)) as usize % SLOTS
    }

    fn link(&mut self, at: u32) {
        let list = self.list_of(self.nodes[at as usize].due);
        let first = std::mem::replace(&mut self.lists[list], at);
        let node = &mut self.nodes[at as usize];
        (node.next, node.prev) = (first, NIL - 1 - list as u32);
        if first != NIL {
            self.nodes[first as usize].prev = at;
        }
    }

    /// Adds a key that is due later than now, and answers its handle.
    pub fn insert(&mut self, due: u64, key: u64) -> u32 {
        let node = Node { due, key, next: NIL, prev: NIL };
        let at = if self.free == NIL {
            self.nodes.push(node);
            self.nodes.len() as u32 - 1
        } else {
            let at = self.free;
            self.free = self.nodes[at as usize].next;
            self.nodes[at as usize] = node;
            at
        };
        self.link(at);
        at
    }

    /// Takes out what a handle names, which was neither cancelled nor yielded.
    pub fn cancel(&mut self, handle: u32) {
        let Node { next, prev, .. } = self.nodes[handle as usize];
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        let list = (NIL - 1 - prev) as usize;
        if list < self.lists.len() {
            self.lists[list] = next;
        } else {
            self.nodes[prev as usize].next = next;
        }
        self.nodes[handle as usize].next = self.free;
        self.free = handle;
    }

    /// Moves one tick on, and appends the keys that are due then, in order.
    pub fn tick(&mut self, out: &mut Vec<u64>) {
        self.now += 1;
        for level in (1..LEVELS).rev() {
            if self.now.is_multiple_of(1 << (level as u32 * SLOT_BITS)) {
                let slot = (self.now >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
                let mut at = std::mem::replace(&mut self.lists[level * SLOTS + slot], NIL);
                while at != NIL {
                    let next = self.nodes[at as usize].next;
                    self.link(at);
                    at = next;
                }
            }
        }
        let before = out.len();
        let mut at = std::mem::replace(&mut self.lists[self.now as usize % SLOTS], NIL);
        while at != NIL {
            let Node { key, next, .. } = self.nodes[at as usize];
            out.push(key);
            self.nodes[at as usize].next = self.free;
            self.free = at;
            at = next;
        }
        out[before..].sort_unstable();
    }

    /// Bytes allocated.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.lists.len() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Random;

    #[test]
    fn it_yields_what_was_inserted_and_not_cancelled() {
        let (mut wheel, mut random) = (IntrusiveWheel::new(5_000), Random(3));
        let mut expected = BTreeSet::new();
        let mut handles = Vec::new();
        for key in 0..10_000 {
            let due = 5_001 + random.below(2_000_000);
            expected.insert((due, key));
            handles.push((wheel.insert(due, key), due, key));
        }
        for (handle, due, key) in handles.into_iter().step_by(3) {
            wheel.cancel(handle);
            expected.remove(&(due, key));
        }
        let (mut out, mut yielded) = (Vec::new(), Vec::new());
        for now in 5_001..=2_005_001 {
            wheel.tick(&mut out);
            yielded.extend(out.drain(..).map(|key| (now, key)));
        }
        assert!(yielded.into_iter().eq(expected));
    }
}
