//! Order within a key.

use escapement_protocol::Sequence;

/// Place in a key's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    pub(super) due_ms: u64,
    pub(super) sequence: Sequence,
}

#[derive(Clone, Debug, Default)]
struct Key {
    /// The last in order of those dispatched so far.
    last: Order,
    running: u32,
    /// The event whose retry holds the key.
    held_by: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

impl Keys {
    pub(super) fn new(count: u32) -> Self {
        Keys(vec![Key::default(); count as usize])
    }

    /// Whether the event at `order` should have been dispatched before one that already was.
    ///
    /// True only where its receipt had arrived before that other one became due: then it was known
    /// and due when the other was picked, whatever the moment of its acceptance was.
    pub(super) fn is_overtaken(&mut self, key: u32, order: Order, acknowledged_ms: Option<u64>) -> bool {
        let last = &mut self.0[key as usize].last;
        let overtaken = order < *last && acknowledged_ms.is_some_and(|ms| ms < last.due_ms);
        *last = order.max(*last);
        overtaken
    }

    /// Notes a running attempt; false where the key was not free for it.
    pub(super) fn start(&mut self, key: u32, n: u64) -> bool {
        let key = &mut self.0[key as usize];
        let free = key.running == 0 && key.held_by.is_none_or(|holder| holder == n);
        key.running += 1;
        free
    }

    /// Notes the end of an attempt, after which the key may wait for the same event's retry.
    pub(super) fn finish(&mut self, key: u32, n: u64, retry: bool) {
        let key = &mut self.0[key as usize];
        key.running = key.running.saturating_sub(1);
        if retry {
            key.held_by = Some(n);
        } else if key.held_by == Some(n) {
            key.held_by = None;
        }
    }
}
