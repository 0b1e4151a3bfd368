//! Administration, cancellation and rescheduling.

use std::time::Duration;

use escapement_protocol::event::Due;
use escapement_protocol::frame::{
    AdminAnswer, AdminRequest, CancelVerdict, EventName, Page, RescheduleVerdict, ShardMapInfo, SnapshotInfo,
    SubscriptionInfo, TopicInfo,
};
use escapement_protocol::{EventId, SubscriptionSettings, TopicId, TopicSettings};

use crate::link::unexpected;
use crate::{Client, ClientError};

/// Names in one cancel frame: a node takes no more.
const CANCEL_NAME_COUNT_MAX: usize = 1_024;

/// Events in one frame that changes them: a node takes no more.
const CHANGE_COUNT_MAX: usize = 4_096;

macro_rules! ask {
    ($client:ident, $request:expr, $answer:path) => {
        match $client.home().await?.admin($request).await? {
            $answer(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    };
}

/// Requests to the node. Each is asked once, and fails where the connection fails.
impl Client {
    /// Creates a topic, or reads the one that has exactly these settings.
    ///
    /// # Errors
    /// Settings out of range, a topic of that name with other settings, or a lost connection.
    pub async fn create_topic(&self, settings: TopicSettings) -> Result<TopicInfo, ClientError> {
        settings.validate()?;
        ask!(self, AdminRequest::CreateTopic(settings), AdminAnswer::Topic)
    }

    /// Reads a topic.
    ///
    /// # Errors
    /// No such topic, or a lost connection.
    pub async fn topic(&self, name: &str) -> Result<TopicInfo, ClientError> {
        ask!(self, AdminRequest::GetTopic { name: name.to_owned() }, AdminAnswer::Topic)
    }

    /// Reads all topics.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn topics(&self) -> Result<Vec<TopicInfo>, ClientError> {
        let mut all: Vec<TopicInfo> = Vec::new();
        loop {
            let page = Page { after_id: all.last().map_or(0, |last| last.topic.0), count_max: 0 };
            let list = ask!(self, AdminRequest::ListTopics(page), AdminAnswer::Topics)?;
            // A page without entries ends the walk, whatever it says: it would not get any further.
            let more = list.more && !list.topics.is_empty();
            all.extend(list.topics);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Creates a subscription, or reads the one that has exactly these settings.
    ///
    /// # Errors
    /// Settings out of range, no such topic, a subscription of that name with other settings, or a lost connection.
    pub async fn create_subscription(
        &self,
        settings: SubscriptionSettings,
    ) -> Result<SubscriptionInfo, ClientError> {
        settings.validate()?;
        ask!(self, AdminRequest::CreateSubscription(settings), AdminAnswer::Subscription)
    }

    /// Reads a subscription.
    ///
    /// # Errors
    /// No such subscription, or a lost connection.
    pub async fn subscription(&self, name: &str) -> Result<SubscriptionInfo, ClientError> {
        ask!(self, AdminRequest::GetSubscription { name: name.to_owned() }, AdminAnswer::Subscription)
    }

    /// Reads all subscriptions.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn subscriptions(&self) -> Result<Vec<SubscriptionInfo>, ClientError> {
        let mut all: Vec<SubscriptionInfo> = Vec::new();
        loop {
            let page = Page { after_id: all.last().map_or(0, |last| last.subscription.0), count_max: 0 };
            let list = ask!(self, AdminRequest::ListSubscriptions(page), AdminAnswer::Subscriptions)?;
            let more = list.more && !list.subscriptions.is_empty();
            all.extend(list.subscriptions);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Reads which core owns which shard, as it is now.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn shard_map(&self) -> Result<ShardMapInfo, ClientError> {
        ask!(self, AdminRequest::ShardMap, AdminAnswer::ShardMap)
    }

    /// Asks the node to keep its files as they are, so that they can be copied, for as long as `hold` at most. It ends with
    /// [`Client::end_snapshot`], or with the connection.
    ///
    /// # Errors
    /// A shard that does not serve, too many snapshots at once, or a lost connection.
    pub async fn begin_snapshot(&self, hold: Duration) -> Result<SnapshotInfo, ClientError> {
        let hold_ms = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX);
        ask!(self, AdminRequest::Snapshot { hold_ms }, AdminAnswer::SnapshotHeld)
    }

    /// Ends a snapshot. `Ok` says that the files were kept from its beginning until now: only then does a copy made of them
    /// hold.
    ///
    /// # Errors
    /// The node gave the snapshot up before, or the connection on which it began is lost.
    pub async fn end_snapshot(&self, snapshot: u64) -> Result<(), ClientError> {
        match self.home().await?.admin(AdminRequest::EndSnapshot { snapshot }).await? {
            AdminAnswer::SnapshotEnded => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Asks to cancel events; the verdicts are in the order of `events`.
    ///
    /// # Errors
    /// A lost connection: some of the events may be cancelled, and asking again tells which.
    pub async fn cancel(&self, events: &[EventId]) -> Result<Vec<CancelVerdict>, ClientError> {
        let mut verdicts = Vec::with_capacity(events.len());
        for part in events.chunks(CHANGE_COUNT_MAX) {
            verdicts.extend(self.home().await?.cancel(part).await?);
        }
        Ok(verdicts)
    }

    /// Asks to cancel events of a topic with a `dedup_window` by the names that their publisher gave them; the verdicts
    /// are in the order of `names`. A name is known for the window from its event's acceptance on.
    ///
    /// # Errors
    /// The topic has no window, or there is no such topic. A lost connection: some of the events may be cancelled, and
    /// asking again tells which.
    pub async fn cancel_by_name(
        &self,
        topic: TopicId,
        names: &[EventName<'_>],
    ) -> Result<Vec<CancelVerdict>, ClientError> {
        let mut verdicts = Vec::with_capacity(names.len());
        for part in names.chunks(CANCEL_NAME_COUNT_MAX) {
            verdicts.extend(self.home().await?.cancel_by_name(topic, part).await?);
        }
        Ok(verdicts)
    }

    /// Asks that events be due at another time, whatever their versions; the verdicts are in the order of `events`. What is
    /// past is now: `Due::After(0)` runs them at once. A delay counts from when the node reads it.
    ///
    /// # Errors
    /// A time more than ten years ahead, or a node that has no room for the change now: nothing may be concluded of the
    /// events then. A lost connection: some of them may be rescheduled, and asking again is right, as the last request
    /// counts.
    pub async fn reschedule(
        &self,
        events: &[EventId],
        due: Due,
    ) -> Result<Vec<RescheduleVerdict>, ClientError> {
        let mut verdicts = Vec::with_capacity(events.len());
        for part in events.chunks(CHANGE_COUNT_MAX) {
            verdicts.extend(self.home().await?.reschedule(part, due, &[]).await?);
        }
        Ok(verdicts)
    }

    /// As [`Client::reschedule`] for one event, but only where it was rescheduled `version` times before: 0 for one that is as
    /// it was published. Of several who read the same version, one succeeds.
    ///
    /// # Errors
    /// As there. After a lost connection, [`RescheduleVerdict::VersionMismatch`] with the next version may be this request's
    /// own doing.
    pub async fn reschedule_version(
        &self,
        event: EventId,
        due: Due,
        version: u64,
    ) -> Result<RescheduleVerdict, ClientError> {
        let verdicts = self.home().await?.reschedule(&[event], due, &[version]).await?;
        verdicts.first().copied().ok_or_else(unexpected)
    }
}
