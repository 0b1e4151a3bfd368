//! Ordering keys: of the tasks of one key, the one with the smallest (due, sequence) is in front, the
//! others are blocked. Once the front had an attempt, nothing passes it until it is complete.

use crate::TaskRef;
use crate::pool::{List, NIL, Pool, State};
use crate::subscription::FixedMap;

#[derive(Debug)]
struct Key {
    front: u32,
    blocked: List,
}

/// The keys of one subscription that have tasks.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    active: FixedMap<u64, Key>,
}

/// What becomes of a task that joins its key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is in front: it goes where its time says.
    Front,
    /// It takes the place of this task, which did not start: that one is blocked now, and still in its
    /// list of ready or backed-off tasks.
    Instead(u32),
    /// It is blocked.
    Blocked,
}

fn rank(task: &TaskRef) -> (u64, u64) {
    (task.due.0, task.sequence.0)
}

impl Keys {
    /// Joins the task at `index` to its key, which is not 0.
    pub(crate) fn join(&mut self, pool: &mut Pool, index: u32) -> Joined {
        let task = pool[index].task;
        let Some(key) = self.active.get_mut(&task.key) else {
            self.active.insert(task.key, Key { front: index, blocked: List::EMPTY });
            return Joined::Front;
        };
        let front = pool[key.front];
        let started = front.state == State::Running || front.task.attempt > 0;
        if !started && rank(&task) < rank(&front.task) {
            return Joined::Instead(std::mem::replace(&mut key.front, index));
        }
        // Offers come in order but for late ones, so the place is near the end.
        let mut after = key.blocked.tail;
        while after != NIL && rank(&pool[after].task) > rank(&task) {
            after = pool[after].prev;
        }
        key.blocked.insert_after(pool, after, index);
        pool[index].state = State::Blocked;
        Joined::Blocked
    }

    /// Blocks the former front of its key, which is in no list.
    pub(crate) fn block_first(&mut self, pool: &mut Pool, index: u32) {
        let key = self.active.get_mut(&pool[index].task.key).expect("the key has a front");
        key.blocked.insert_after(pool, NIL, index);
        pool[index].state = State::Blocked;
    }

    /// Takes the front out of its key, and answers the next.
    pub(crate) fn advance(&mut self, pool: &mut Pool, index: u32) -> Option<u32> {
        let hash = pool[index].task.key;
        let key = self.active.get_mut(&hash).expect("a task with a key has an active key");
        debug_assert_eq!(key.front, index, "only the front leaves by completing");
        match key.blocked.pop_front(pool) {
            Some(next) => {
                key.front = next;
                Some(next)
            }
            None => {
                self.active.remove(&hash);
                None
            }
        }
    }

    /// Takes a blocked task out.
    pub(crate) fn remove_blocked(&mut self, pool: &mut Pool, index: u32) {
        let key = self.active.get_mut(&pool[index].task.key).expect("a blocked task has an active key");
        key.blocked.remove(pool, index);
    }

    pub(crate) fn blocked(&self) -> impl Iterator<Item = List> + use<'_> {
        self.active.values().map(|key| key.blocked)
    }

    /// Front and blocked tasks of each active key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32, List)> + use<'_> {
        self.active.iter().map(|(hash, key)| (*hash, key.front, key.blocked))
    }

    pub(crate) fn len(&self) -> usize {
        self.active.len()
    }
}
