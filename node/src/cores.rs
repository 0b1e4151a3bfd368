//! The threads of a node's cores: how they start, what the end of one means for the others, and how all end.
//!
//! | what happens | what the cores do |
//! |---|---|
//! | a drain is asked for, or the last shard stops | end what runs, sync, and end together |
//! | a shard stops, and others serve | go on |
//! | a core cannot start | end at once: nobody was told of this node |
//! | a core panics | end at once, without another turn: what a core with a bug has told them cannot be relied on |

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use escapement_protocol::ShardId;

use crate::io::NodeClock;
use crate::mesh::Mesh;
use crate::run::CoreEnd;
use crate::serve::ServeError;

/// What all cores and whoever stops them share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mesh: Mesh,
    pub(crate) clock: Arc<NodeClock>,
    draining: AtomicBool,
    ending: AtomicBool,
    /// Cores that still have work after a drain began. Mail may come until it is 0.
    pub(crate) busy_cores: AtomicU32,
    /// What an operator is to be told, until somebody looks.
    notices: Mutex<Vec<String>>,
    /// Shards that serve.
    serving: AtomicU32,
    /// Shards that are out of service, and why.
    out: Mutex<BTreeMap<ShardId, String>>,
}

impl Shared {
    /// Of cores that are about to start; `out` are the shards that were refused, of `shard_count`.
    pub(crate) fn new(
        core_count: u16,
        clock: Arc<NodeClock>,
        shard_count: u16,
        out: BTreeMap<ShardId, String>,
    ) -> Shared {
        Shared {
            mesh: Mesh::new(core_count),
            clock,
            draining: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            busy_cores: AtomicU32::new(u32::from(core_count)),
            notices: Mutex::default(),
            serving: AtomicU32::new(u32::from(shard_count) - out.len() as u32),
            out: Mutex::new(out),
        }
    }

    /// Every core ends what runs, syncs and ends.
    pub(crate) fn drain(&self) {
        self.raise(&self.draining);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Every core ends, without another turn. To what is on the disk it is as if the process had been killed.
    pub(crate) fn end_now(&self) {
        self.raise(&self.ending);
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Leaves a notice for the operator. Rare: it takes a lock.
    pub(crate) fn tell(&self, notice: String) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
    }

    /// A shard has stopped. The others go on, as long as there are any.
    pub(crate) fn shard_stopped(&self, shard: ShardId, why: String) {
        let ShardId(number) = shard;
        self.tell(format!("shard {number} has stopped: {why}"));
        self.out.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, why);
        if self.serving.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.drain();
        } else {
            self.tell(format!(
                "the other shards go on. Shard {number} is out of service until a restart, which recovers it or says what is \
                 damaged; subscriptions that it decides for get nothing until then"
            ));
        }
    }

    /// Which shards are out of service, if any are.
    pub(crate) fn out(&self) -> Vec<ShardId> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// The notices since the last look.
    pub(crate) fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn raise(&self, flag: &AtomicBool) {
        if !flag.swap(true, Ordering::AcqRel) {
            self.mesh.wake_all();
        }
    }
}

/// Where a core sits, and how its thread behaves. One that is left in a panic ends the node at once.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) index: u16,
    pub(crate) core_count: u16,
    pub(crate) shared: Arc<Shared>,
    /// How long a loaded turn collects, in us.
    pub(crate) turn_wait_us: u32,
    pub(crate) drain_timeout_ms: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.end_now();
        }
    }
}

/// Says once whether a core has started. Kept by its thread until that ends.
pub(crate) type Started = Sender<Result<(), ServeError>>;

/// The threads of all cores.
#[derive(Debug)]
pub(crate) struct Cores {
    threads: Vec<JoinHandle<CoreEnd>>,
    started: Receiver<Result<(), ServeError>>,
}

impl Cores {
    /// Starts a thread for each seat, and waits until every one has its host.
    ///
    /// # Errors
    /// The first core that did not start; the others have ended then.
    pub(crate) fn start<P: Send + 'static>(
        shared: &Shared,
        plans: Vec<(Seat, P)>,
        body: impl Fn(Seat, P, &Started) -> CoreEnd + Clone + Send + 'static,
    ) -> Result<Cores, ServeError> {
        let count = plans.len();
        let (sender, started) = channel();
        let mut cores = Cores { threads: Vec::with_capacity(count), started };
        let mut result = Ok(());
        for (seat, plan) in plans {
            let (sender, body) = (sender.clone(), body.clone());
            let name = format!("core-{}", seat.index);
            let body = move || body(seat, plan, &sender);
            match thread::Builder::new().name(name).spawn(body) {
                Ok(thread) => cores.threads.push(thread),
                Err(error) => {
                    result = Err(ServeError::Thread(error));
                    break;
                }
            }
        }
        drop(sender);
        for _ in 0..count {
            if result.is_ok() {
                result = cores.started.recv().unwrap_or(Err(ServeError::Died));
            }
        }
        if let Err(error) = result {
            shared.end_now();
            cores.join()?;
            return Err(error);
        }
        Ok(cores)
    }

    /// Waits until every core has ended, and calls `look` every `period` until then.
    pub(crate) fn wait(&self, period: Duration, mut look: impl FnMut()) {
        while let Err(RecvTimeoutError::Timeout) = self.started.recv_timeout(period) {
            look();
        }
    }

    /// How each core ended.
    ///
    /// # Errors
    /// [`ServeError::Died`] where one panicked.
    pub(crate) fn join(self) -> Result<Vec<CoreEnd>, ServeError> {
        let ends: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        ends.into_iter().map(|end| end.map_err(|_| ServeError::Died)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_the_cores_looks_until_the_last_has_ended() {
        let shared =
            Arc::new(Shared::new(2, Arc::new(NodeClock::start(None, false).unwrap()), 2, BTreeMap::new()));
        let seat = |index| Seat {
            index,
            core_count: 2,
            shared: Arc::clone(&shared),
            turn_wait_us: 0,
            drain_timeout_ms: 0,
        };
        let (mut ends, plans): (Vec<Sender<()>>, Vec<_>) = (0..2)
            .map(|index| {
                let (end, ended) = channel();
                (end, (seat(index), ended))
            })
            .unzip();
        let cores = Cores::start(&shared, plans, |_, ended, started| {
            started.send(Ok(())).unwrap();
            ended.recv().unwrap_err();
            CoreEnd::default()
        });
        let cores = cores.unwrap();
        let mut looks = 0;
        cores.wait(Duration::from_millis(1), || {
            looks += 1;
            ends.pop();
        });
        assert!(looks >= 2, "one core ran on when the other had ended");
        assert_eq!(cores.join().unwrap().len(), 2);
    }
}
