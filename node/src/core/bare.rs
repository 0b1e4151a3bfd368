//! Cores none of whose shards serves: they answer from a copy of the registry, and pass everything else on.
//!
//! Shard 0 sends control objects to shards that serve, so nothing of them comes to such a core by itself. The core of
//! shard 0 tells it, in the turn in which an object became durable there. Mail is taken before streams are read, so a
//! client that has its answer finds the object at whichever core it asks next.

use escapement_engine::Registry;
use escapement_engine::record::{Record, RecordWriter, records};
use escapement_protocol::ShardId;

use super::{Inside, Parcel, core_of};

/// What a core does so that those without a serving shard know the control objects.
#[derive(Debug, Default)]
pub(super) struct Bare {
    /// The copy, at a core that needs one.
    pub(super) copy: Option<Registry>,
    /// The cores that have one, where this core has shard 0 to tell them of.
    told: Vec<u16>,
    /// Version up to which they were told.
    told_version: u64,
}

impl<S> Inside<S> {
    /// The node's objects as they are at its start.
    pub(super) fn hold_registry(&mut self, newest: &Registry) {
        let told = self.bare_cores();
        let copy = told.contains(&self.config.core).then(|| newest.clone());
        self.bare = Bare { copy, told, told_version: newest.version() };
    }

    /// Cores none of whose shards serves now.
    fn bare_cores(&self) -> Vec<u16> {
        let core_count = self.config.core_count;
        let serves = |core: &u16| {
            let epochs = self.config.epochs.iter().skip(usize::from(*core));
            epochs.step_by(usize::from(core_count)).any(Option::is_some)
        };
        (0..core_count).filter(|core| !serves(core)).collect()
    }

    /// A shard has stopped, and its core may have no other.
    pub(super) fn look_for_bare_cores(&mut self) {
        let told = self.bare_cores();
        if told.len() == self.bare.told.len() {
            return;
        }
        if told.contains(&self.config.core) && self.bare.copy.is_none() {
            let stopped = self.shards.iter().flatten().map(|logged| logged.shard().registry());
            self.bare.copy = stopped.max_by_key(|registry| registry.version()).cloned();
        }
        self.bare.told = told;
        // What was on its way to the core's last shard is not in its copy.
        self.bare.told_version = 0;
        self.tell_bare_cores();
    }

    /// Tells the cores that have a copy what has become durable in shard 0 since.
    pub(super) fn tell_bare_cores(&mut self) {
        if self.bare.told.is_empty() || core_of(ShardId(0), self.config.core_count) != self.config.core {
            return;
        }
        let first = self.shards.first().and_then(Option::as_ref);
        let Some(logged) = first.filter(|logged| logged.failure().is_none()) else { return };
        let registry = logged.shard().registry();
        if registry.version() <= self.bare.told_version {
            return;
        }
        let mut objects = Vec::new();
        registry.write_since(self.bare.told_version, &mut RecordWriter::new(&mut objects, &mut 0));
        self.bare.told_version = registry.version();
        for core in &self.bare.told {
            self.mail[usize::from(*core)].push(Parcel::Objects(objects.as_slice().into()));
        }
    }

    /// Takes what [`Inside::tell_bare_cores`] sent.
    pub(super) fn take_objects(&mut self, objects: &[u8]) {
        let Some(copy) = &mut self.bare.copy else { return };
        for record in records(objects) {
            match record {
                // No block of a log here holds it.
                Ok(record @ (Record::Topic { .. } | Record::Subscription { .. })) => copy.put(&record, 0),
                _ => panic!("the core of shard 0 sends control records only"),
            };
        }
    }
}
