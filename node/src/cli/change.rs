//! `escapement cancel`, `reschedule` and `run-now`: changes of events by their numbers.

use std::time::Duration;

use escapement_client::Client;
use escapement_protocol::EventId;
use escapement_protocol::event::Due;
use escapement_protocol::frame::{CancelVerdict, EventName, RescheduleVerdict, TaskState};
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::failure::Failure;
use super::moment::{Moment, rfc3339};
use super::output::Output;
use super::publish::whole_ms;
use crate::config::units::parse_duration;

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "escapement cancel [OPTIONS] <EVENT_ID>...\n       escapement cancel [OPTIONS] --topic <NAME> --id <ID> [--source <URI>] [--ordering-key <KEY>]",
    after_help = "CANCELLED means that not one byte of the event leaves the node any more, and that this is durable; TOO_LATE, that it was due already; NOT_FOUND, that it never was, or is complete. All three end with status 0.\n\n\
                  Examples:\n  escapement cancel 000000000000000101a1eac6f07b\n  escapement cancel --topic orders --id order-7"
)]
pub(super) struct CancelArgs {
    /// Numbers of the events (event_id), as publish printed them
    #[arg(required_unless_present = "topic", value_name = "EVENT_ID")]
    events: Vec<EventId>,
    /// Topic of an event that is named by its own id; the topic needs a dedup window
    #[arg(long, value_name = "NAME", requires = "id", conflicts_with = "events")]
    topic: Option<String>,
    /// CloudEvents id that the event was published with
    #[arg(long, value_name = "ID", requires = "topic")]
    id: Option<String>,
    /// CloudEvents source that it was published with; left out, the topic's
    #[arg(long, default_value = "", hide_default_value = true, value_name = "URI", requires = "topic")]
    source: String,
    /// Ordering key that it was published with, if any
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY", requires = "topic")]
    ordering_key: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

const VERDICTS: &str = "\
RESCHEDULED means that not one byte of the event leaves the node before the new time, and that this is durable; TOO_LATE, that it was due already; NOT_FOUND, that it never was, or is complete; VERSION_MISMATCH, that it is in another version than --if-version said, which is printed. All of them end with status 0.";

/// Arguments of `reschedule`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = format!("{VERDICTS}\n\n\
                  Examples:\n  escapement reschedule 000000000000000101a1eac6f07b --delay 30m\n  \
                  escapement reschedule 000000000000000101a1eac6f07b --at 2031-05-17T08:30:00+02:00 --if-version 2")
)]
pub(super) struct RescheduleArgs {
    /// Numbers of the events (event_id), as publish printed them: they stay
    #[arg(required = true, value_name = "EVENT_ID")]
    events: Vec<EventId>,
    /// Due this long from now; up to 10 years
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "at", required_unless_present = "at")]
    delay: Option<Duration>,
    /// Due at this moment: RFC 3339 as in 2031-05-17T08:30:00Z, or milliseconds since 1970; what is past is now
    #[arg(long, value_name = "MOMENT")]
    at: Option<Moment>,
    /// Only where the event was rescheduled so many times before: 0 for one that is as it was published
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `run-now`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{VERDICTS}\n\nExample:\n  escapement run-now 000000000000000101a1eac6f07b"))]
pub(super) struct RunNowArgs {
    /// Numbers of the events (event_id), as publish printed them
    #[arg(required = true, value_name = "EVENT_ID")]
    events: Vec<EventId>,
    /// Only where the event was rescheduled so many times before: 0 for one that is as it was published
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run_cancel(args: &CancelArgs, out: &Output) -> Result<(), Failure> {
    if let (Some(topic), Some(id)) = (&args.topic, &args.id) {
        let name = EventName { ordering_key: args.ordering_key.as_bytes(), source: &args.source, id };
        let verdicts = args.connect.run(async |client| {
            let topic = client.topic(topic).await?.topic;
            Ok(client.cancel_by_name(topic, &[name]).await?)
        })?;
        let rows: Vec<Vec<Value>> = verdicts.iter().map(|verdict| verdict_row(json!(id), verdict)).collect();
        return out.rows(&["id", "verdict", "state", "attempt"], &rows);
    }
    let verdicts = args.connect.run(async |client| Ok(client.cancel(&args.events).await?))?;
    let events = args.events.iter().zip(&verdicts);
    let rows: Vec<Vec<Value>> =
        events.map(|(event, verdict)| verdict_row(json!(event.to_string()), verdict)).collect();
    out.rows(&["event_id", "verdict", "state", "attempt"], &rows)
}

fn verdict_row(of: Value, verdict: &CancelVerdict) -> Vec<Value> {
    let (name, state, attempt) = match verdict {
        CancelVerdict::Cancelled => ("CANCELLED", Value::Null, Value::Null),
        CancelVerdict::TooLate { state, attempt } => ("TOO_LATE", json!(state_name(*state)), json!(attempt)),
        CancelVerdict::NotFound => ("NOT_FOUND", Value::Null, Value::Null),
    };
    vec![of, json!(name), state, attempt]
}

pub(super) fn run_reschedule(args: &RescheduleArgs, out: &Output) -> Result<(), Failure> {
    let due = match (args.delay, args.at) {
        (_, Some(Moment(at))) => Due::At(at),
        (delay, None) => Due::After(whole_ms(delay.unwrap_or_default())),
    };
    reschedule(&args.connect, &args.events, due, args.if_version, out)
}

pub(super) fn run_now(args: &RunNowArgs, out: &Output) -> Result<(), Failure> {
    reschedule(&args.connect, &args.events, Due::After(0), args.if_version, out)
}

fn reschedule(
    connect: &ConnectArgs,
    events: &[EventId],
    due: Due,
    version: Option<u64>,
    out: &Output,
) -> Result<(), Failure> {
    let ask = async |client: Client| {
        let Some(version) = version else { return Ok(client.reschedule(events, due).await?) };
        let mut verdicts = Vec::new();
        for event in events {
            verdicts.push(client.reschedule_version(*event, due, version).await?);
        }
        Ok(verdicts)
    };
    let verdicts = connect.run(ask)?;
    let row = |(event, verdict): (&EventId, &RescheduleVerdict)| {
        let (name, due, version, state, attempt) = match verdict {
            RescheduleVerdict::Rescheduled { due, version } => {
                ("RESCHEDULED", json!(rfc3339(*due)), json!(version), Value::Null, Value::Null)
            }
            RescheduleVerdict::TooLate { state, attempt } => {
                ("TOO_LATE", Value::Null, Value::Null, json!(state_name(*state)), json!(attempt))
            }
            RescheduleVerdict::NotFound => ("NOT_FOUND", Value::Null, Value::Null, Value::Null, Value::Null),
            RescheduleVerdict::VersionMismatch { version } => {
                ("VERSION_MISMATCH", Value::Null, json!(version), Value::Null, Value::Null)
            }
        };
        vec![json!(event.to_string()), json!(name), due, version, state, attempt]
    };
    let rows: Vec<Vec<Value>> = events.iter().zip(&verdicts).map(row).collect();
    out.rows(&["event_id", "verdict", "due", "version", "state", "attempt"], &rows)
}

pub(super) fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Scheduled => "SCHEDULED",
        TaskState::Ready => "READY",
        TaskState::Blocked => "BLOCKED",
        TaskState::Running => "RUNNING",
        TaskState::Backoff => "BACKOFF",
        TaskState::Succeeded => "SUCCEEDED",
        TaskState::Failed => "FAILED",
        TaskState::Cancelled => "CANCELLED",
    }
}
