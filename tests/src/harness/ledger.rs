//! What was published, acknowledged and delivered, event by event.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::PATIENCE;

/// This machine's clock, in ms since the Unix epoch.
///
/// # Panics
/// If the clock is before 1970.
#[must_use]
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as u64
}

#[derive(Debug)]
struct Entry {
    due_ms: u64,
    acknowledged: bool,
    deliveries: u32,
}

/// How far things are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events handed over.
    pub published: u64,
    /// Events with a receipt.
    pub acknowledged: u64,
    /// Different events that arrived.
    pub delivered: u64,
    /// Arrivals beyond the first of an event.
    pub duplicates: u64,
    /// Arrivals of events that are not in the ledger.
    pub foreign: u64,
    /// Acknowledged events that have not arrived.
    pub outstanding: u64,
}

impl Counts {
    /// Acknowledgements and first arrivals.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.acknowledged + self.delivered
    }
}

#[derive(Debug, Default)]
struct State {
    events: HashMap<u64, Entry>,
    counts: Counts,
    breaches: Vec<String>,
}

/// Told of every event on its way in and out, by any number of threads.
#[derive(Debug)]
pub struct Ledger {
    /// Begins every id, so that events of others are told apart.
    name: &'static str,
    state: Mutex<State>,
    moved: Condvar,
}

impl Ledger {
    /// An empty ledger for events whose ids begin with `name` and a dash.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Ledger { name, state: Mutex::default(), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the ledger")
    }

    /// The id of event `n`.
    #[must_use]
    pub fn id(&self, n: u64) -> String {
        format!("{}-{n}", self.name)
    }

    /// The data of event `n`: 8 to 1,031 bytes that follow from its number.
    #[must_use]
    pub fn data(&self, n: u64) -> Vec<u8> {
        let len = 8 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % 1024;
        let mut state = n;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    }

    /// Event `n`, due at `due_ms`, is about to be handed over.
    pub fn published(&self, n: u64, due_ms: u64) {
        let mut state = self.lock();
        state.counts.published += 1;
        let before = state.events.insert(n, Entry { due_ms, acknowledged: false, deliveries: 0 });
        if before.is_some() {
            state.breaches.push(format!("{n} was published twice, which is the test's mistake"));
        }
    }

    /// Event `n` has its receipt.
    pub fn acknowledged(&self, n: u64) {
        let mut state = self.lock();
        let State { events, counts, breaches } = &mut *state;
        match events.get_mut(&n) {
            Some(entry) if !entry.acknowledged => {
                entry.acknowledged = true;
                counts.acknowledged += 1;
                counts.outstanding += u64::from(entry.deliveries == 0);
            }
            _ => breaches.push(format!("{n} was acknowledged twice or never published")),
        }
        drop(state);
        self.moved.notify_all();
    }

    /// An attempt arrived now, with this id, due time and data. Returns the number of an event of this ledger.
    pub fn delivered(&self, id: &[u8], schedule_time_ms: u64, data: &[u8]) -> Option<u64> {
        let now_ms = wall_ms();
        let mut state = self.lock();
        let State { events, counts, breaches } = &mut *state;
        let number = std::str::from_utf8(id)
            .ok()
            .and_then(|id| id.strip_prefix(self.name)?.strip_prefix('-')?.parse::<u64>().ok());
        let entry = number.and_then(|n| events.get_mut(&n).map(|entry| (n, entry)));
        if let Some((n, entry)) = entry {
            if now_ms < entry.due_ms {
                breaches.push(format!("{n} came {} ms early", entry.due_ms - now_ms));
            }
            if schedule_time_ms != entry.due_ms {
                breaches.push(format!("{n} is due at {} and came as {schedule_time_ms}", entry.due_ms));
            }
            if data != self.data(n) {
                breaches.push(format!("{n} came with other data"));
            }
            entry.deliveries += 1;
            if entry.deliveries == 1 {
                counts.delivered += 1;
                counts.outstanding -= u64::from(entry.acknowledged);
            } else {
                counts.duplicates += 1;
            }
        } else {
            counts.foreign += 1;
        }
        drop(state);
        self.moved.notify_all();
        number
    }

    /// How far things are now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Waits until `reached`, and returns the counts then.
    ///
    /// # Panics
    /// If nothing moves for [`PATIENCE`] before.
    pub fn wait_until(&self, what: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        let mut state = self.lock();
        let mut last = state.counts;
        let mut moved_at = Instant::now();
        while !reached(&state.counts) {
            let (next, _) = self
                .moved
                .wait_timeout(state, Duration::from_secs(1))
                .expect("nothing panics while it holds the ledger");
            state = next;
            if state.counts != last {
                (last, moved_at) = (state.counts, Instant::now());
            }
            let missing = || state.events.iter().filter(|(_, e)| e.acknowledged && e.deliveries == 0);
            assert!(
                moved_at.elapsed() < PATIENCE,
                "waiting until {what}, nothing moved for {PATIENCE:?}: {:?}, missing {:?}",
                state.counts,
                missing().map(|(n, e)| (*n, e.due_ms)).take(5).collect::<Vec<_>>()
            );
        }
        state.counts
    }

    /// Holds the node to its promises: none early, none altered.
    ///
    /// # Panics
    /// With every breach.
    pub fn assert_clean(&self) {
        let state = self.lock();
        assert!(
            state.breaches.is_empty(),
            "{} breaches: {:#?}",
            state.breaches.len(),
            &state.breaches[..state.breaches.len().min(10)]
        );
    }
}
