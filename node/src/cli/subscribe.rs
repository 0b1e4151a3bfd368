//! `escapement subscribe`.

use std::pin::pin;

use escapement_client::{Attempt, Client, ClientError, SessionChange, Stopper, SubscriberOptions};
use escapement_protocol::{AttemptResult, WallMs};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::ConnectArgs;
use super::failure::Failure;
use super::moment::{now, rfc3339};
use super::output::{Output, notice, stated};

const AFTER_HELP: &str = "\
Each attempt is printed on a line of its own and then answered: the event's number as publish printed it, and its \
CloudEvents id. With -o json also the fence, which is epoch and attempt: a subscriber that acts only on a higher one than \
it has seen of a task acts on no repetition. Lateness is what this machine's clock sees: the way \
from the node and a difference between the clocks count too. When the node is lost, and when it is back, a line on \
standard error says so. Ctrl-C and SIGTERM end the command after what it has is answered.

Examples:
  escapement subscribe --subscription mailer
  escapement -o json subscribe --subscription mailer --count 10
  escapement subscribe --subscription mailer --answer retry";

/// Arguments of `subscribe`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SubscribeArgs {
    /// Subscription to receive for
    #[arg(long, value_name = "NAME")]
    subscription: String,
    /// End after this many attempts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What each attempt is answered with
    #[arg(long, value_enum, default_value_t = Answer::Success)]
    answer: Answer,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What attempts are answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Answer {
    /// Done: the task completes
    Success,
    /// A retryable failure: the subscription's retry policy decides
    Retry,
    /// A permanent failure: the task ends
    Fail,
}

impl From<Answer> for AttemptResult {
    fn from(answer: Answer) -> AttemptResult {
        match answer {
            Answer::Success => AttemptResult::Success,
            Answer::Retry => AttemptResult::RetryableFailure,
            Answer::Fail => AttemptResult::PermanentFailure,
        }
    }
}

pub(super) fn run(args: &SubscribeArgs, out: &Output) -> Result<(), Failure> {
    let answer = args.answer.into();
    args.connect.run(async |client| receive(&client, &args.subscription, args.count, answer, *out).await)
}

/// Prints attempts until `count` of them are answered, a signal comes, or nobody reads any more.
pub(super) async fn receive(
    client: &Client,
    subscription: &str,
    count: Option<u64>,
    answer: AttemptResult,
    out: Output,
) -> Result<(), Failure> {
    let mut options = SubscriberOptions::default();
    if count.is_some() {
        // One at a time, so that hardly anything is pushed beyond the count and has to be put back.
        options.credit_tasks = 1;
    }
    let default_source = default_source(client, subscription).await?;
    let subscriber = client.subscriber(subscription, options).watched(|change| match change {
        SessionChange::Lost(why) => notice(&format!("not receiving, and trying again: {why}")),
        SessionChange::Restored => notice("receiving again"),
    });
    let stopper = subscriber.stopper();
    let mut left = count.unwrap_or(u64::MAX);
    let mut failed = None;
    let each = |attempt: &Attempt<'_>| {
        if left == 0 || failed.is_some() {
            return AttemptResult::RetryableFailure;
        }
        if let Err(failure) = out.line(&describe(attempt, &default_source, out)) {
            failed = Some(failure);
            stopper.stop();
            return AttemptResult::RetryableFailure;
        }
        left -= 1;
        if left == 0 {
            stopper.stop();
        }
        answer
    };
    let stop_on_signal = stop_on_interrupt(subscriber.stopper());
    {
        let mut running = pin!(subscriber.run(each));
        tokio::select! {
            ended = &mut running => ended?,
            () = stop_on_signal => running.await?,
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn stop_on_interrupt(stopper: Stopper) {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        // Without a handler the signal ends the process, which is what it asks for.
        return std::future::pending().await;
    };
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => if interrupted.is_err() {
            std::future::pending::<()>().await;
        },
        _ = terminate.recv() => {}
    }
    stopper.stop();
}

/// Source of events that state none. Empty also where the node cannot say now: the subscriber waits for it to come back.
async fn default_source(client: &Client, subscription: &str) -> Result<String, Failure> {
    let asked = async {
        let topic = client.subscription(subscription).await?.settings.topic;
        Ok::<_, ClientError>(client.topic(&topic).await?.settings.default_source)
    };
    match asked.await {
        Err(error) if error.is_retryable() => Ok(String::new()),
        answer => Ok(answer?),
    }
}

fn describe(attempt: &Attempt<'_>, default_source: &str, out: Output) -> String {
    let WallMs(seen) = now();
    let late_ms = i128::from(seen) - i128::from(attempt.due.0);
    let data = attempt.event.data();
    let id = String::from_utf8_lossy(attempt.event.id());
    let key = attempt.event.ordering_key();
    let event_id = attempt.task.event;
    let own_source = String::from_utf8_lossy(attempt.event.source());
    let source = if own_source.is_empty() { default_source } else { &*own_source };
    if out.is_json() {
        let mut line = json!({
            "event_id": event_id.to_string(),
            "id": id,
            "source": stated(source),
            "task": attempt.task.to_string(),
            "epoch": attempt.epoch.0,
            "attempt": attempt.attempt,
            "schedule_time": rfc3339(attempt.schedule_time),
            "due": rfc3339(attempt.due),
            "late_ms": late_ms as i64,
        });
        if !key.is_empty() {
            line["key"] = json!(String::from_utf8_lossy(key));
        }
        match std::str::from_utf8(data) {
            Ok(text) => line["data"] = json!(text),
            Err(_) => line["data_hex"] = Value::String(hex(data)),
        }
        return line.to_string();
    }
    let mut line = format!("{event_id}  due {}  late {late_ms} ms  id {id}", rfc3339(attempt.due));
    if !source.is_empty() {
        line += &format!("  source {source}");
    }
    if !key.is_empty() {
        line += &format!("  key {}", String::from_utf8_lossy(key));
    }
    if attempt.attempt > 1 {
        line += &format!("  attempt {}", attempt.attempt);
    }
    match std::str::from_utf8(data).map(|text| text.trim_end_matches('\n')) {
        Ok(text) if !text.contains(|c: char| c.is_control()) => line + "  " + text,
        _ => format!("{line}  {} bytes of data", data.len()),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
