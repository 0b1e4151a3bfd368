//! Operations on all pending events of a group, and their answers. Owned, because they are few and travel between cores.

use super::Fixed;
use super::items::{fixed_size, put, u64_at};
use crate::{ShardId, TopicId};

/// Most operations that a group has at a time, and that an answer tells of.
pub const GROUP_EPOCH_COUNT_MAX: usize = 16;

/// What is to be done with a group. The number travels on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupAct {
    /// Cancel what is pending and was not handed out, under an epoch that is new for the group.
    Cancel = 1,
    /// Take back the operation of that epoch, for all events of it whose time has not come.
    Undo = 2,
    /// Only say how the group stands. The epoch means nothing.
    Read = 3,
    /// Let what is pending and was not handed out wait, whether its time comes or not, until that is taken back.
    Pause = 4,
    /// Let it be due later.
    Postpone = 5,
}

impl GroupAct {
    /// Reads the wire's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Cancel, Self::Undo, Self::Read, Self::Pause, Self::Postpone]
            .into_iter()
            .find(|act| *act as u8 == code)
    }
}

/// A request to one shard. Asked again under the same epoch, it is carried out once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOperation {
    /// Whose events.
    pub shard: ShardId,
    /// The group's topic.
    pub topic: TopicId,
    /// The group, 1 to 255 bytes.
    pub group: String,
    /// What is to be done.
    pub act: GroupAct,
    /// Names an operation over all shards: chosen by the client, not 0, never used before for this group.
    pub epoch: u64,
    /// How much later events are due that are postponed: from 1 to [`DELAY_MS_MAX`](crate::DELAY_MS_MAX); else 0.
    pub by_ms: u64,
}

/// What became of a request. The number travels on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupVerdict {
    /// The cancellation is in force, and took `count` events.
    Cancelled = 1,
    /// The operation was taken back, and `count` events are pending again.
    Undone = 2,
    /// The shard knows no operation of that epoch: it never was, or is long over.
    NotFound = 3,
    /// Nothing was asked for but the counts.
    Read = 4,
    /// The pause is in force, and took `count` events.
    Paused = 5,
    /// The postponement is in force, and took `count` events.
    Postponed = 6,
}

impl GroupVerdict {
    /// Reads the wire's code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Cancelled, Self::Undone, Self::NotFound, Self::Read, Self::Paused, Self::Postponed]
            .into_iter()
            .find(|verdict| *verdict as u8 == code)
    }
}

/// An answer of one shard, exact at the moment of the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupAnswer {
    /// What became of the request.
    pub verdict: GroupVerdict,
    /// Events that it took, or gave back.
    pub count: u64,
    /// Events of the group that are pending and were not handed out, cancelled ones left out.
    pub pending: u64,
    /// Of these, such as are paused.
    pub paused: u64,
    /// Events of the group that are cancelled and can be brought back.
    pub cancelled: u64,
    /// Operations that the shard remembers, the oldest first; at most [`GROUP_EPOCH_COUNT_MAX`].
    pub operations: Vec<GroupEpoch>,
}

/// One operation on a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupEpoch {
    /// Its name.
    pub epoch: u64,
    /// Events that it took.
    pub taken: u64,
    /// Of these, such as it still holds and would give back.
    pub left: u64,
    /// How much later they are due, where it postpones them; else 0.
    pub by_ms: u64,
    /// What it does: [`GroupAct::Cancel`], `Pause` or `Postpone`.
    pub act: GroupAct,
    /// Whether it was taken back.
    pub is_undone: bool,
}

impl Fixed for GroupEpoch {
    fixed_size!(40);

    fn from_wire(bytes: &[u8; 40]) -> Option<Self> {
        let [.., act, is_undone, 0, 0, 0, 0, 0, 0] = *bytes else { return None };
        let is_operation = |act: &GroupAct| !matches!(act, GroupAct::Undo | GroupAct::Read);
        Some(GroupEpoch {
            epoch: u64_at(bytes, 0),
            taken: u64_at(bytes, 8),
            left: u64_at(bytes, 16),
            by_ms: u64_at(bytes, 24),
            act: GroupAct::from_code(act).filter(is_operation)?,
            is_undone: match is_undone {
                0 => false,
                1 => true,
                _ => return None,
            },
        })
    }

    fn to_wire(self) -> [u8; 40] {
        let mut out = [0; 40];
        for (at, number) in [self.epoch, self.taken, self.left, self.by_ms].into_iter().enumerate() {
            put(&mut out, 8 * at, number.to_le_bytes());
        }
        put(&mut out, 32, [self.act as u8, u8::from(self.is_undone)]);
        out
    }
}
