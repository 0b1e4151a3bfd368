//! Publishing to a node and receiving its pushes, on tokio and quinn.
//!
//! * [`Client`] dials a node, keeps the connection, and dials again when it is lost. It also
//!   administers topics and subscriptions, cancels events, one by one or by group, and reads what is pending.
//! * [`Publisher`] makes events durable: one at a time, or in batches for hundreds of thousands a
//!   second. It lingers briefly to fill frames, and sends what was not acknowledged again after a
//!   reconnect, in order; such an event may be stored twice.
//! * [`Subscriber`] receives attempts under credit and answers each with a result. A task whose
//!   result did not reach the node comes again: delivery is at least once.
//!
//! Nothing here decides when an event is due or who gets it. Nothing blocks a thread; every buffer
//! is bounded, by [`PublisherOptions`] and by credit.
#![forbid(unsafe_code)]

mod admin;
mod client;
mod dial;
mod error;
mod group;
mod link;
mod options;
mod publisher;
mod query;
mod subscriber;
mod tls;

pub use client::{Client, ClientStats};
pub use error::ClientError;
pub use group::GroupOutcome;
pub use link::NodeInfo;
pub use options::{ConnectOptions, Identity, TransportOptions, Trust};
pub use publisher::{
    BatchGuard, BatchReceipt, Duplicate, Publisher, PublisherOptions, PublisherStats, Receipt, ReceiptRun,
    Refusal,
};
pub use query::{NodeCounts, NodeDueCounts};
pub use subscriber::{
    Answer, Attempt, PushHandler, ResultSink, SessionChange, Stopper, Subscriber, SubscriberOptions, Task,
    Tasks,
};
