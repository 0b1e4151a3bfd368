//! Hosts: what a core thread needs from the operating system, behind one trait.
//!
//! A core is one thread that owns one host, and the host owns the core's socket, its log files and its waiting.
//! Nothing in a core's logic reaches the machine except through [`CoreIo`], which is how the simulator runs the
//! same logic. A turn is: [`CoreIo::park`], then [`CoreIo::recv`], [`CoreIo::disk_completions`], the work, and
//! [`CoreIo::send`] and [`CoreIo::disk_submit`] on the way, which the next `park` carries out at the latest.
//!
//! | host | waiting | datagrams | log writes |
//! |---|---|---|---|
//! | `uring`, the default | one `io_uring` | multishot receive into a provided ring, sends from a slot pool | same ring, `O_DIRECT` and `O_DSYNC` |
//! | `poll`, where `io_uring` is forbidden | `ppoll` | `recvmmsg`, `sendmsg` | a thread of its own, same flags |
//! | `glommio`, with the feature of that name | glommio's executor | as `poll` | glommio's files, same flags |
//!
//! One conformance test (`tests/hosts.rs`) runs over all of them; `docs/decisions/0001-host.md` compares them.
//!
//! Left out on purpose: name resolution, TCP, timers beyond one deadline per wait. The control plane has tokio.

mod clock;
mod datagrams;
mod disk;
#[cfg(feature = "glommio")]
mod glommio;
mod message;
mod pin;
mod poll;
mod random;
mod steering;
mod sys;
mod udp;
mod uring;
mod waker;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use bytes::BytesMut;
use escapement_protocol::{MonoNs, Now, ShardId};
use escapement_wal::{DiskCompletion, DiskOp};
use quinn_proto::{EcnCodepoint, Transmit};

pub use clock::{ClockStatus, MachineClocks, NodeClock, Reading, StartAhead, WallClock};
pub use pin::{allowed_cpu_count, pin_to_allowed_cpu};
pub use random::random_bytes;
pub use steering::{CORE_COUNT_MAX, core_of_datagram, first_byte_for};
pub use udp::{
    BindError, CoreSocket, RECEIVE_BUFFER_BYTES, SEGMENT_COUNT_MAX, SEND_SIZE_BYTES_MAX, bind_cores,
    segments_per_send,
};
pub use waker::Waker;

/// The longest single wait, in ns, whatever was asked for. A waiting core looks at the clock at least this often,
/// because timers of the kernel stand still in suspend and know nothing of a wall clock that is being slewed.
pub const PARK_NS_MAX: u64 = 1_000_000_000;

/// The largest `min_wait_us` that [`CoreIo::park`] takes.
pub const MIN_WAIT_US_MAX: u32 = 300;

/// What a core needs from its host. `!Send`: made, used and dropped on the core's own thread.
pub trait CoreIo {
    /// Carries out what is queued, then waits until something arrives, the waker fires or the time is over, and
    /// never longer than [`PARK_NS_MAX`]. May return early with nothing to show.
    ///
    /// With `min_wait_us` above 0, what arrives in that time is collected before returning, which under load
    /// trades up to that much latency for fewer turns; a wake is delayed likewise. It shortens to fit `until`.
    /// Hosts that cannot collect return at the first arrival.
    ///
    /// # Panics
    /// If `min_wait_us` is above [`MIN_WAIT_US_MAX`].
    fn park(&mut self, until: Wait, min_wait_us: u32);

    /// Hands over the datagrams that have arrived, at most a bounded number.
    fn recv(&mut self, each: &mut dyn FnMut(Datagram)) -> Drained;

    /// Sends `payload[..transmit.size]`, as datagrams of `transmit.segment_size` where that is set.
    ///
    /// False: no room now; nothing was taken, try again after the next `park`. True: sent or lost, as UDP goes;
    /// the host may have exchanged the vector for another of at least the same capacity, so its content is
    /// unspecified afterwards.
    ///
    /// # Panics
    /// If `payload` is shorter than `transmit.size`, or that is above [`SEND_SIZE_BYTES_MAX`].
    fn send(&mut self, transmit: &Transmit, payload: &mut Vec<u8>) -> bool;

    /// Whether a send of several segments is one system call here. Where not, hand over datagrams singly.
    fn segmentation(&self) -> bool;

    /// Starts an operation on a shard's files. Its completion comes with a later turn, in any order.
    ///
    /// # Panics
    /// If the host was not given the shard's directory.
    fn disk_submit(&mut self, shard: ShardId, op: DiskOp);

    /// Hands over what the disk has finished.
    fn disk_completions(&mut self, each: &mut dyn FnMut(ShardId, DiskCompletion));

    /// A handle that ends this core's `park` from any thread.
    fn waker(&self) -> Waker;

    /// Both clocks of the node.
    fn now(&mut self) -> Now;

    /// Counts since the start.
    fn stats(&self) -> IoStats;
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: carry out what is queued and collect what is there.
    Now,
    /// Until this moment; one that has passed is `Now`.
    Until(MonoNs),
    /// Until something happens.
    Forever,
}

impl Wait {
    /// How long that is at `now`, in ns, within [`PARK_NS_MAX`].
    fn ns_from(self, now: MonoNs) -> u64 {
        match self {
            Wait::Now => 0,
            Wait::Until(moment) => moment.since(now).min(PARK_NS_MAX),
            Wait::Forever => PARK_NS_MAX,
        }
    }
}

/// One received datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it. An IPv4 sender to an IPv6 socket has a mapped address.
    pub remote: SocketAddr,
    /// The local address that it was sent to, to be answered from.
    pub local_ip: Option<IpAddr>,
    /// Explicit congestion notification bits.
    pub ecn: Option<EcnCodepoint>,
    /// The payload. Datagrams that arrived merged share one allocation of at most 64 KiB.
    pub data: BytesMut,
}

/// What a [`CoreIo::recv`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Datagrams handed over.
    pub count: usize,
    /// Whether the bound ended it, so that more may be waiting: park with [`Wait::Now`].
    pub more: bool,
}

/// What a host has done. Counts only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Waits and polls that entered the kernel.
    pub enters: u64,
    /// Messages received, each one datagram or several merged ones.
    pub recv_messages: u64,
    /// Datagrams received.
    pub recv_datagrams: u64,
    /// Messages dropped because the kernel cut them or their address was of no known family.
    pub recv_dropped: u64,
    /// Times that receiving paused because every receive buffer was full.
    pub recv_starved: u64,
    /// Sends that the kernel took, each one datagram or several segments.
    pub sends: u64,
    /// Sends that the kernel refused. Lost, as datagrams may be; probes of a too large MTU end here by design.
    pub send_errors: u64,
}

/// What a host is made of.
#[derive(Debug)]
pub struct CoreSetup {
    /// The core's socket, one of those that [`bind_cores`] made.
    pub socket: CoreSocket,
    /// The directory of each shard that the core owns.
    pub shard_dirs: Vec<(ShardId, PathBuf)>,
    /// The node's clock.
    pub clock: Arc<NodeClock>,
}

/// Which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// An `io_uring` of its own.
    Uring,
    /// `ppoll`, and threads for the disk.
    Poll,
    /// glommio's executor. Only in builds with the feature `glommio`.
    #[cfg(feature = "glommio")]
    Glommio,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostKind::Uring => "uring",
            HostKind::Poll => "poll",
            #[cfg(feature = "glommio")]
            HostKind::Glommio => "glommio",
        })
    }
}

impl FromStr for HostKind {
    type Err = UnknownHost;

    fn from_str(text: &str) -> Result<Self, UnknownHost> {
        match text {
            "uring" => Ok(HostKind::Uring),
            "poll" => Ok(HostKind::Poll),
            #[cfg(feature = "glommio")]
            "glommio" => Ok(HostKind::Glommio),
            #[cfg(not(feature = "glommio"))]
            "glommio" => Err(UnknownHost::NotBuilt),
            _ => Err(UnknownHost::NoHost),
        }
    }
}

/// What [`HostKind::from_str`] answers to a text that names no host of this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownHost {
    /// No host has that name.
    #[error("not a host: choose {}", if cfg!(feature = "glommio") { "uring, poll or glommio" } else { "uring or poll" })]
    NoHost,
    /// The host is compiled only with its feature.
    #[error(
        "this build has no glommio host: choose uring or poll, or build with `cargo build --release --features glommio`"
    )]
    NotBuilt,
}

/// Why a host could not be made.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} host cannot start: {step}: {source}")]
pub struct HostError {
    /// Which host.
    pub kind: HostKind,
    /// What was asked of the kernel.
    pub step: &'static str,
    /// What it answered.
    pub source: io::Error,
}

/// The host to use on this machine, and why, in one line.
#[must_use]
pub fn detect() -> (HostKind, String) {
    match uring::probe() {
        Ok(found) => (HostKind::Uring, found),
        Err(missing) => (HostKind::Poll, format!("host poll, because {missing}")),
    }
}

/// Makes a host on the calling thread, which becomes the core's: the one that uses it and drops it.
///
/// # Errors
/// [`HostError`] where the kernel refuses what the host is made of.
pub fn open(kind: HostKind, setup: CoreSetup) -> Result<Box<dyn CoreIo>, HostError> {
    sys::set_timer_slack(TIMER_SLACK_NS);
    Ok(match kind {
        HostKind::Uring => Box::new(uring::UringHost::open(setup)?),
        HostKind::Poll => Box::new(poll::PollHost::open(setup)?),
        #[cfg(feature = "glommio")]
        HostKind::Glommio => Box::new(glommio::GlommioHost::open(setup)?),
    })
}

/// Sees to it that memory of pending events goes back to the system when they have gone. Call once, before cores start.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    sys::map_blocks_from(MAPPED_SIZE_BYTES);
}

/// Blocks of memory from this size on are mapped for themselves: a chunk of payloads has as many bytes.
#[cfg(target_env = "gnu")]
const MAPPED_SIZE_BYTES: i32 = 1024 * 1024;

/// How late the kernel may wake a core on purpose, in ns.
const TIMER_SLACK_NS: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_called_what_it_displays() {
        let hosts = [
            HostKind::Uring,
            HostKind::Poll,
            #[cfg(feature = "glommio")]
            HostKind::Glommio,
        ];
        for host in hosts {
            assert_eq!(host.to_string().parse(), Ok(host));
        }
        assert_eq!("epoll".parse::<HostKind>(), Err(UnknownHost::NoHost));
    }

    #[cfg(not(feature = "glommio"))]
    #[test]
    fn a_host_that_this_build_lacks_is_refused_with_how_to_have_it() {
        let refused = "glommio".parse::<HostKind>().unwrap_err();
        assert!(refused.to_string().contains("--features glommio"), "{refused}");
    }
}
