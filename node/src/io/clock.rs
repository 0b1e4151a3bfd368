//! The node's two clocks: one source for all cores.
//!
//! Both are the kernel's boot clock (`CLOCK_BOOTTIME`), which is the same on every CPU, never goes back and
//! counts time in suspend. `mono` is its reading. `wall` is its reading plus an offset, and the machine's
//! real-time clock only ever moves that offset forward:
//!
//! | real time against `wall` | what happens | [`ClockStatus`] |
//! |---|---|---|
//! | ahead, ≤ 500 ms | followed at 50 µs per ms, so 500 ms take ten seconds | `Slewing` |
//! | ahead, > 500 ms | distrusted; followed in one step once the kernel called its clock synchronised for a minute while the jump kept its size | `Jumped` |
//! | behind | nothing: `wall` goes on at the boot clock's rate | `Behind`, or `Following` within 500 ms |
//!
//! Why: an event may be late, never early, and a wrong forward jump would fire everything at once; a step back
//! cannot take back what has fired. What no clock can notice is an error of ≤ 30 days that was there when the
//! node started on an empty directory.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};

use escapement_protocol::{MonoNs, Now, WallMs};

use super::sys;

/// Largest forward difference that is slewed, in ns.
const SLEW_NS_MAX: u64 = 500 * NS_PER_MS;
/// The slew's rate: one part in this many of the time that passes, so 5 %.
const SLEW_DIVISOR: u64 = 20;
/// How long the kernel must call its clock synchronised before a jump is followed, in ns.
const TRUST_AFTER_NS: u64 = 60 * NS_PER_S;
/// How far real time at start may lie ahead of the last leader time without a confirmation, in ms.
const START_AHEAD_MS_MAX: u64 = 30 * 86_400_000;
/// How often real time is compared, in ns. At the slew's rate one comparison moves `wall` by at most a
/// millisecond, its own resolution.
const COMPARE_EVERY_NS: u64 = 20 * NS_PER_MS;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Why a clock was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine's clock says {real} ms, {} days after the log's last time {leader}: \
     correct the clock, or confirm that it is right",
    (real.0 - leader.0) / 86_400_000
)]
pub struct StartAhead {
    /// The machine's real time.
    pub real: WallMs,
    /// The newest time that any shard's log holds.
    pub leader: WallMs,
}

/// The clocks of a machine.
pub trait MachineClocks {
    /// Since the machine's boot, time in suspend included, in ns. Never goes back.
    fn boot_ns(&mut self) -> u64;
    /// Since the Unix epoch, in ns. May be stepped either way.
    fn real_ns(&mut self) -> u64;
}

/// Both clocks at about one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The boot clock's.
    pub boot_ns: u64,
    /// The real-time clock's, not later.
    pub real_ns: u64,
}

impl Reading {
    /// Reads the real-time clock first. The thread may be stopped between the two, for long on a machine that is shared:
    /// the wall clock is then compared with a real time that has passed, and errs towards late. In the other order it
    /// would take the stop for a clock that is ahead, follow, and never come back.
    pub fn take(clocks: &mut impl MachineClocks) -> Reading {
        let real_ns = clocks.real_ns();
        Reading { boot_ns: clocks.boot_ns(), real_ns }
    }
}

/// The machine that this runs on.
struct Kernel;

impl MachineClocks for Kernel {
    fn boot_ns(&mut self) -> u64 {
        sys::boot_ns()
    }

    fn real_ns(&mut self) -> u64 {
        sys::real_ns()
    }
}

/// How the wall clock stands to the machine's real-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockStatus {
    /// Within 500 ms, and not behind by a comparison that matters.
    Following,
    /// Real time is ahead by this much and being caught up with, in ns.
    Slewing {
        /// What is left.
        ahead_ns: u64,
    },
    /// Real time jumped ahead by this much and is not believed, in ms.
    Jumped {
        /// The jump.
        ahead_ms: u64,
    },
    /// Real time is behind by this much, in ms; the wall clock runs on until real time has caught up.
    Behind {
        /// How far.
        behind_ms: u64,
    },
}

/// The wall clock's rules, without an operating system.
///
/// Feed it readings in the order in which they were taken; what it answers never decreases.
#[derive(Clone, Debug)]
pub struct WallClock {
    /// What `wall` is ahead of the boot clock, in ns; negative where it began before the machine's boot.
    offset_ns: i64,
    boot_ns: u64,
    status: ClockStatus,
    /// Since when the kernel has called its clock synchronised under one and the same jump: boot time and jump.
    synced_since: Option<(u64, u64)>,
}

impl WallClock {
    /// Anchors the clock at the later of real time and the newest time in any log.
    ///
    /// # Errors
    /// [`StartAhead`] where real time is more than 30 days later than the log and nobody `confirmed` it.
    pub fn start(reading: Reading, leader: Option<WallMs>, confirmed: bool) -> Result<Self, StartAhead> {
        let Reading { boot_ns, real_ns } = reading;
        let real = WallMs(real_ns / NS_PER_MS);
        let mut anchor_ns = real_ns;
        if let Some(leader) = leader {
            if real.0.saturating_sub(leader.0) > START_AHEAD_MS_MAX && !confirmed {
                return Err(StartAhead { real, leader });
            }
            anchor_ns = anchor_ns.max(leader.0.saturating_mul(NS_PER_MS));
        }
        let mut clock = WallClock {
            offset_ns: signed(anchor_ns) - signed(boot_ns),
            boot_ns,
            status: ClockStatus::Following,
            synced_since: None,
        };
        clock.advance(reading, false);
        Ok(clock)
    }

    /// Compares with real time and answers the wall time at the boot clock's reading. `synced`: what the kernel says of
    /// its real-time clock.
    pub fn advance(&mut self, reading: Reading, synced: bool) -> WallMs {
        let Reading { boot_ns, real_ns } = reading;
        let boot_ns = boot_ns.max(self.boot_ns);
        let elapsed_ns = boot_ns - self.boot_ns;
        self.boot_ns = boot_ns;
        let wall_ns = self.wall_ns();
        let ahead_ns = real_ns.saturating_sub(wall_ns);
        let behind_ns = wall_ns.saturating_sub(real_ns);
        if ahead_ns > SLEW_NS_MAX {
            self.status = ClockStatus::Jumped { ahead_ms: ahead_ns / NS_PER_MS };
            if self.believed(boot_ns, ahead_ns, synced) {
                self.offset_ns += signed(ahead_ns);
                self.synced_since = None;
                self.status = ClockStatus::Following;
            }
        } else {
            self.synced_since = None;
            let step_ns = ahead_ns.min(elapsed_ns / SLEW_DIVISOR);
            self.offset_ns += signed(step_ns);
            self.status = if ahead_ns > NS_PER_MS {
                ClockStatus::Slewing { ahead_ns: ahead_ns - step_ns }
            } else if behind_ns > SLEW_NS_MAX {
                ClockStatus::Behind { behind_ms: behind_ns / NS_PER_MS }
            } else {
                ClockStatus::Following
            };
        }
        WallMs(self.wall_ns() / NS_PER_MS)
    }

    /// As of the last comparison.
    #[must_use]
    pub fn status(&self) -> ClockStatus {
        self.status
    }

    fn wall_ns(&self) -> u64 {
        self.boot_ns.saturating_add_signed(self.offset_ns)
    }

    fn believed(&mut self, boot_ns: u64, ahead_ns: u64, synced: bool) -> bool {
        if !synced {
            self.synced_since = None;
            return false;
        }
        let (since, jump_ns) = *self.synced_since.get_or_insert((boot_ns, ahead_ns));
        if jump_ns.abs_diff(ahead_ns) > SLEW_NS_MAX {
            self.synced_since = Some((boot_ns, ahead_ns));
            return false;
        }
        boot_ns - since >= TRUST_AFTER_NS
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// The clock of a node: [`WallClock`] on the machine's clocks, shared by all cores.
///
/// A reading costs one `clock_gettime` answered without entering the kernel, and one shared load. Readings are
/// monotone across threads by construction: `mono` because the boot clock is, `wall` because every answer is the
/// maximum of all answers so far (one atomic maximum, written at most once a millisecond), whatever the threads
/// that move the offset do meanwhile.
#[derive(Debug)]
pub struct NodeClock {
    offset_ns: AtomicI64,
    newest_ms: AtomicU64,
    compare_at_ns: AtomicU64,
    rules: Mutex<WallClock>,
}

impl NodeClock {
    /// Starts the clock. `leader` is the newest time in any shard's log, `None` for a new data directory.
    ///
    /// # Errors
    /// [`StartAhead`], as [`WallClock::start`].
    pub fn start(leader: Option<WallMs>, confirmed: bool) -> Result<Self, StartAhead> {
        let reading = Reading::take(&mut Kernel);
        let rules = WallClock::start(reading, leader, confirmed)?;
        Ok(NodeClock {
            offset_ns: AtomicI64::new(rules.offset_ns),
            newest_ms: AtomicU64::new(rules.wall_ns() / NS_PER_MS),
            compare_at_ns: AtomicU64::new(reading.boot_ns),
            rules: Mutex::new(rules),
        })
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let boot_ns = sys::boot_ns();
        if boot_ns >= self.compare_at_ns.load(Ordering::Relaxed) {
            self.compare();
        }
        let wall_ms = boot_ns.saturating_add_signed(self.offset_ns.load(Ordering::Acquire)) / NS_PER_MS;
        Now { mono: MonoNs(boot_ns), wall: WallMs(self.raise(wall_ms)) }
    }

    /// When the wall clock will get to the beginning of `wall`, as things stand: a moment not before it, and at most
    /// a few microseconds after.
    pub fn moment_of(&self, wall: WallMs) -> MonoNs {
        let offset_ns = self.offset_ns.load(Ordering::Acquire);
        MonoNs(wall.0.saturating_mul(NS_PER_MS).saturating_add_signed(-offset_ns))
    }

    /// How the wall clock stands to the machine's.
    pub fn status(&self) -> ClockStatus {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).status()
    }

    /// Whoever comes first compares for all; the others go on with the present offset.
    fn compare(&self) {
        let mut rules = match self.rules.try_lock() {
            Ok(rules) => rules,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // The kernel's opinion costs a system call and matters only while a jump is in doubt.
        let doubt = matches!(rules.status(), ClockStatus::Jumped { .. });
        let reading = Reading::take(&mut Kernel);
        rules.advance(reading, doubt && sys::clock_synchronised());
        self.offset_ns.store(rules.offset_ns, Ordering::Release);
        self.compare_at_ns.store(reading.boot_ns + COMPARE_EVERY_NS, Ordering::Relaxed);
    }

    fn raise(&self, wall_ms: u64) -> u64 {
        let newest = self.newest_ms.load(Ordering::Acquire);
        if newest >= wall_ms {
            return newest;
        }
        self.newest_ms.fetch_max(wall_ms, Ordering::AcqRel).max(wall_ms)
    }
}

#[cfg(test)]
mod tests;
