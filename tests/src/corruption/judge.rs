//! What a shard makes of damaged files, and whether it may.

use std::collections::{BTreeMap, BTreeSet};

use escapement_protocol::{AttemptResult, Now};
use escapement_wal::OpenError;
use escapement_wal::format::{EXTENT_OVERHEAD_BYTES, Superblock};
use escapement_wal::memory::MemDisk;

use super::fault::headers;
use super::running::{Running, Settings, recover};
use super::scene::{Files, Scene, disk_of, event, files_of};
use crate::recovery::{Recovered, Refusal};

/// What came of a fault that broke no promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The log refused to open.
    LogRefused,
    /// The log opened, and the shard refused for the sake of a run.
    RunRefused,
    /// The shard served, and refused to start again before the damage could show.
    Stopped,
    /// The shard delivered everything but what is in a run from a damaged block on, which it holds.
    Held,
    /// Nothing that matters was hit: the shard is what it was and goes on as if nothing had happened.
    Harmless,
    /// The log ends early, and the fault has hit every proof that what is missing was acknowledged: what is left can't
    /// be told from a write that a crash has torn.
    InDoubt,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Verdict; 6] = [
        Verdict::LogRefused,
        Verdict::RunRefused,
        Verdict::Stopped,
        Verdict::Held,
        Verdict::Harmless,
        Verdict::InDoubt,
    ];
}

/// What a shard did from its recovery until nothing was pending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Played {
    /// Sequences, in the order of their delivery.
    delivered: Vec<u64>,
    /// Why it ended before everything was delivered.
    stopped: Option<String>,
    /// Events that it holds at the end, since their run can't be read.
    held: u64,
}

impl Played {
    /// Whether everything was delivered once, as expected, but for as many as are held.
    fn is_all_but_held(&self, expected: &Played) -> bool {
        let delivered: BTreeSet<u64> = self.delivered.iter().copied().collect();
        let wanted: BTreeSet<u64> = expected.delivered.iter().copied().collect();
        let missing = wanted.difference(&delivered).count() as u64;
        delivered.len() == self.delivered.len() && delivered.is_subset(&wanted) && missing == self.held
    }
}

/// Events that are published again at once.
const AGAIN_COUNT: usize = 8;

/// More moments than a life has.
const MOMENTS_MAX: usize = 10_000;

fn later(now: Now, ms: u64) -> Now {
    Now { mono: now.mono.plus_ms(ms), wall: now.wall.plus_ms(ms) }
}

/// Plays an undamaged copy, and holds it to everything that was promised.
pub(super) fn undamaged(scene: &Scene) -> Result<Played, String> {
    let mut disk = disk_of(&scene.files);
    let recovered = recover(&mut disk, &scene.settings).map_err(|why| format!("undamaged: {why}"))?;
    if recovered.shard.state_hash() != scene.last_state() {
        return Err("undamaged: recovery gives another state".into());
    }
    let played = play(scene, disk, recovered, scene.is_named)?;
    let delivered: BTreeSet<u64> = played.delivered.iter().copied().collect();
    let missing: Vec<&u64> = scene.promises.open.difference(&delivered).collect();
    if !missing.is_empty() || played.stopped.is_some() {
        return Err(format!("undamaged: {missing:?} are missing, {:?}", played.stopped));
    }
    Ok(played)
}

/// Judges what becomes of damaged files. With `give_up` every loss that the log offers to accept is accepted, which
/// must be noticed.
///
/// # Errors
/// The promise that is broken.
pub(super) fn judge(
    scene: &Scene,
    damaged: &Files,
    expected: &Played,
    give_up: bool,
) -> Result<Verdict, String> {
    let mut disk = disk_of(damaged);
    let recovered = match recover(&mut disk, &scene.settings) {
        Err(Refusal::Log(OpenError::Corrupt { token, .. })) if give_up => {
            let mut settings = scene.settings.clone();
            settings.wal.accept_loss = Some(token);
            disk = disk_of(damaged);
            recover(&mut disk, &settings)
        }
        recovered => recovered,
    };
    let recovered = match recovered {
        Ok(recovered) => recovered,
        Err(refusal) => return refused(&refusal, &scene.settings, disk, damaged),
    };
    let last = recovered.report.last.0;
    let hash = recovered.shard.state_hash();
    if hash == scene.last_state() {
        let played = play(scene, disk, recovered, scene.is_named)?;
        return match &played.stopped {
            Some(_) if played.delivered.iter().all(|sequence| expected.delivered.contains(sequence)) => {
                Ok(Verdict::Stopped)
            }
            None if played == *expected => Ok(Verdict::Harmless),
            None if played.held > 0 && played.is_all_but_held(expected) => Ok(Verdict::Held),
            _ => Err(format!("delivered {:?} instead of {:?}", played, expected)),
        };
    }
    if let Some(proof) = proof_left(scene, damaged, last) {
        return Err(format!("the log ends after block {last}, and {proof} proves that there was more"));
    }
    if scene.state_at(last) != Some(hash) {
        return Err(format!("the state after block {last} is none that the shard was ever in"));
    }
    play(scene, disk, recovered, false)?;
    Ok(Verdict::InDoubt)
}

/// A refusal has to stay one, and changes nothing.
fn refused(
    refusal: &Refusal,
    settings: &Settings,
    mut disk: MemDisk,
    damaged: &Files,
) -> Result<Verdict, String> {
    let is_logs = matches!(refusal, Refusal::Log(_));
    let may_write = matches!(refusal, Refusal::Log(OpenError::Io { .. }));
    if !may_write && files_of(&mut disk) != *damaged {
        return Err(format!("refused with {refusal}, and changed the files"));
    }
    if recover(&mut disk, settings).is_ok() {
        return Err(format!("refused with {refusal}, and not when it was tried again"));
    }
    Ok(if is_logs { Verdict::LogRefused } else { Verdict::RunRefused })
}

/// A place that proves a block after `last` to have been acknowledged, and that the fault has left as it was.
fn proof_left(scene: &Scene, damaged: &Files, last: u64) -> Option<String> {
    let superblock = damaged.get("SUPER").and_then(|file| Superblock::choose(file).ok());
    if superblock.is_some_and(|superblock| superblock.committed_through.0 > last) {
        return Some("SUPER".into());
    }
    for (path, bytes) in scene.files.iter().filter(|(path, _)| path.starts_with("wal/")) {
        let Some(now) = damaged.get(path) else { continue };
        for (at, header) in headers(bytes).filter(|(_, header)| header.committed_through.0 > last) {
            let place = at..at + EXTENT_OVERHEAD_BYTES;
            if now.get(place.clone()) == bytes.get(place) {
                return Some(format!("block {} in {path} at {at}", header.block_seq));
            }
        }
    }
    None
}

/// Lets a recovered shard go on, with some more events and two restarts, until everything has come. With `knows_names`
/// it has to know every event again that was acknowledged.
fn play(scene: &Scene, disk: MemDisk, recovered: Recovered, knows_names: bool) -> Result<Played, String> {
    let mut player = Player {
        scene,
        now: later(scene.now, 1),
        events: scene.promises.events.clone(),
        knows_names,
        delivered: Vec::new(),
        held: 0,
    };
    let stopped = player.run(disk, recovered)?;
    Ok(Played { stopped, delivered: player.delivered, held: player.held })
}

struct Player<'a> {
    scene: &'a Scene,
    now: Now,
    /// Those acknowledged now in place of lost ones of the same sequence.
    events: BTreeMap<u64, Vec<u8>>,
    /// Whether what the scene acknowledged is known by its names.
    knows_names: bool,
    delivered: Vec<u64>,
    /// Events that the shard holds, at the end.
    held: u64,
}

impl Player<'_> {
    /// Why the shard stopped, where it did.
    fn run(&mut self, disk: MemDisk, recovered: Recovered) -> Result<Option<String>, String> {
        let mut running = Running::start(disk, recovered, self.now);
        let knows_all = running.shard.registry().subscription(self.scene.subscription).is_some();
        running.attach(self.scene.subscription);
        if knows_all {
            self.publish_again(&mut running)?;
            self.publish_more(&mut running)?;
        }
        if let Some(why) = self.take(&mut running)? {
            return Ok(Some(why));
        }
        running = match self.restart(running)? {
            Ok(running) => running,
            Err(why) => return Ok(Some(why)),
        };
        running.attach(self.scene.subscription);
        for _ in 0..MOMENTS_MAX {
            if let Some(why) = self.take(&mut running)? {
                return Ok(Some(why));
            }
            let next = running.shard.next_deadline();
            let Some(due) = next.wall else { break };
            running.advance_ms(due.0.saturating_sub(running.now.wall.0).max(1_000));
            self.now = running.now;
        }
        self.publish_again(&mut running)?;
        if let Some(why) = self.take(&mut running)? {
            return Ok(Some(why));
        }
        let stats = running.shard.stats();
        self.held = stats.held;
        let pending = stats.pending;
        if pending > stats.held && knows_all {
            return Err(format!("{} events are never delivered", pending - stats.held));
        }
        match self.restart(running)? {
            Ok(running) if running.shard.stats().pending != pending => {
                Err("what was done is pending again after a restart".into())
            }
            Ok(_) => Ok(None),
            Err(why) => Ok(Some(why)),
        }
    }

    fn publish_more(&mut self, running: &mut Running) -> Result<(), String> {
        let events: Vec<Vec<u8>> = [0, 5_000, 40_000, 600_000, 7_200_000]
            .into_iter()
            .map(|after_ms| event(self.now.wall.plus_ms(after_ms), &format!("new-{after_ms}"), &[9; 700]))
            .collect();
        let (first, accepted) = running.publish(self.scene.topic, &events);
        if accepted as usize != events.len() && running.shard.names_damage().is_none() {
            return Err("a publish was refused".into());
        }
        self.events.extend((first.0..).zip(events).take(accepted as usize));
        Ok(())
    }

    /// Publishes once more what was acknowledged: it is known, or the shard stops.
    fn publish_again(&mut self, running: &mut Running) -> Result<(), String> {
        let known: Vec<(&u64, &Vec<u8>)> = self.scene.promises.events.iter().collect();
        for part in known.chunks(AGAIN_COUNT).filter(|_| self.knows_names) {
            let events: Vec<Vec<u8>> = part.iter().map(|(_, event)| (*event).clone()).collect();
            let Some(duplicates) = running.publish_again(self.scene.topic, &events) else { break };
            let found = duplicates.iter().map(|duplicate| duplicate.sequence.0);
            if !found.clone().eq(part.iter().map(|(sequence, _)| **sequence)) {
                let found: Vec<u64> = found.collect();
                return Err(format!("{part:?} were published again, and known are {found:?}"));
            }
        }
        Ok(())
    }

    /// Takes and completes what is pushed until nothing more comes. Why the shard stopped, where it did.
    fn take(&mut self, running: &mut Running) -> Result<Option<String>, String> {
        loop {
            running.settle();
            let arrivals = std::mem::take(&mut running.arrivals);
            for arrival in &arrivals {
                let sequence = arrival.push.sequence.0;
                if self.events.get(&sequence) != Some(&arrival.bytes) {
                    return Err(format!(
                        "sequence {sequence} was delivered with bytes that were never published"
                    ));
                }
                self.delivered.push(sequence);
                running.answer(&arrival.push, AttemptResult::Success);
            }
            if let Some(damage) = running.shard.names_damage() {
                return Ok(Some(damage.to_string()));
            }
            if arrivals.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Kills the shard and recovers it; why it refuses, where it does.
    fn restart(&mut self, mut running: Running) -> Result<Result<Running, String>, String> {
        running.seal();
        self.now = later(running.now, 1);
        let expected = running.shard.state_hash();
        let mut disk = running.disk;
        match recover(&mut disk, &self.scene.settings) {
            Err(refusal) => Ok(Err(refusal.to_string())),
            Ok(recovered) if recovered.shard.state_hash() != expected => {
                Err("a restart gives another state".into())
            }
            Ok(recovered) => Ok(Ok(Running::start(disk, recovered, self.now))),
        }
    }
}
