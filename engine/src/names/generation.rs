//! Names that were accepted one after another.

use hashbrown::HashTable;

use super::{NAME_SIZE_BYTES, Name, NameHash};

/// Names in a topic's first generation: seven eighths of a power of two, which is what a table of that size takes.
const COUNT_MIN: usize = 7 * 64;

/// Names in a large one.
const COUNT_MAX: usize = 7 * 128 * 1024;

/// Bytes that a table takes for each of its places, which are a power of two.
const PLACE_SIZE_BYTES: usize = size_of::<u32>() + 1;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Generation {
    /// By ascending sequence; at least one, but while it is made.
    names: Vec<Name>,
    count_max: usize,
    /// Places in `names`, by hash.
    table: HashTable<u32>,
}

impl Generation {
    /// The one that follows another: of twice as many names, so that a topic has few.
    pub(super) fn after(before: Option<&Generation>) -> Generation {
        let count_max = before.map_or(COUNT_MIN, |before| 2 * before.names.len());
        // From the least by doubling, so that it stays seven eighths of a power of two.
        let count_max = (count_max.div_ceil(COUNT_MIN).next_power_of_two() * COUNT_MIN).min(COUNT_MAX);
        Generation { names: Vec::new(), count_max, table: HashTable::with_capacity(count_max) }
    }

    /// Whether a name that was accepted after all of these belongs to them.
    pub(super) fn takes(&self, name: &Name, span_ms: u64) -> bool {
        self.names.len() < self.count_max && name.accepted < self.names[0].accepted.plus_ms(span_ms)
    }

    pub(super) fn push(&mut self, name: Name) {
        let place = self.names.len() as u32;
        self.names.push(name);
        let names = &self.names;
        self.table.insert_unique(name.hash.0[0], place, |place| names[*place as usize].hash.0[0]);
    }

    pub(super) fn last(&self) -> &Name {
        self.names.last().expect("a generation holds a name")
    }

    pub(super) fn find(&self, hash: NameHash, is_it: impl Fn(&Name) -> bool) -> Option<&Name> {
        let is_at = |place: &u32| {
            let name = &self.names[*place as usize];
            name.hash == hash && is_it(name)
        };
        self.table.find(hash.0[0], is_at).map(|place| &self.names[*place as usize])
    }

    /// Its names from a sequence on.
    pub(super) fn from(&self, first: escapement_protocol::Sequence) -> &[Name] {
        &self.names[self.names.partition_point(|name| name.sequence < first)..]
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let places = self.table.capacity() * 8 / 7;
        self.names.len() * NAME_SIZE_BYTES + places * PLACE_SIZE_BYTES
    }
}
