//! What always holds, and a digest of what a crash must not change.

use escapement_protocol::{Outcome, Sequence, TopicId};
use hashbrown::{HashMap, HashSet};

use super::{Durable, Shard, Volatile};
use crate::far::Closing;

impl Shard {
    /// Asserts every invariant. Linear in what is pending: for tests and simulation.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        self.audit().unwrap_or_else(|broken| panic!("{broken}"));
        self.router.check();
        let (open, counted) = (self.open_event_count(), self.volatile.open.total());
        assert_eq!(open, counted, "every event that was handed out and has not ended is counted");
        self.check_soon();
        self.check_backlog();
        self.check_aside();
    }

    /// Asserts that what is in memory and not past is counted by topic and due time.
    fn check_soon(&self) {
        let mut topics: HashMap<TopicId, u64> = HashMap::new();
        for (_, entry) in self.durable.table.iter().filter(|(_, e)| self.volatile.soon.counts(e.due)) {
            *topics.entry(entry.topic).or_default() += 1;
            *topics.entry(TopicId(0)).or_default() += 1;
        }
        for (topic, count) in topics {
            assert_eq!(self.volatile.soon.counted(topic), count, "events of {topic:?} that are not past");
        }
    }

    fn check_backlog(&self) {
        let mut waiting = HashSet::new();
        for (topic, (due, sequence)) in self.volatile.backlog.iter() {
            let entry = self.durable.table.get(sequence);
            // One that was cancelled with its group can be cancelled by itself, too, and has ended then.
            let is_there = entry.is_none_or(|entry| entry.due == due && entry.topic == topic);
            assert!(
                is_there && due <= self.volatile.now.wall,
                "{sequence:?} waits: it is due, if it is pending"
            );
            assert!(waiting.insert(sequence), "{sequence:?} waits once");
        }
        assert_eq!(waiting.len(), self.volatile.backlog.len(), "every event that waits is counted");
    }

    /// Events that were handed to their subscriptions and whose end is not applied.
    fn open_event_count(&self) -> u64 {
        let Volatile { open_tasks, fanout, ended, ending, fenced, .. } = &self.volatile;
        let more: u64 = fanout.values().map(|left| u64::from(*left) - 1).sum();
        let decided = ended.iter().filter(|ended| ended.last && ended.outcome != Outcome::Cancelled).count();
        let logged = ending.iter().filter(|sequence| !fenced.contains(*sequence)).count();
        *open_tasks as u64 - more + decided as u64 + logged as u64
    }

    /// Says whether every invariant of the durable state holds. Linear in what is pending: for tools. In recovery, call
    /// [`Shard::replayed`] before.
    ///
    /// # Errors
    /// The first one that does not.
    pub fn audit(&self) -> Result<(), String> {
        let Durable {
            table,
            payloads,
            ledger,
            copies,
            progress,
            forwards,
            next_sequence,
            runs,
            names,
            groups,
            ..
        } = &self.durable;
        runs.audit()?;
        names.audit()?;
        groups.audit(self.waiting_in_groups(), runs.pending() == 0)?;
        if let Some(Sequence(event)) = groups.left().into_iter().find(|event| table.get(*event).is_none()) {
            return Err(format!("event {event} has left its group and is not pending"));
        }
        let counted = [("in its block", ledger.live()), ("in its topic", copies.pending() as u64)];
        for (place, count) in counted {
            if count != table.len() as u64 {
                let pending = table.len();
                return Err(format!(
                    "each of {pending} pending events counts once {place}, which makes {count}"
                ));
            }
        }
        let mut topics: HashMap<TopicId, u64> = HashMap::new();
        for (_, entry) in table.iter() {
            *topics.entry(entry.topic).or_default() += 1;
        }
        if let Some((TopicId(topic), count)) =
            topics.iter().find(|(topic, n)| copies.pending_of(**topic) != **n)
        {
            return Err(format!(
                "{count} events of topic {topic} are pending, and another number is counted"
            ));
        }
        let bytes: usize = table.iter().map(|(_, entry)| payloads.event(entry.location).len() + 8).sum();
        let live = payloads.live_bytes();
        if bytes != live {
            return Err(format!("each pending event has one payload: {bytes} bytes, and {live} are kept"));
        }
        if let Some(Sequence(event)) = progress.events().find(|event| table.get(*event).is_none()) {
            return Err(format!("event {event} has progress and is not pending"));
        }
        if let Some(Sequence(event)) = forwards.keys().find(|event| table.get(**event).is_none()) {
            return Err(format!("event {event} was rescheduled and is not pending"));
        }
        match table.iter().find(|(sequence, _)| sequence.0 >= *next_sequence) {
            Some((Sequence(event), _)) => {
                Err(format!("event {event} is pending, and the next to be given out is {next_sequence}"))
            }
            None => Ok(()),
        }
    }

    /// A digest of the durable state, equal before a crash and after recovery from the same log.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        let mut add = |bytes: &[u8]| hasher.update(bytes);
        for (sequence, entry) in self.durable.table.iter() {
            add(&sequence.0.to_le_bytes());
            add(&entry.due.0.to_le_bytes());
            add(&entry.topic.0.to_le_bytes());
            add(self.durable.payloads.event(entry.location));
            if let Some(forward) = self.durable.forwards.get(&sequence) {
                add(&forward.schedule_time.0.to_le_bytes());
                add(&forward.version.to_le_bytes());
            }
            let mut tasks: Vec<_> = self.durable.progress.get(sequence).to_vec();
            tasks.sort_unstable_by_key(|task| task.subscription);
            for task in tasks {
                add(format!("{task:?}").as_bytes());
            }
        }
        for (id, run) in self.durable.runs.iter().filter(|(_, run)| run.closing != Closing::Closed) {
            for number in [id.0, run.moved, run.loaded] {
                add(&number.to_le_bytes());
            }
            for ((due, sequence), topic) in run.ended_not_loaded() {
                add(&due.0.to_le_bytes());
                add(&sequence.0.to_le_bytes());
                add(&topic.0.to_le_bytes());
            }
        }
        for (topic, name) in self.durable.names.sorted() {
            add(&topic.0.to_le_bytes());
            let [low, high] = name.hash.0;
            for number in [low, high, name.sequence.0, name.schedule_time.0, name.accepted.0] {
                add(&number.to_le_bytes());
            }
        }
        for (id, run) in self.durable.names.runs.iter().filter(|(_, run)| !run.is_ended) {
            add(&id.0.to_le_bytes());
            add(&run.footer_id.to_le_bytes());
        }
        let mut control = Vec::new();
        let mut count = 0;
        for (_, group) in self.durable.groups.sorted() {
            crate::record::RecordWriter::new(&mut control, &mut count).group(group);
        }
        for sequence in self.durable.groups.left() {
            control.extend_from_slice(&sequence.0.to_le_bytes());
        }
        self.durable.registry.write_since(0, &mut crate::record::RecordWriter::new(&mut control, &mut count));
        add(&control);
        add(&self.durable.next_sequence.to_le_bytes());
        hasher.digest()
    }
}
