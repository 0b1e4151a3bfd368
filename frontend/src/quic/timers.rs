//! One deadline per connection, in a heap that knows where each connection's entry is.
//!
//! A connection's deadline moves at nearly every turn, mostly later. Entries are moved in place, so the heap never
//! holds more than one per connection, and its top is exact.

use escapement_protocol::MonoNs;

const ABSENT: u32 = u32::MAX;

/// Deadlines by connection index. Setting, clearing and taking are O(log n).
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: Vec<(MonoNs, u32)>,
    position: Vec<u32>,
}

impl Timers {
    /// Sets, moves or clears the deadline of `index`.
    pub(super) fn set(&mut self, index: u32, deadline: Option<MonoNs>) {
        if self.position.len() <= index as usize {
            self.position.resize(index as usize + 1, ABSENT);
        }
        let at = self.position[index as usize];
        match deadline {
            Some(deadline) if at == ABSENT => {
                self.heap.push((deadline, index));
                self.rise(self.heap.len() - 1);
            }
            Some(deadline) => {
                let at = at as usize;
                if self.heap[at].0 != deadline {
                    self.heap[at].0 = deadline;
                    self.settle(at);
                }
            }
            None if at == ABSENT => {}
            None => self.remove(at as usize),
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<MonoNs> {
        self.heap.first().map(|(deadline, _)| *deadline)
    }

    /// Takes the connection with the earliest deadline, if that is not after `now`.
    pub(super) fn expire(&mut self, now: MonoNs) -> Option<u32> {
        let &(deadline, index) = self.heap.first()?;
        if deadline > now {
            return None;
        }
        self.remove(0);
        Some(index)
    }

    fn remove(&mut self, at: usize) {
        let (_, index) = self.heap.swap_remove(at);
        self.position[index as usize] = ABSENT;
        if at < self.heap.len() {
            self.settle(at);
        }
    }

    fn settle(&mut self, at: usize) {
        let at = self.rise(at);
        self.sink(at);
    }

    fn rise(&mut self, mut at: usize) -> usize {
        let entry = self.heap[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent] <= entry {
                break;
            }
            self.place(at, self.heap[parent]);
            at = parent;
        }
        self.place(at, entry);
        at
    }

    fn sink(&mut self, mut at: usize) {
        let entry = self.heap[at];
        loop {
            let left = 2 * at + 1;
            let Some(&first) = self.heap.get(left) else { break };
            let (child, least) = match self.heap.get(left + 1) {
                Some(&second) if second < first => (left + 1, second),
                _ => (left, first),
            };
            if entry <= least {
                break;
            }
            self.place(at, least);
            at = child;
        }
        self.place(at, entry);
    }

    fn place(&mut self, at: usize, entry: (MonoNs, u32)) {
        self.heap[at] = entry;
        self.position[entry.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn behaves_like_a_map_sorted_by_deadline_over_random_operations() {
        let mut timers = Timers::default();
        let mut model = BTreeMap::<u32, MonoNs>::new();
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..20_000 {
            let index = random(50) as u32;
            match random(4) {
                0 => {
                    timers.set(index, None);
                    model.remove(&index);
                }
                1 => {
                    let now = MonoNs(random(1_000));
                    let taken = timers.expire(now);
                    let due = model.iter().map(|(i, d)| (*d, *i)).min().filter(|(d, _)| *d <= now);
                    assert_eq!(taken, due.map(|(_, i)| i));
                    taken.map(|i| model.remove(&i));
                }
                _ => {
                    let deadline = MonoNs(random(1_000));
                    timers.set(index, Some(deadline));
                    model.insert(index, deadline);
                }
            }
            assert_eq!(timers.next(), model.values().min().copied());
        }
    }
}
