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
    /// Of these, such as are paused.
    pub paused: u64,
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
        self.paused += answer.paused;
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
                    held.is_undone &= more.is_undone;
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
        self.operate(topic, group, (GroupAct::Cancel, 0), epoch).await
    }

    /// Lets what is pending in a group and was not handed out wait until that is taken back: then what has become due meanwhile
    /// is due at once.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn pause_group(
        &self,
        topic: TopicId,
        group: &str,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, (GroupAct::Pause, 0), epoch).await
    }

    /// Lets what is pending in a group and was not handed out be due so many ms later, from 1 to ten years.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn postpone_group(
        &self,
        topic: TopicId,
        group: &str,
        by_ms: u64,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, (GroupAct::Postpone, by_ms), epoch).await
    }

    /// Takes an operation back, for all its events that still wait: what was cancelled is pending again, what was paused or postponed is
    /// due as it was, which may be at once.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn undo_group(
        &self,
        topic: TopicId,
        group: &str,
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, (GroupAct::Undo, 0), epoch).await
    }

    /// Takes every pause of a group back that its shards remember: what has become due meanwhile is due at once.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn resume_group(&self, topic: TopicId, group: &str) -> Result<GroupOutcome, ClientError> {
        let shard_count = self.home().await?.info().shard_count;
        let mut outcome = GroupOutcome::default();
        for shard in (0..shard_count).map(ShardId) {
            match self.resume_on_one(shard, topic, group).await {
                Ok(answer) => outcome.add(&answer),
                Err(error) => outcome.failed.push((shard, error)),
            }
        }
        Ok(outcome)
    }

    async fn resume_on_one(
        &self,
        shard: ShardId,
        topic: TopicId,
        group: &str,
    ) -> Result<GroupAnswer, ClientError> {
        let operation =
            |act, epoch| GroupOperation { shard, topic, group: group.to_owned(), act, epoch, by_ms: 0 };
        let mut answer = self.operate_on_one(operation(GroupAct::Read, 0)).await?;
        let pauses = answer.operations.iter().filter(|held| held.act == GroupAct::Pause && !held.is_undone);
        let pauses: Vec<u64> = pauses.map(|held| held.epoch).collect();
        let mut count = 0;
        for epoch in pauses {
            answer = self.operate_on_one(operation(GroupAct::Undo, epoch)).await?;
            count += answer.count;
        }
        Ok(GroupAnswer { count, ..answer })
    }

    /// How a group stands: sums of what each shard counts at the moment that it is asked.
    ///
    /// # Errors
    /// As [`Client::cancel_group`].
    pub async fn group(&self, topic: TopicId, group: &str) -> Result<GroupOutcome, ClientError> {
        self.operate(topic, group, (GroupAct::Read, 0), 0).await
    }

    async fn operate(
        &self,
        topic: TopicId,
        group: &str,
        (act, by_ms): (GroupAct, u64),
        epoch: u64,
    ) -> Result<GroupOutcome, ClientError> {
        let shard_count = self.home().await?.info().shard_count;
        let mut outcome = GroupOutcome::default();
        for shard in (0..shard_count).map(ShardId) {
            let operation = GroupOperation { shard, topic, group: group.to_owned(), act, epoch, by_ms };
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
        GroupAnswer { verdict, count, pending: 3, paused: 1, cancelled: 4, operations: vec![of(epoch, 2, 1)] }
    }

    fn of(epoch: u64, taken: u64, left: u64) -> GroupEpoch {
        GroupEpoch { epoch, taken, left, by_ms: 0, act: GroupAct::Cancel, is_undone: false }
    }

    #[test]
    fn answers_of_shards_add_up_and_one_that_knows_the_operation_is_enough() {
        let mut outcome = GroupOutcome::default();
        for verdict in [GroupVerdict::NotFound, GroupVerdict::Undone, GroupVerdict::NotFound] {
            outcome.add(&answer(verdict, 5, 7));
        }
        assert!(outcome.is_known && outcome.is_undone);
        assert_eq!((outcome.count, outcome.pending, outcome.paused, outcome.cancelled), (15, 9, 3, 12));
        assert_eq!(outcome.operations, [of(7, 6, 3)]);
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
