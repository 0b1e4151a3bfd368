//! Reading what is pending.

use escapement_protocol::EventId;
use escapement_protocol::frame::{EventDetail, Query, QueryAnswer};

use crate::{Client, ClientError};

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

    async fn detail(&self, query: Query) -> Result<Option<EventDetail>, ClientError> {
        match self.home().await?.query(query).await? {
            QueryAnswer::Event(detail) => Ok(detail.map(|detail| *detail)),
        }
    }
}
