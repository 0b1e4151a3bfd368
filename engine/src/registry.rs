//! Topics and subscriptions, as every shard holds them.

use hashbrown::HashMap;
use smallvec::SmallVec;

use escapement_protocol::settings::{SubscriptionSettings, TopicSettings};
use escapement_protocol::{ShardId, SubscriptionId, TopicId};

use crate::record::{Record, RecordWriter};

/// A topic and who subscribes to it.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its id.
    pub id: TopicId,
    /// Version of the registry that made it.
    pub version: u64,
    /// Its settings.
    pub settings: TopicSettings,
    /// Block that holds its record.
    pub block: u64,
    /// Its subscriptions in the order of their creation, each with the shard whose router decides for it.
    pub subscriptions: SmallVec<[(SubscriptionId, ShardId); 4]>,
}

/// A subscription.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Version of the registry that made it.
    pub version: u64,
    /// Block that holds its record.
    pub block: u64,
    /// Its topic.
    pub topic: TopicId,
    /// Its settings.
    pub settings: SubscriptionSettings,
}

/// The control objects, versioned as a whole: each change makes the next version.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Shards among which subscriptions have their owners.
    serving: Vec<ShardId>,
    version: u64,
    topics: HashMap<TopicId, Topic>,
    topic_names: HashMap<String, TopicId>,
    subscriptions: HashMap<SubscriptionId, Subscription>,
    subscription_names: HashMap<String, SubscriptionId>,
    /// Subscriptions whose topic has not come yet: the log's oldest blocks, which held it, may have been freed
    /// between the topic's second copy and theirs.
    orphans: Vec<SubscriptionId>,
}

impl Registry {
    /// Without objects, for a node of so many shards, all of which serve.
    #[must_use]
    pub fn new(shard_count: u16) -> Self {
        Registry {
            serving: (0..shard_count).map(ShardId).collect(),
            version: 0,
            topics: HashMap::new(),
            topic_names: HashMap::new(),
            subscriptions: HashMap::new(),
            subscription_names: HashMap::new(),
            orphans: Vec::new(),
        }
    }

    /// Only these shards serve, and own subscriptions.
    pub(crate) fn set_serving(&mut self, serving: Vec<ShardId>) {
        self.serving = serving;
        for topic in self.topics.values_mut() {
            for (id, owner) in &mut topic.subscriptions {
                *owner = owner_of(*id, &self.serving);
            }
        }
    }

    /// The shard whose router decides for a subscription.
    pub(crate) fn owner_of(&self, id: SubscriptionId) -> ShardId {
        owner_of(id, &self.serving)
    }

    /// Version of the newest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The topic of that id.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// The topic of that name.
    #[must_use]
    pub fn topic_named(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.topic_names.get(name)?)
    }

    /// The subscription of that id.
    #[must_use]
    pub fn subscription(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.subscriptions.get(&id)
    }

    /// The subscription of that name.
    #[must_use]
    pub fn subscription_named(&self, name: &str) -> Option<&Subscription> {
        self.subscriptions.get(self.subscription_names.get(name)?)
    }

    /// How many topics there are.
    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// All topics by ascending id.
    #[must_use]
    pub fn topics(&self) -> Vec<&Topic> {
        let mut all: Vec<_> = self.topics.values().collect();
        all.sort_unstable_by_key(|topic| topic.id);
        all
    }

    /// All subscriptions by ascending id.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<&Subscription> {
        let mut all: Vec<_> = self.subscriptions.values().collect();
        all.sort_unstable_by_key(|subscription| subscription.id);
        all
    }

    /// The id that the next topic gets.
    #[must_use]
    pub fn next_topic_id(&self) -> TopicId {
        TopicId(self.topics.keys().map(|id| id.0).max().unwrap_or(0) + 1)
    }

    /// The id that the next subscription gets.
    #[must_use]
    pub fn next_subscription_id(&self) -> SubscriptionId {
        SubscriptionId(self.subscriptions.keys().map(|id| id.0).max().unwrap_or(0) + 1)
    }

    fn put_topic(&mut self, id: TopicId, version: u64, block: u64, settings: TopicSettings) {
        self.version = self.version.max(version);
        self.topic_names.insert(settings.name.clone(), id);
        let subscriptions = self.topics.remove(&id).map(|held| held.subscriptions).unwrap_or_default();
        self.topics.insert(id, Topic { id, version, block, settings, subscriptions });
        for orphan in std::mem::take(&mut self.orphans) {
            self.link(orphan);
        }
    }

    fn put_subscription(
        &mut self,
        id: SubscriptionId,
        version: u64,
        block: u64,
        topic: TopicId,
        settings: SubscriptionSettings,
    ) {
        self.version = self.version.max(version);
        self.subscription_names.insert(settings.name.clone(), id);
        self.subscriptions.insert(id, Subscription { id, version, block, topic, settings });
        self.link(id);
    }

    /// Enters a subscription at its topic.
    fn link(&mut self, id: SubscriptionId) {
        let topic = self.subscriptions.get(&id).and_then(|held| self.topics.get_mut(&held.topic));
        match topic {
            None => self.orphans.push(id),
            Some(topic) => {
                if let Err(at) = topic.subscriptions.binary_search_by_key(&id, |held| held.0) {
                    topic.subscriptions.insert(at, (id, owner_of(id, &self.serving)));
                }
            }
        }
    }

    /// Takes in a control record from block `block`; any other record changes nothing.
    ///
    /// True where it states a version of its object that was not held: another copy of what is held only
    /// changes which block holds it, and an older version nothing.
    pub fn put(&mut self, record: &Record<'_>, block: u64) -> bool {
        match record {
            Record::Topic { id, version, settings } => {
                let held = self.topics.get(id).map(|topic| topic.version);
                if held <= Some(*version) {
                    self.put_topic(*id, *version, block, settings.clone());
                }
                held < Some(*version)
            }
            Record::Subscription { id, version, topic, settings } => {
                let held = self.subscriptions.get(id).map(|subscription| subscription.version);
                if held <= Some(*version) {
                    self.put_subscription(*id, *version, block, *topic, settings.clone());
                }
                held < Some(*version)
            }
            _ => false,
        }
    }

    /// The oldest block that holds the record of a present object.
    #[must_use]
    pub fn oldest_block(&self) -> Option<u64> {
        let topics = self.topics.values().map(|t| t.block);
        topics.chain(self.subscriptions.values().map(|s| s.block)).min()
    }

    /// Writes every object newer than `since`, in the order of their versions.
    pub fn write_since(&self, since: u64, writer: &mut RecordWriter<'_>) {
        // Topics come before the subscriptions that need them, because their versions are smaller.
        enum Object<'a> {
            Topic(&'a Topic),
            Subscription(&'a Subscription),
        }
        let topics = self.topics.values().map(|t| (t.version, Object::Topic(t)));
        let subscriptions = self.subscriptions.values().map(|s| (s.version, Object::Subscription(s)));
        let mut newer: Vec<_> = topics.chain(subscriptions).filter(|(version, _)| *version > since).collect();
        newer.sort_unstable_by_key(|(version, _)| *version);
        for (version, object) in newer {
            match object {
                Object::Topic(t) => writer.topic(t.id, version, &t.settings),
                Object::Subscription(s) => writer.subscription(s.id, version, s.topic, &s.settings),
            }
        }
    }
}

/// The shard, of those that serve, whose router decides for a subscription: rendezvous hashing, so that where one is out
/// no subscription moves but those that it had.
///
/// # Panics
/// If none serves.
#[must_use]
pub fn owner_of(subscription: SubscriptionId, serving: &[ShardId]) -> ShardId {
    let weight = |shard: ShardId| {
        let mut bytes = [0; 6];
        bytes[..4].copy_from_slice(&subscription.0.to_le_bytes());
        bytes[4..].copy_from_slice(&shard.0.to_le_bytes());
        xxhash_rust::xxh3::xxh3_64(&bytes)
    };
    serving.iter().copied().max_by_key(|shard| weight(*shard)).expect("a node has at least one shard")
}
