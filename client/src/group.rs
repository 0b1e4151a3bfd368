//! Operations on all pending events of a group, over all shards of a node.

use std::time::{SystemTime, UNIX_EPOCH};

use escapement_protocol::frame::{
    GroupAct, GroupAnswer, GroupEpoch, GroupOperation, GroupVerdict, Query, QueryAnswer,
};
use escapement_protocol::{ShardId, TopicId};

use crate::link::unexpected;
use crate::{Client, ClientError};

/// What became of an operation on a group, over all shards.
#[derive(Debug, Default)]
pub struct GroupOutcome {
    /// Events that it took, or gave back.
    pub count: u64,
    /// Events of the group that are pending and were not handed out, cancelled ones left out.
    pub pending: u64,
    /// Events of the group that are cancelled and can be brought back.
    pub cancelled: u64,
    /// Operations that are remembered, by epoch.
    pub operations: Vec<GroupEpoch>,
    /// Whether any shard knows the operation, or was asked for none.
    pub is_known: bool,
    /// Whether the operation was taken back, at every shard that knows it.
    pub is_undone: bool,
    /// Shards that did not carry it out, and why: the counts are of the others. Asked again under the same epoch, what is
    /// missing is carried out, and what was is not carried out twice.
    pub failed: Vec<(ShardId, ClientError)>,
}

impl GroupOutcome {
    fn add(&mut self, answer: &GroupAnswer) {
        self.count += answer.count;
        self.pending += answer.pending;
        self.cancelled += answer.cancelled;
        let is_known = answer.verdict != GroupVerdict::NotFound;
        self.is_undone = if is_known && self.is_known {
            self.is_undone && answer.verdict == GroupVerdict::Undone
        } else {
            self.is_undone || answer.verdict == GroupVerdict::Undone
        };
        self.is_known |= is_known;
        for more in &answer.operations {
            match self.operations.iter_mut().find(|held| held.epoch == more.epoch) {
                Some(held) => {
                    held.taken += more.taken;
                    held.left += more.left;
                }
                None => self.operations.push(*more),
            }
        }
        self.operations.sort_unstable_by_key(|operation| operation.epoch);
    }
}

/// Operations on groups. Each is one request to every shard, whatever the group holds.
impl Client {
    /// An epoch for a new operation: the time in microseconds. Of two operations on one group within the same one, the second
    /// would be taken for the first.
    #[must_use]
    pub fn group_epoch() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Cancels what is pending in a group and was not handed out, under an epoch that is new for the group.
    ///
    /// # Errors
    /// A connection that can't be made. What single shards answer is in the outcome.
    pub async fn cancel_group(
        &self,
        topic: TopicId,
        group: &str,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, GroupAct::Cancel, epoch).await
    }

    /// Takes an operation back: of its events, those whose time has not come are pending again.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn undo_group(
        &self,
        topic: TopicId,
        group: &str,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, GroupAct::Undo, epoch).await
    }

    /// How a group stands: sums of what each shard counts at the moment that it is asked.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn group(&self, topic: TopicId, group: &str) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, GroupAct::Read, 0).await
    }

    async fn operate(
        &self,
        topic: TopicId,
        group: &str,
        act: GroupAct,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        let shard_count = self.home().await?.info().shard_count;
        let mut outcome = GroupOutcome::default();
        for shard in (0..shard_count).map(ShardId) {
            let operation = GroupOperation { shard, topic, group: group.to_owned(), act, epoch };
            match self.operate_on_one(operation).await {
                Ok(answer) => outcome.add(&answer),
                Err(error) => outcome.failed.push((shard, error)),
            }
        }
        Ok(outcome)
    }

    async fn operate_on_one(&self, operation: GroupOperation) -> Result<GroupAnswer, ClientError> {
        match self.home().await?.query(Query::Group(operation)).await? {
            QueryAnswer::Group(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(verdict: GroupVerdict, count: u64, epoch: u64) -> GroupAnswer {
        let operations = vec![GroupEpoch { epoch, taken: 2, left: 1 }];
        GroupAnswer { verdict, count, pending: 3, cancelled: 4, operations }
    }

    #[test]
    fn answers_of_shards_add_up_and_one_that_knows_the_operation_is_enough() {
        let mut outcome = GroupOutcome::default();
        for verdict in [GroupVerdict::NotFound, GroupVerdict::Undone, GroupVerdict::NotFound] {
            outcome.add(&answer(verdict, 5, 7));
        }
        assert!(outcome.is_known && outcome.is_undone);
        assert_eq!((outcome.count, outcome.pending, outcome.cancelled), (15, 9, 12));
        assert_eq!(outcome.operations, [GroupEpoch { epoch: 7, taken: 6, left: 3 }]);
        let mut outcome = GroupOutcome::default();
        for verdict in [GroupVerdict::Undone, GroupVerdict::Cancelled] {
            outcome.add(&answer(verdict, 1, 7));
        }
        assert!(outcome.is_known && !outcome.is_undone, "a shard holds it still");
        let mut outcome = GroupOutcome::default();
        outcome.add(&answer(GroupVerdict::NotFound, 0, 7));
        assert!(!outcome.is_known && !outcome.is_undone);
    }
}
