//! A shard in its steady state whose events are due up to two hours ahead, so that most go through a run. Files are
//! memory.

use std::collections::HashMap;
use std::hint::black_box;
use std::time::Duration;

use escapement_engine::far::{RunId, RunOp};
use escapement_engine::{Effects, Input, Shard, Ticket};
use escapement_protocol::event::Due;
use escapement_protocol::frame::{Items, ResultItem};
use escapement_protocol::{AttemptResult, Epoch, EventSpec, MonoNs, Now, WallMs};
use escapement_router::SessionId;

use crate::Random;
use crate::clock::Stopwatch;
use crate::shard::{BATCH, PER_TURN, TOPIC, attach, config, control};

/// What a turn consists of, in its order.
pub const STAGES: [&str; 6] = ["publish", "apply_published", "maintain", "run_ops", "results", "apply_rest"];

/// The longest delay.
const DELAY_MS: u64 = 2 * 60 * 60 * 1_000;

/// A shard with one topic and one subscription, whose events are due at random over two hours.
#[derive(Debug)]
pub struct FarLoad {
    shard: Shard,
    effects: Effects,
    now: Now,
    turn_ms: u64,
    block: u64,
    random: Random,
    events: Vec<u8>,
    records: Vec<u8>,
    results: Vec<ResultItem>,
    files: HashMap<RunId, Vec<u8>>,
    /// CPU time spent in each of [`STAGES`] since it was last taken.
    pub spent: [Duration; STAGES.len()],
}

impl FarLoad {
    /// With so many pending events.
    ///
    /// # Panics
    /// If the shard refuses its own records.
    #[must_use]
    pub fn new(pending: usize) -> FarLoad {
        let mut shard = Shard::new(config());
        let mut effects = Effects::default();
        shard.apply_block(1, &control(), &mut effects).expect("control records");
        let now = Now { mono: MonoNs(0), wall: WallMs(1_800_000_000_000) };
        shard.recovered(now, Epoch(1));
        shard.step(now, attach(), &mut effects);
        // An event is pending for half of the longest delay.
        let turns = 2 * pending / PER_TURN;
        let mut load = FarLoad {
            shard,
            effects,
            now,
            turn_ms: DELAY_MS / turns as u64,
            block: 1,
            random: Random(1),
            events: Vec::new(),
            records: Vec::new(),
            results: Vec::new(),
            files: HashMap::new(),
            spent: [Duration::ZERO; STAGES.len()],
        };
        load.turns(turns + 200);
        load.spent = [Duration::ZERO; STAGES.len()];
        load
    }

    /// Takes turns: publishes, what is durable, what is due, runs, results, completions.
    ///
    /// # Panics
    /// If the shard refuses its own records, or pushes what is not pending.
    pub fn turns(&mut self, turns: usize) {
        for _ in 0..turns {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.events.clear();
        let mut ends = Vec::with_capacity(PER_TURN / BATCH);
        for at in 0..PER_TURN {
            let due = Due::At(WallMs(self.now.wall.0 + self.turn_ms + self.random.below(DELAY_MS)));
            EventSpec::new(due, "0123456789ab", &[7; 128]).encode(&mut self.events).expect("valid");
            if at % BATCH == BATCH - 1 {
                ends.push(self.events.len());
            }
        }
        let FarLoad { shard, effects, records, results, spent, files, .. } = self;
        self.now =
            Now { mono: self.now.mono.plus_ms(self.turn_ms), wall: self.now.wall.plus_ms(self.turn_ms) };
        let now = self.now;
        let watch = Stopwatch::start();
        let mut before = Duration::ZERO;
        let mut stage = |at: usize| {
            let elapsed = watch.elapsed();
            spent[at] += elapsed - before;
            before = elapsed;
        };
        let mut start = 0;
        for end in ends {
            let events = &self.events[start..end];
            let publish =
                Input::Publish { ticket: Ticket::default(), topic: TOPIC, count: BATCH as u32, events };
            shard.step(now, publish, effects);
            start = end;
        }
        stage(0);
        let mut apply = |shard: &mut Shard, effects: &mut Effects| {
            std::mem::swap(records, &mut effects.records);
            effects.on_commit.clear();
            self.block += 1;
            shard.apply_block(self.block, records, effects).expect("a shard reads itself");
            records.clear();
        };
        apply(shard, effects);
        stage(1);
        // As a core does: a turn follows at once while the shard wants one.
        loop {
            shard.maintain(now, effects);
            stage(2);
            for (ticket, op) in std::mem::take(&mut effects.run_ops) {
                let result = carry_out(files, op);
                shard.run_op_done(now, ticket, Ok(result), effects);
            }
            stage(3);
            apply(shard, effects);
            stage(5);
            if shard.next_deadline().mono.is_none_or(|at| at > now.mono) && effects.run_ops.is_empty() {
                break;
            }
        }
        for push in effects.pushes.drain(..) {
            let event = shard.event(push.sequence).expect("pending");
            black_box((event.bytes[40], event.schedule_time()));
            results.push(ResultItem { tag: push.tag, retry_after_ms: 0, result: AttemptResult::Success });
        }
        for batch in results.chunks(BATCH) {
            let results = Items::from(batch);
            shard.step(now, Input::Results { session: SessionId(1), results }, effects);
        }
        results.clear();
        stage(4);
        apply(shard, effects);
        let releasable = shard.releasable();
        shard.log_trimmed(releasable, effects);
        stage(5);
    }
}

fn carry_out(files: &mut HashMap<RunId, Vec<u8>>, op: RunOp) -> Vec<u8> {
    match op {
        RunOp::Create { run } => {
            files.insert(run, Vec::new());
        }
        RunOp::Write { run, bytes, .. } => {
            files.get_mut(&run).expect("it was made").extend_from_slice(&bytes);
        }
        RunOp::Read { run, offset, len } => return files[&run][offset as usize..][..len].to_vec(),
        RunOp::Remove { run } => {
            files.remove(&run);
        }
    }
    Vec::new()
}
