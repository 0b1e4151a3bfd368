//! A node that is killed and started again on its data: how long until it serves as before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use escapement_client::{Client, Publisher, PublisherOptions, PushHandler, ResultSink, SubscriberOptions};
use escapement_protocol::event::{Due, EventSpec, EventView};
use escapement_protocol::frame::{CancelVerdict, PushBatch};
use escapement_protocol::{AttemptResult, EventId, SubscriptionSettings, TopicId, TopicSettings, WallMs};
use tokio::sync::Notify;

use crate::args::Args;
use crate::clock::wall_ns;
use crate::node_process::{NodeProcess, Restart};
use crate::preload::Preload;
use crate::run::connect_options;

/// How far ahead the event is due that the node is killed before: long enough to be acknowledged first.
const DUE_AHEAD: Duration = Duration::from_millis(300);

/// How long a node that was started again may take for each of the three answers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(600);

/// Time between two tries of what the node refuses for now.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// Times from the start of the process, and what the node found.
#[derive(Debug)]
pub(crate) struct Restarted {
    /// Until it says where it listens.
    pub(crate) listening: Duration,
    /// Until a publish was acknowledged.
    pub(crate) first_reply: Duration,
    /// Until an event of the preload was cancelled; none where no sampled event is left.
    pub(crate) cancel: Option<Duration>,
    /// Until an event arrived that came due while the node was down.
    pub(crate) due_dispatch: Duration,
    /// Pending events that it said to have recovered, where it said so.
    pub(crate) recovered: Option<u64>,
    /// Least and most that were to be recovered.
    pub(crate) expected: (u64, u64),
}

impl Restarted {
    /// Whether exactly what was acknowledged came back.
    pub(crate) fn is_kept(&self) -> bool {
        self.recovered.is_some_and(|recovered| (self.expected.0..=self.expected.1).contains(&recovered))
    }
}

/// The event that comes due while the node is down.
const DUE_ID: &str = "due";

/// Tells when it comes.
#[derive(Debug)]
struct Arrival(Arc<Notify>);

impl PushHandler for Arrival {
    fn pushed(&mut self, batch: &PushBatch<'_>, results: &mut ResultSink) {
        for (item, bytes) in batch.iter() {
            results.push(item.tag, AttemptResult::Success);
            if EventView::trusted(bytes).is_some_and(|event| event.id() == DUE_ID.as_bytes()) {
                self.0.notify_one();
            }
        }
    }
}

/// Kills the node and starts it again. Answers a new connection to it and the event that was cancelled.
pub(crate) async fn restart(
    args: &Args,
    node: &mut NodeProcess,
    preload: &mut Preload,
    connected: Client,
) -> Result<(Client, Restarted, Option<EventId>)> {
    let name = format!("loadgen-{:x}-{:x}-restart", wall_ns() / 1_000_000, args.seed);
    let topic = TopicSettings { name: name.clone(), ..TopicSettings::default() };
    let topic = connected.create_topic(topic).await?.topic;
    let settings =
        SubscriptionSettings { name: name.clone(), topic: name.clone(), ..SubscriptionSettings::default() };
    connected.create_subscription(settings).await?;
    let due_ms = wall_ns() / 1_000_000 + DUE_AHEAD.as_millis() as u64;
    let publisher = connected.publisher(PublisherOptions::default()).await?;
    publisher.publish(topic, &EventSpec::new(Due::At(WallMs(due_ms)), DUE_ID, &[])).await?;

    let (pending, twice) = preload.pending();
    preload.disconnect().await;
    drop((publisher, connected));
    node.kill();
    tokio::time::sleep(DUE_AHEAD).await;
    let Restart { since, listening, recovered } = node.start_again(args)?;

    let client = connect(args, node).await?;
    let arrived = Arc::new(Notify::new());
    let subscriber = client.another().await?.subscriber(&name, SubscriberOptions::default());
    let mut arrival = Arrival(arrived.clone());
    let receiving = tokio::spawn(async move { subscriber.run_batches(&mut arrival).await });
    let sample = preload.sample();
    // Any of them will do; which one follows from the seed.
    let event = (!sample.is_empty()).then(|| sample[(args.seed % sample.len() as u64) as usize]);
    let answers = async {
        tokio::try_join!(
            async { first_reply(&client, topic).await.map(|()| since.elapsed()) },
            async { cancel(&client, event).await.map(|cancelled| cancelled.map(|()| since.elapsed())) },
            async {
                arrived.notified().await;
                Ok(since.elapsed())
            },
        )
    };
    let answers = tokio::time::timeout(ANSWERS_WITHIN, answers).await;
    receiving.abort();
    let (first_reply, cancel, due_dispatch) =
        answers.context("the node that was started again did not answer in time")??;
    // With the event that was due meanwhile.
    let expected = (pending + 1, pending + 1 + twice);
    let restarted = Restarted { listening, first_reply, cancel, due_dispatch, recovered, expected };
    Ok((client, restarted, event))
}

async fn connect(args: &Args, node: &NodeProcess) -> Result<Client> {
    let started = Instant::now();
    loop {
        match Client::connect(connect_options(args, Some(node))?).await {
            Err(error) if error.is_retryable() && started.elapsed() < ANSWERS_WITHIN => {
                tokio::time::sleep(TRY_EVERY).await;
            }
            other => return Ok(other?),
        }
    }
}

async fn first_reply(client: &Client, topic: TopicId) -> Result<()> {
    let publisher: Publisher = client.publisher(PublisherOptions::default()).await?;
    let event = EventSpec::new(Due::At(WallMs(0)), "first", &[]);
    loop {
        match publisher.publish(topic, &event).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_retryable() => tokio::time::sleep(TRY_EVERY).await,
            Err(error) => return Err(error).context("the first publish after the restart"),
        }
    }
}

/// None where there is no event to cancel.
async fn cancel(client: &Client, event: Option<EventId>) -> Result<Option<()>> {
    let Some(event) = event else { return Ok(None) };
    loop {
        match client.cancel(&[event]).await {
            Ok(verdicts) if verdicts == [CancelVerdict::Cancelled] => return Ok(Some(())),
            Ok(verdicts) => {
                bail!("LOST: a preloaded event can't be cancelled after the restart: {verdicts:?}")
            }
            Err(error) if error.is_retryable() => tokio::time::sleep(TRY_EVERY).await,
            Err(error) => return Err(error).context("the first cancellation after the restart"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_kept_where_the_node_found_all_that_was_acknowledged_and_no_more() {
        let found = |recovered| Restarted {
            listening: Duration::ZERO,
            first_reply: Duration::ZERO,
            cancel: None,
            due_dispatch: Duration::ZERO,
            recovered,
            expected: (101, 103),
        };
        for (recovered, is_kept) in
            [(Some(100), false), (Some(101), true), (Some(103), true), (Some(104), false), (None, false)]
        {
            assert_eq!(found(recovered).is_kept(), is_kept, "{recovered:?}");
        }
    }
}
