//! Clients of a node that is killed again and again.

use std::time::Duration;

use escapement_client::{Client, ConnectOptions, TransportOptions};
use escapement_protocol::{SubscriptionSettings, TopicId, TopicSettings};

/// Clients that notice a dead node soon, and give it time to come back.
#[must_use]
pub fn patient(options: ConnectOptions) -> ConnectOptions {
    ConnectOptions {
        connect_timeout: Duration::from_secs(1),
        transport: TransportOptions {
            keep_alive: Duration::from_millis(200),
            idle_timeout: Duration::from_secs(5),
            ..options.transport
        },
        ..options
    }
}

/// Makes the topic `t` with the subscription `s`.
///
/// # Panics
/// Where the node refuses.
pub async fn create(client: &Client) -> TopicId {
    let topic = TopicSettings { name: "t".into(), ..TopicSettings::default() };
    let topic = client.create_topic(topic).await.expect("created").topic;
    let subscription =
        SubscriptionSettings { name: "s".into(), topic: "t".into(), ..SubscriptionSettings::default() };
    client.create_subscription(subscription).await.expect("created");
    topic
}
