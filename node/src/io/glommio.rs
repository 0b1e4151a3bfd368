//! The host on glommio: its executor for waiting, its files for the log, our own calls for datagrams.
//!
//! The trait is a core that calls its host, glommio is a host that calls its tasks. So the tasks live between two
//! parks and stand still: one awaits the socket, one the waker's eventfd, one each log operation. A park runs the
//! executor until one of them has something to tell, or a timer ends it.
//!
//! Its datagram calls know nothing of segments, congestion marks and the address to answer from, so that only
//! readiness is taken from it, by peeking. It has no way to await room for a send: a refused one is tried again
//! after [`ROOM_NS`]. Its files take buffers of their own, so that each log operation copies its bytes once.
//!
//! glommio 0.9 loses a wake-up where an event that wakes no task comes between a pass over its rings and the first
//! task after it: the executor takes its empty turn for idleness and sleeps on runnable tasks. Such events are its
//! preemption timers going off and calls for it from other threads. Nothing here computes for long and nothing calls
//! from outside, so both timers are put out of reach, and the threads that a host needs are ours.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use escapement_protocol::{Now, ShardId};
use escapement_wal::{AlignedBuf, DiskCompletion, DiskOp, FileId, OpId};
use glommio::io::{DmaFile, OpenOptions};
use glommio::timer::{Timer, sleep};
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, spawn_local};
use io_uring::IoUring;
use quinn_proto::Transmit;

use super::datagrams::Datagrams;
use super::disk::{DiskThread, Recent, ShardDirs, ShardFiles};
use super::sys;
use super::waker::{Parker, Waker};
use super::{
    CoreIo, CoreSetup, Datagram, Drained, HostError, HostKind, IoStats, MIN_WAIT_US_MAX, NodeClock, Wait,
};

/// Registered memory for log operations, in bytes. One that finds no room in it takes memory of its own.
const IO_MEMORY_BYTES: usize = 1 << 20;
/// After this long without a look at its rings the executor has its tasks yield: longer than any park, see the module.
const PREEMPT_TIMER: Duration = Duration::from_secs(3600);
/// After this many completions between two looks, likewise: more than log operations are ever in flight.
const RING_DEPTH: usize = 1024;
/// The shortest wait that makes the executor look at its rings: it submits and reaps only between tasks.
const PASS: Duration = Duration::from_micros(1);
/// How soon a send that found no room is tried again, in ns.
const ROOM_NS: u64 = 1_000_000;
/// How long a dropped host waits for its requests, in ms, and in what steps.
const QUIESCE_MS_MAX: u64 = 5_000;
const QUIESCE_STEP: Duration = Duration::from_millis(1);

/// See the module.
pub(super) struct GlommioHost {
    executor: Rc<LocalExecutor>,
    shared: Rc<Shared>,
    datagrams: Datagrams,
    clock: Arc<NodeClock>,
    parker: Parker,
    queued: Vec<(ShardId, Transfer)>,
    stats: IoStats,
}

/// What the tasks and the core's calls both see.
struct Shared {
    dirs: ShardDirs,
    recent: RefCell<Recent<Rc<DmaFile>>>,
    /// For what glommio has no call for, or a file system no direct I/O.
    aside: DiskThread,
    /// For runs, which begin empty. glommio learns whether a device can be polled for completions from a read of the
    /// first file that it opens there, takes an empty file's answer for a yes, and where that is wrong every later
    /// operation on the device fails.
    runs: DiskThread,
    in_flight_count: Cell<usize>,
    finished: RefCell<Vec<(ShardId, DiskCompletion)>>,
    socket: Cell<Watch>,
    woken: Cell<bool>,
    /// The park that waits.
    parked: RefCell<Option<task::Waker>>,
    /// The task that watches the socket.
    watcher: RefCell<Option<task::Waker>>,
}

/// What is known of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// A task awaits its next datagram.
    Armed,
    /// There was one. Nobody looks until the core has had its chance to take it.
    Readable,
    /// Nobody looks any more.
    Closed,
}

/// A write or a read.
struct Transfer {
    id: OpId,
    file: FileId,
    offset: u64,
    buf: AlignedBuf,
    write: bool,
}

impl Transfer {
    fn into_op(self) -> DiskOp {
        let Transfer { id, file, offset, buf, write } = self;
        if write { DiskOp::Write { id, file, offset, buf } } else { DiskOp::Read { id, file, offset, buf } }
    }
}

fn os_error(error: GlommioError<()>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

fn wake(place: &RefCell<Option<task::Waker>>) {
    let waker = place.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl GlommioHost {
    pub(super) fn open(setup: CoreSetup) -> Result<Self, HostError> {
        let failed = |step| move |source| HostError { kind: HostKind::Glommio, step, source };
        // Where there is no io_uring, glommio panics.
        drop(IoUring::new(1).map_err(failed("making a ring"))?);
        let parker = Parker::new().map_err(failed("making an eventfd"))?;
        let dirs = ShardDirs::new(setup.shard_dirs);
        let files = ShardFiles::new(dirs.clone());
        let start = |name| DiskThread::start(name, &files, parker.waker());
        let aside = start("log-create").map_err(failed("starting a disk thread"))?;
        let runs = start("runs").map_err(failed("starting a disk thread"))?;
        let socket = setup.socket.as_fd().try_clone_to_owned().map_err(failed("duplicating the socket"))?;
        let event = parker.event().try_clone_to_owned().map_err(failed("duplicating an eventfd"))?;
        // The core's thread is where the node wants it; glommio is not to move it.
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(IO_MEMORY_BYTES)
            .preempt_timer(PREEMPT_TIMER)
            .ring_depth(RING_DEPTH)
            .make()
            .map_err(os_error)
            .map_err(failed("making a glommio executor"))?;
        let shared = Rc::new(Shared {
            dirs,
            recent: RefCell::default(),
            aside,
            runs,
            in_flight_count: Cell::new(0),
            finished: RefCell::default(),
            socket: Cell::new(Watch::Armed),
            woken: Cell::new(false),
            parked: RefCell::default(),
            watcher: RefCell::default(),
        });
        executor.run(async {
            spawn_local(watch_socket(Rc::clone(&shared), socket)).detach();
            spawn_local(watch_event(Rc::clone(&shared), event)).detach();
        });
        Ok(GlommioHost {
            executor: Rc::new(executor),
            shared,
            datagrams: Datagrams::new(setup.socket),
            clock: setup.clock,
            parker,
            queued: Vec::new(),
            stats: IoStats::default(),
        })
    }
}

/// Tells the park of datagrams, until the watch is closed.
async fn watch_socket(shared: Rc<Shared>, socket: OwnedFd) {
    let socket = sys::glommio_datagrams(socket);
    let mut byte = [0];
    while shared.socket.get() != Watch::Closed {
        {
            let mut peek = pin!(socket.peek_from(&mut byte));
            poll_fn(|cx| {
                if shared.socket.get() == Watch::Closed {
                    return Poll::Ready(());
                }
                *shared.watcher.borrow_mut() = Some(cx.waker().clone());
                // An error that the network left on the socket ends the wait like a datagram.
                peek.as_mut().poll(cx).map(drop)
            })
            .await;
        }
        if shared.socket.get() == Watch::Armed {
            shared.socket.set(Watch::Readable);
            wake(&shared.parked);
        }
        poll_fn(|cx| {
            *shared.watcher.borrow_mut() = Some(cx.waker().clone());
            if shared.socket.get() == Watch::Readable { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

/// Tells the park of wakes from other threads, until the watch is closed.
async fn watch_event(shared: Rc<Shared>, event: OwnedFd) {
    let event = sys::glommio_file(event);
    while shared.socket.get() != Watch::Closed {
        match event.read_at(0, 8).await {
            Ok(_) => {
                shared.woken.set(true);
                wake(&shared.parked);
            }
            Err(error) => {
                let error = os_error(error);
                assert!(error.kind() == io::ErrorKind::Interrupted, "the executor cannot be woken: {error}");
            }
        }
    }
}

impl Shared {
    /// Whether there is something to end a park for.
    fn has_arrived(&self) -> bool {
        self.woken.get() || self.socket.get() == Watch::Readable || !self.finished.borrow().is_empty()
    }

    fn finish(&self, shard: ShardId, id: OpId, result: io::Result<()>, buf: AlignedBuf) {
        self.finished.borrow_mut().push((shard, DiskCompletion { id, result, buf: Some(buf) }));
        wake(&self.parked);
    }

    /// Begins log operations, each as a task of its own.
    fn start(self: &Rc<Self>, queued: Vec<(ShardId, Transfer)>) {
        for (shard, transfer) in queued {
            let shared = Rc::clone(self);
            spawn_local(async move { shared.carry_out(shard, transfer).await }).detach();
        }
    }

    async fn carry_out(&self, shard: ShardId, transfer: Transfer) {
        match self.file(shard, transfer.file).await {
            Ok(file) => {
                let Transfer { id, offset, mut buf, write, .. } = transfer;
                let result = if write {
                    write_all(&file, offset, &buf).await
                } else {
                    read_all(&file, offset, &mut buf).await
                };
                self.finish(shard, id, result, buf);
            }
            // A file system without direct I/O: through the cache, as durable.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.aside.submit(shard, transfer.into_op());
            }
            Err(error) => self.finish(shard, transfer.id, Err(error), transfer.buf),
        }
        self.in_flight_count.update(|count| count - 1);
    }

    /// The file, opened at its first use past the page cache and so that every write of it is durable.
    async fn file(&self, shard: ShardId, file: FileId) -> io::Result<Rc<DmaFile>> {
        let key = (shard, file);
        if let Some(file) = self.recent.borrow_mut().find(key) {
            return Ok(file);
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DSYNC)
            .dma_open(self.dirs.of(shard).join(file.path()))
            .await
            .map_err(os_error)?;
        let opened = Rc::new(opened);
        self.recent.borrow_mut().keep(key, &opened, |open| Rc::strong_count(open) == 1);
        Ok(opened)
    }
}

async fn write_all(file: &DmaFile, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut copy = file.alloc_dma_buffer(bytes.len());
    copy.as_bytes_mut().copy_from_slice(bytes);
    match file.write_at(copy, offset).await {
        Ok(count) if count < bytes.len() => Err(io::ErrorKind::WriteZero.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(os_error(error)),
    }
}

async fn read_all(file: &DmaFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let read = file.read_at_aligned(offset, bytes.len()).await.map_err(os_error)?;
    if read.len() < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.copy_from_slice(&read);
    Ok(())
}

impl CoreIo for GlommioHost {
    fn park(&mut self, until: Wait, min_wait_us: u32) {
        assert!(min_wait_us <= MIN_WAIT_US_MAX, "min_wait_us {min_wait_us}");
        let start = self.clock.now().mono;
        let mut wait_ns = until.ns_from(start);
        // With nothing to wait for and nothing under way, the calls that follow find out themselves what is there.
        if wait_ns == 0 && self.shared.in_flight_count.get() == 0 {
            self.parker.end();
            return;
        }
        if self.datagrams.take_blocked() {
            wait_ns = wait_ns.min(ROOM_NS);
        }
        let (shared, clock) = (&self.shared, &self.clock);
        let queued = mem::take(&mut self.queued);
        let sleeps = wait_ns > 0 && shared.finished.borrow().is_empty() && self.parker.begin();
        self.stats.enters += 1;
        self.executor.run(async move {
            shared.start(queued);
            if !sleeps {
                sleep(PASS).await;
                return;
            }
            shared.woken.set(false);
            shared.socket.set(Watch::Armed);
            wake(&shared.watcher);
            let mut deadline = Timer::new(Duration::from_nanos(wait_ns));
            poll_fn(|cx| {
                *shared.parked.borrow_mut() = Some(cx.waker().clone());
                if shared.has_arrived() {
                    Poll::Ready(())
                } else {
                    Pin::new(&mut deadline).poll(cx).map(drop)
                }
            })
            .await;
            let collect_ns = (u64::from(min_wait_us) * 1_000).min(wait_ns);
            let passed_ns = clock.now().mono.since(start);
            if passed_ns < collect_ns {
                sleep(Duration::from_nanos(collect_ns - passed_ns)).await;
            }
        });
        self.parker.end();
    }

    fn recv(&mut self, each: &mut dyn FnMut(Datagram)) -> Drained {
        self.datagrams.recv(&mut self.stats, each)
    }

    fn send(&mut self, transmit: &Transmit, payload: &mut Vec<u8>) -> bool {
        self.datagrams.send(&mut self.stats, transmit, payload)
    }

    fn segmentation(&self) -> bool {
        self.datagrams.segmentation()
    }

    fn disk_submit(&mut self, shard: ShardId, op: DiskOp) {
        let transfer = match op {
            DiskOp::Write { file: FileId::Run(_), .. } | DiskOp::Read { file: FileId::Run(_), .. } => {
                return self.shared.runs.submit(shard, op);
            }
            DiskOp::Write { id, file, offset, buf } => Transfer { id, file, offset, buf, write: true },
            DiskOp::Read { id, file, offset, buf } => Transfer { id, file, offset, buf, write: false },
            DiskOp::Create { .. } => return self.shared.aside.submit(shard, op),
            DiskOp::Remove { file, .. } => {
                self.shared.recent.borrow_mut().forget((shard, file));
                return self.shared.aside.submit(shard, op);
            }
        };
        self.shared.dirs.of(shard);
        self.shared.in_flight_count.update(|count| count + 1);
        self.queued.push((shard, transfer));
    }

    fn disk_completions(&mut self, each: &mut dyn FnMut(ShardId, DiskCompletion)) {
        for (shard, completion) in self.shared.finished.borrow_mut().drain(..) {
            each(shard, completion);
        }
        for thread in [&self.shared.aside, &self.shared.runs] {
            thread.completions(each);
        }
    }

    fn waker(&self) -> Waker {
        self.parker.waker()
    }

    fn now(&mut self) -> Now {
        self.clock.now()
    }

    fn stats(&self) -> IoStats {
        self.stats
    }
}

impl Drop for GlommioHost {
    fn drop(&mut self) {
        let end = self.clock.now().mono.plus_ms(QUIESCE_MS_MAX);
        let queued = mem::take(&mut self.queued);
        let (shared, clock, event) = (&self.shared, &self.clock, self.parker.event());
        let idle = self.executor.run(async move {
            // What was handed over is carried out.
            shared.start(queued);
            while shared.in_flight_count.get() > 0 && clock.now().mono < end {
                sleep(QUIESCE_STEP).await;
            }
            shared.socket.set(Watch::Closed);
            wake(&shared.watcher);
            sys::eventfd_signal(event);
            shared.recent.take();
            // Each task holds the state; what the last of them gives up is cancelled or closed by one more pass.
            while Rc::strong_count(shared) > 1 && clock.now().mono < end {
                sleep(QUIESCE_STEP).await;
            }
            sleep(QUIESCE_STEP).await;
            Rc::strong_count(shared) == 1
        });
        if !idle {
            // The kernel may still write to the executor's memory: better lost than reused.
            mem::forget(Rc::clone(&self.executor));
        }
    }
}
