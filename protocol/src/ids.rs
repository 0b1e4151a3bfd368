//! Identifiers. Each is a newtype, so that the compiler refuses to take one for another.

use std::fmt;
use std::str::FromStr;

/// Number of a shard: the unit of single ownership. `0..shard_count`, at most 256 shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Most shards that a data directory can be formatted with.
pub const SHARD_COUNT_MAX: u16 = 256;

/// Number of a topic, assigned by shard 0 at creation, never reused. 0 is never assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u32);

/// Number of a subscription, assigned by shard 0 at creation, never reused. 0 is never assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u32);

/// Position of an event among all that its shard ever accepted, from 1. Fits 48 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Largest sequence an [`EventId`] can carry.
    pub const MAX: Sequence = Sequence((1 << 48) - 1);
}

/// Generation of a shard's ownership: rises durably at every start. Half of the fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Identifies an accepted event for as long as it lives.
///
/// 16 bytes, big-endian, so that ids sort by shard, then by acceptance:
/// shard (2), sequence (6), original due time in ms (6), reserved zero (2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Shard that owns the event.
    pub shard: ShardId,
    /// Its position there.
    pub sequence: Sequence,
    /// Due time resolved at acceptance, in ms since the Unix epoch. Fits 48 bits.
    pub schedule_time_ms: u64,
}

impl EventId {
    /// The byte form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..2].copy_from_slice(&self.shard.0.to_be_bytes());
        out[2..8].copy_from_slice(&self.sequence.0.to_be_bytes()[2..]);
        out[8..14].copy_from_slice(&self.schedule_time_ms.to_be_bytes()[2..]);
        out
    }

    /// Reads the byte form; `None` where the reserved bytes are not zero.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let [s0, s1, q0, q1, q2, q3, q4, q5, t0, t1, t2, t3, t4, t5, 0, 0] = bytes else { return None };
        Some(EventId {
            shard: ShardId(u16::from_be_bytes([s0, s1])),
            sequence: Sequence(u64::from_be_bytes([0, 0, q0, q1, q2, q3, q4, q5])),
            schedule_time_ms: u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]),
        })
    }
}

/// Lower-case hexadecimal of the byte form, without the reserved bytes: 28 digits.
impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}{:012x}{:012x}", self.shard.0, self.sequence.0, self.schedule_time_ms)
    }
}

/// What [`EventId::from_str`] and [`TaskId::from_str`] answer to a text that is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an id: an event's is 28 hexadecimal digits, a task's is an event's, a slash and a subscription's number"
)]
pub struct IdParseError;

impl FromStr for EventId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        if text.len() != 28 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdParseError);
        }
        let part =
            |from: usize, to: usize| u64::from_str_radix(&text[from..to], 16).map_err(|_| IdParseError);
        Ok(EventId {
            shard: ShardId(u16::try_from(part(0, 4)?).map_err(|_| IdParseError)?),
            sequence: Sequence(part(4, 16)?),
            schedule_time_ms: part(16, 28)?,
        })
    }
}

/// Identifies a task: one event for one subscription. Stable over attempts and restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The event.
    pub event: EventId,
    /// The subscription it is due to.
    pub subscription: SubscriptionId,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.event, self.subscription.0)
    }
}

impl FromStr for TaskId {
    type Err = IdParseError;

    fn from_str(text: &str) -> Result<Self, IdParseError> {
        let (event, subscription) = text.split_once('/').ok_or(IdParseError)?;
        Ok(TaskId {
            event: event.parse()?,
            subscription: SubscriptionId(subscription.parse().map_err(|_| IdParseError)?),
        })
    }
}

/// Which shard owns an event: by its ordering key where it has one, else by `(source, id)`.
///
/// `source` is what the event states, or empty where it takes the topic's default.
///
/// # Panics
/// If `shard_count` is 0.
#[must_use]
pub fn shard_of(topic: TopicId, ordering_key: &[u8], source: &[u8], id: &[u8], shard_count: u16) -> ShardId {
    use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};
    if shard_count == 1 {
        return ShardId(0);
    }
    let seed = u64::from(topic.0);
    let hash = if !ordering_key.is_empty() {
        xxh3_64_with_seed(ordering_key, seed)
    } else if source.is_empty() {
        xxh3_64_with_seed(id, seed)
    } else {
        let mut hasher = Xxh3::with_seed(seed);
        hasher.update(source);
        hasher.update(&[0]);
        hasher.update(id);
        hasher.digest()
    };
    ShardId((hash % u64::from(shard_count)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_survives_its_byte_and_text_forms() {
        let id = EventId {
            shard: ShardId(7),
            sequence: Sequence(0x1234_5678_9abc),
            schedule_time_ms: 1_795_000_000_123,
        };
        assert_eq!(EventId::from_bytes(id.to_bytes()), Some(id));
        assert_eq!(id.to_string().parse(), Ok(id));
        let task = TaskId { event: id, subscription: SubscriptionId(9) };
        assert_eq!(task.to_string().parse(), Ok(task));
    }

    #[test]
    fn malformed_ids_are_refused() {
        let mut bytes = EventId { shard: ShardId(1), sequence: Sequence(1), schedule_time_ms: 1 }.to_bytes();
        bytes[15] = 1;
        assert_eq!(EventId::from_bytes(bytes), None);
        for text in ["", "12", "zz07123456789abc01a1eac6f07b", "0007é23456789abc01a1eac6f07", "1/2/3"] {
            assert_eq!(text.parse::<EventId>(), Err(IdParseError), "{text}");
            assert_eq!(text.parse::<TaskId>(), Err(IdParseError), "{text}");
        }
    }
}
