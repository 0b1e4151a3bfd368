//! Reading what is pending.

use escapement_protocol::frame::{
    Counts, DUE_WITHIN_MS, DueCount, EventDetail, EventPage, ListEvents, Query, QueryAnswer,
};
use escapement_protocol::{ErrorCode, EventId, ShardId, SubscriptionId, TopicId};

use crate::link::unexpected;
use crate::{Client, ClientError};

/// What [`Client::count`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Sums over the shards that serve.
    pub counts: Counts,
    /// Shards that are out of service: what is pending there is not in the sums.
    pub missing: Vec<ShardId>,
}

/// What [`Client::count_due`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDueCounts {
    /// One for each of [`DUE_WITHIN_MS`]: sums over the shards that serve.
    pub counts: Vec<DueCount>,
    /// Shards that are out of service: what is pending there is not in the sums.
    pub missing: Vec<ShardId>,
}

/// Questions about pending events. They change nothing, and the answers are from what is durable.
impl Client {
    /// What is known of an event, without its bytes; `None` where it never was, or has ended.
    ///
    /// # Errors
    /// The event's shard does not serve, too many questions wait for its disk, or a lost connection.
    pub async fn event(&self, event: EventId) -> Result<Option<EventDetail>, ClientError> {
        self.detail(Query::Event { event, peek: false }).await
    }

    /// As [`Client::event`], with the event's bytes: at most 256 KiB, to be read by
    /// [`EventView::parse`](escapement_protocol::EventView::parse).
    ///
    /// # Errors
    /// As [`Client::event`].
    pub async fn peek(&self, event: EventId) -> Result<Option<EventDetail>, ClientError> {
        self.detail(Query::Event { event, peek: true }).await
    }

    /// Pending events of a topic, or of all topics, and tasks of a subscription; without one, `ended` counts events that
    /// ended without a task, as by a cancellation. Sums of what each shard counts at the moment that it is asked.
    ///
    /// # Errors
    /// No shard serves, or a lost connection.
    pub async fn count(
        &self,
        topic: Option<TopicId>,
        subscription: Option<SubscriptionId>,
    ) -> Result<NodeCounts, ClientError> {
        let (topic, subscription) = (topic.unwrap_or_default(), subscription.unwrap_or_default());
        let mut sum = Counts::default();
        let question = |shard| Query::Count { shard, topic, subscription };
        let missing = self.ask_all(question, |answer| {
            let QueryAnswer::Count(counts) = answer else { return Err(unexpected()) };
            sum.add(&counts);
            Ok(())
        });
        let missing = missing.await?;
        Ok(NodeCounts { counts: sum, missing })
    }

    /// How many pending events of a topic, or of all topics, are due already, and how many come due within a second, ten, a
    /// minute, ten, an hour and a day from now: one for each of [`DUE_WITHIN_MS`]. Sums of what each shard counts at the
    /// moment that it is asked; a sum is exact where each of them is.
    ///
    /// # Errors
    /// No shard serves, or a lost connection.
    pub async fn count_due(&self, topic: Option<TopicId>) -> Result<NodeDueCounts, ClientError> {
        let topic = topic.unwrap_or_default();
        let none = |within_ms| DueCount { within_ms, count: 0, exact: true };
        let mut sum = DUE_WITHIN_MS.map(none);
        let missing = self.ask_all(
            |shard| Query::Due { shard, topic },
            |answer| {
                let QueryAnswer::Due(counts) = answer else { return Err(unexpected()) };
                if !counts.iter().map(|count| count.within_ms).eq(DUE_WITHIN_MS) {
                    return Err(unexpected());
                }
                for (sum, count) in sum.iter_mut().zip(&counts) {
                    sum.count = sum.count.saturating_add(count.count);
                    sum.exact &= count.exact;
                }
                Ok(())
            },
        );
        let missing = missing.await?;
        Ok(NodeDueCounts { counts: sum.to_vec(), missing })
    }

    /// Asks every shard. Answers which of them are out of service, where not all are.
    async fn ask_all(
        &self,
        question: impl Fn(ShardId) -> Query,
        mut take: impl FnMut(QueryAnswer) -> Result<(), ClientError>,
    ) -> Result<Vec<ShardId>, ClientError> {
        let home = self.home().await?;
        let shard_count = home.info().shard_count;
        let mut missing = Vec::new();
        for shard in (0..shard_count).map(ShardId) {
            match home.query(question(shard)).await {
                Ok(answer) => take(answer)?,
                Err(error) => {
                    let is_out = error.code() == Some(ErrorCode::Unavailable);
                    if !is_out || missing.len() + 1 == usize::from(shard_count) {
                        return Err(error);
                    }
                    missing.push(shard);
                }
            }
        }
        Ok(missing)
    }

    /// One page of a topic's pending events, and the token for the next; without one it was the last.
    ///
    /// A page costs the node little however many events are pending, so it may have few events or none though there are
    /// more: go on while there is a token. It says what is missing, where a shard is out of service or a block can't be read. An event that is pending as long as that takes is in some page, in more than one
    /// where it was moved meanwhile.
    ///
    /// # Errors
    /// A token that is not of this listing, or of an earlier start of the node: list from the first page. The only shard that
    /// may have such events does not serve, too many listings wait for a shard's disk, or a lost connection.
    pub async fn list(&self, list: ListEvents) -> Result<EventPage, ClientError> {
        match self.home().await?.query(Query::List(Box::new(list))).await? {
            QueryAnswer::List(page) => Ok(page),
            _ => Err(unexpected()),
        }
    }

    async fn detail(&self, query: Query) -> Result<Option<EventDetail>, ClientError> {
        match self.home().await?.query(query).await? {
            QueryAnswer::Event(detail) => Ok(detail.map(|detail| *detail)),
            _ => Err(unexpected()),
        }
    }
}
