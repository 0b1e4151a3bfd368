//! Administration: requests and answers, owned, because there are few of them.

use super::ShardCore;
use crate::{Epoch, ShardId, SubscriptionId, SubscriptionSettings, TopicId, TopicSettings};

/// Most entries in one page of a list: so many fit a frame, however long their texts are.
pub const LIST_COUNT_MAX: u32 = 500;

/// Longest that a node keeps files for a snapshot, in ms: an hour.
pub const SNAPSHOT_HOLD_MS_MAX: u64 = 60 * 60 * 1_000;

/// Which part of a list: entries ascend by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Only entries with a greater id: 0 begins, the last id of a page goes on.
    pub after_id: u32,
    /// Most entries wanted. 0 and what is above [`LIST_COUNT_MAX`] mean that.
    pub count_max: u32,
}

impl Page {
    /// Entries that the page may have.
    #[must_use]
    pub fn count(&self) -> u32 {
        if self.count_max == 0 { LIST_COUNT_MAX } else { self.count_max.min(LIST_COUNT_MAX) }
    }
}

/// What an `Admin` frame asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminRequest {
    /// Creates a topic, or answers with the one that has exactly these settings.
    CreateTopic(TopicSettings),
    /// Reads a topic by its name.
    GetTopic {
        /// The topic's name.
        name: String,
    },
    /// Reads a page of topics.
    ListTopics(Page),
    /// Creates a subscription, or answers with the one that has exactly these settings.
    CreateSubscription(SubscriptionSettings),
    /// Reads a subscription by its name.
    GetSubscription {
        /// The subscription's name.
        name: String,
    },
    /// Reads a page of subscriptions.
    ListSubscriptions(Page),
    /// Reads which core owns which shard.
    ShardMap,
    /// Keeps the files of every shard as they are, so that somebody can copy them.
    Snapshot {
        /// Longest that this is wanted, in ms; at most [`SNAPSHOT_HOLD_MS_MAX`] is given.
        hold_ms: u64,
    },
    /// Ends a snapshot, and asks whether the files were kept until now.
    EndSnapshot {
        /// As the answer to [`AdminRequest::Snapshot`] named it, on the same stream.
        snapshot: u64,
    },
}

/// What an `AdminReply` frame answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    /// To creating or reading a topic.
    Topic(TopicInfo),
    /// To listing topics.
    Topics(TopicList),
    /// To creating or reading a subscription.
    Subscription(SubscriptionInfo),
    /// To listing subscriptions.
    Subscriptions(SubscriptionList),
    /// To reading the shard map.
    ShardMap(ShardMapInfo),
    /// To beginning a snapshot.
    SnapshotHeld(SnapshotInfo),
    /// To ending a snapshot whose files were kept all the time.
    SnapshotEnded,
}

/// A topic as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its number.
    pub topic: TopicId,
    /// Rises with every change, from 1.
    pub version: u32,
    /// Its settings.
    pub settings: TopicSettings,
}

/// A page of topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicList {
    /// Ascending by id, at most [`LIST_COUNT_MAX`].
    pub topics: Vec<TopicInfo>,
    /// Whether there are more after these.
    pub more: bool,
}

/// A subscription as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionInfo {
    /// Its number.
    pub subscription: SubscriptionId,
    /// Its topic's number.
    pub topic: TopicId,
    /// Rises with every change, from 1.
    pub version: u32,
    /// Its settings.
    pub settings: SubscriptionSettings,
}

/// A page of subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionList {
    /// Ascending by id, at most [`LIST_COUNT_MAX`].
    pub subscriptions: Vec<SubscriptionInfo>,
    /// Whether there are more after these.
    pub more: bool,
}

/// Which core owns which shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMapInfo {
    /// As in [`Welcome`](super::Welcome).
    pub epoch: Epoch,
    /// Number of shards.
    pub shard_count: u16,
    /// Number of cores.
    pub core_count: u16,
    /// A shard that does not serve is left out.
    pub shards: Vec<ShardCore>,
}

/// A snapshot under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its number on this node.
    pub snapshot: u64,
    /// How long the files are kept at most, in ms from the answer.
    pub hold_ms: u64,
    /// Every shard's part, ascending by shard.
    pub shards: Vec<ShardCut>,
}

/// One shard's part of a snapshot: the blocks of its log that are in it, and where they lie. Everything that was
/// acknowledged before the request is in blocks up to `through_block_seq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCut {
    /// Which shard.
    pub shard: ShardId,
    /// Epoch in which its log is open.
    pub epoch: Epoch,
    /// Segment that the log begins with.
    pub first_segment_id: u64,
    /// First block of that segment.
    pub first_block_seq: u64,
    /// Checksum of the block before.
    pub first_prev_checksum: u128,
    /// Last block that belongs to the snapshot; it is durable.
    pub through_block_seq: u64,
    /// Segment of that block.
    pub end_segment_id: u64,
    /// Where that block ends in the segment's file, in bytes.
    pub end_offset: u32,
}
