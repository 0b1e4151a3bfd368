//! The machine's clocks, as a thread reads them that may be stopped between one reading and the next.

use escapement_node::io::{MachineClocks, Reading};
use escapement_protocol::{MonoNs, Now, WallMs};
use escapement_wal::memory::Rng;

use super::bug::Bug;
use super::node::Node;
use super::world::{NS_PER_MS, World};

/// The machine's clocks, and what is known of them.
#[derive(Debug)]
pub(super) struct Clocks {
    /// What the real-time clock is ahead of true time.
    error_ms: i64,
    /// The most that it ever was: a node's clock may be as far ahead, since it never goes back, and no farther.
    most_ms: i64,
    /// How long the node was down in all, in ms, beside the time that was simulated.
    down_ms: u64,
    downs: Rng,
    /// Apart from the world's, so that how often a clock is read changes nothing else.
    rng: Rng,
    /// In one seed of six: where from steps come that are larger than what the world's rng draws.
    far_rng: Option<Rng>,
}

/// One look at both clocks.
struct Look {
    boot_ns: u64,
    real_ns: u64,
    /// How long the thread is stopped after the first reading.
    stop_ns: u64,
}

impl MachineClocks for Look {
    fn boot_ns(&mut self) -> u64 {
        self.boot_ns - std::mem::take(&mut self.stop_ns)
    }

    fn real_ns(&mut self) -> u64 {
        self.real_ns - std::mem::take(&mut self.stop_ns)
    }
}

impl Clocks {
    pub(super) fn new(seed: u64) -> Clocks {
        let downs = Rng::new(seed ^ 0x646f_776e);
        let far_rng = (seed % 6 == 1).then(|| Rng::new(seed ^ 0x686f_7572));
        Clocks { error_ms: 0, most_ms: 0, down_ms: 0, downs, rng: Rng::new(!seed), far_rng }
    }

    /// The node is down: perhaps for long.
    pub(super) fn down(&mut self) {
        let lengths_ms = [0, 0, 20_000, 3_600_000, 8 * 86_400_000];
        self.down_ms += lengths_ms[self.downs.below(lengths_ms.len() as u64) as usize];
    }

    /// An hour ahead or back, or back by a leap second: now and then, in the seeds that have it.
    pub(super) fn far_step(&mut self) -> Option<i64> {
        let rng = self.far_rng.as_mut()?;
        rng.one_in(2).then(|| [3_600_000, -3_600_000, -1_000][rng.below(3) as usize])
    }

    pub(super) fn steps_far(&self) -> bool {
        self.far_rng.is_some()
    }

    /// Steps the real-time clock.
    pub(super) fn step(&mut self, error_ms: i64) {
        self.error_ms = error_ms;
        self.most_ms = self.most_ms.max(error_ms);
    }
}

impl World {
    /// What the machine's real-time clock says.
    pub(super) fn real_ns(&self) -> u64 {
        ((super::plan::START_WALL_MS + self.clocks.down_ms) * NS_PER_MS + self.now_ns)
            .saturating_add_signed(self.clocks.error_ms * NS_PER_MS as i64)
    }

    /// Both clocks, where the real-time clock says `real_ns`.
    pub(super) fn reading(&mut self, real_ns: u64) -> Reading {
        let rng = &mut self.clocks.rng;
        let stop_ns = if rng.one_in(8) { rng.below(30 * NS_PER_MS) } else { 0 };
        let stop_ns = stop_ns.min(self.now_ns).min(real_ns);
        let mut look = Look { boot_ns: self.now_ns, real_ns, stop_ns };
        if self.options.bug == Some(Bug::ClocksCrossed) {
            let boot_ns = look.boot_ns();
            return Reading { boot_ns, real_ns: look.real_ns() };
        }
        Reading::take(&mut look)
    }

    /// What a node's clocks say.
    pub(super) fn read_clock(&mut self, node: &mut Node) -> Now {
        let real_ns = self.real_ns();
        self.read_clock_at(node, real_ns)
    }

    pub(super) fn read_clock_at(&mut self, node: &mut Node, real_ns: u64) -> Now {
        let reading = self.reading(real_ns);
        let mut wall = node.clock.advance(reading, true);
        if self.options.bug == Some(Bug::ClockAhead) {
            wall.0 += 40;
        }
        let most = WallMs(self.latest_wall_ms() - 1);
        if wall > most {
            let what = format!("the node's clock says {wall}, and the machine's never said more than {most}");
            self.judge.breach(what);
        }
        Now { mono: MonoNs(self.now_ns), wall }
    }

    /// The wall clock of the node, where it still is the incarnation that `incarnation` names.
    pub(super) fn node_wall_ms(&mut self, incarnation: u32) -> Option<u64> {
        let mut node = self.node.take()?;
        let wall = (incarnation == self.incarnation).then(|| self.read_clock(&mut node).wall.0);
        self.node = Some(node);
        wall
    }

    /// The latest that a node's clock can have said so far.
    pub(super) fn latest_wall_ms(&self) -> u64 {
        // A thread that is stopped reads its clocks at moments that are some ms apart.
        self.true_wall_ms().saturating_add_signed(self.clocks.most_ms) + 1
    }

    /// True time, in ms since the Unix epoch.
    pub(super) fn true_wall_ms(&self) -> u64 {
        super::plan::START_WALL_MS + self.clocks.down_ms + self.now_ns / NS_PER_MS
    }
}
