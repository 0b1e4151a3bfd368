//! `escapement topic`, `subscription` and `cancel`.

use std::time::Duration;

use escapement_protocol::frame::{CancelVerdict, EventName, SubscriptionInfo, TaskState, TopicInfo};
use escapement_protocol::{EventId, Misfire, SubscriptionSettings, TopicSettings};
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::failure::Failure;
use super::output::{Output, stated};
use crate::config::units::parse_duration;

/// Commands on topics.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic; creating it again with the same settings changes nothing
    #[command(
        after_help = "Example:\n  escapement topic create mail --source /mail --content-type text/plain --dedup-window 1d"
    )]
    Create {
        /// Name: letters, digits and any of . _ - after the first
        name: String,
        /// CloudEvents source of events that state none
        #[arg(long, default_value = "", hide_default_value = true, value_name = "URI")]
        source: String,
        /// CloudEvents type of events that state none
        #[arg(long = "type", default_value = "", hide_default_value = true, value_name = "TYPE")]
        type_: String,
        /// CloudEvents datacontenttype of events that state none
        #[arg(long, default_value = "", hide_default_value = true, value_name = "TYPE")]
        content_type: String,
        /// An event with the source, id and ordering key of one that was accepted less than this long ago is answered with
        /// that one's receipt, and not stored again; up to 30d, 0s for off [default: 0s]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        dedup_window: Option<Duration>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// List all topics
    List {
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Commands on subscriptions.
#[derive(Debug, clap::Subcommand)]
pub(super) enum SubscriptionCommand {
    /// Create a subscription; creating it again with the same settings changes nothing
    #[command(
        after_help = "Example:\n  escapement subscription create mailer --topic mail --max-concurrent-dispatches 100"
    )]
    Create(SubscriptionArgs),
    /// List all subscriptions
    List {
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Arguments of `subscription create`; what is left out takes the protocol's defaults.
#[derive(Debug, clap::Args)]
pub(super) struct SubscriptionArgs {
    /// Name: letters, digits and any of . _ - after the first
    name: String,
    /// Topic to receive from
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Most attempts running at once, over all hosts; 0 for no limit [default: 0]
    #[arg(long, value_name = "N")]
    max_concurrent_dispatches: Option<u32>,
    /// An attempt without a result after this long has failed, and is retried [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    attempt_deadline: Option<Duration>,
    /// Most attempts of one task, the first included [default: 16]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Delay before the second attempt [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    min_backoff: Option<Duration>,
    /// Longest delay between attempts [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_backoff: Option<Duration>,
    /// How often the delay doubles from one attempt to the next, before it grows by equal steps [default: 16]
    #[arg(long, value_name = "N")]
    max_doublings: Option<u32>,
    /// How much of each delay is random, in thousandths of it [default: 200]
    #[arg(long, value_name = "PERMILLE")]
    jitter: Option<u32>,
    /// What becomes of events that became due while the node was down: fire, skip-older-than=1h, or spread-over=10m [default: fire]
    #[arg(long, value_name = "POLICY", value_parser = parse_misfire)]
    misfire: Option<Misfire>,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl SubscriptionArgs {
    fn settings(&self) -> SubscriptionSettings {
        let default = SubscriptionSettings::default();
        let ms = |given: Option<Duration>, otherwise| {
            given.map_or(otherwise, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        };
        SubscriptionSettings {
            name: self.name.clone(),
            topic: self.topic.clone(),
            max_concurrent_dispatches: self
                .max_concurrent_dispatches
                .unwrap_or(default.max_concurrent_dispatches),
            attempt_deadline_ms: ms(self.attempt_deadline, default.attempt_deadline_ms),
            max_attempts: self.max_attempts.unwrap_or(default.max_attempts),
            min_backoff_ms: ms(self.min_backoff, default.min_backoff_ms),
            max_backoff_ms: ms(self.max_backoff, default.max_backoff_ms),
            max_doublings: self.max_doublings.unwrap_or(default.max_doublings),
            jitter_permille: self.jitter.unwrap_or(default.jitter_permille),
            misfire: self.misfire.unwrap_or(default.misfire),
        }
    }
}

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

pub(super) fn run_topic(command: TopicCommand, out: &Output) -> Result<(), Failure> {
    let topics = match command {
        TopicCommand::List { connect } => connect.run(async |client| Ok(client.topics().await?))?,
        TopicCommand::Create { name, source, type_, content_type, dedup_window, connect } => {
            let settings = TopicSettings {
                name,
                default_source: source,
                default_type: type_,
                default_content_type: content_type,
                dedup_window_ms: dedup_window.map_or(0, whole_ms),
            };
            vec![connect.run(async |client| Ok(client.create_topic(settings).await?))?]
        }
    };
    let columns = ["name", "id", "version", "source", "type", "content_type", "dedup_window_ms"];
    out.rows(&columns, &topics.iter().map(topic_row).collect::<Vec<_>>())
}

/// What is less than a millisecond counts as one, so that a window that was asked for is there.
fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn topic_row(info: &TopicInfo) -> Vec<Value> {
    let settings = &info.settings;
    vec![
        json!(settings.name),
        json!(info.topic.0),
        json!(info.version),
        stated(&settings.default_source),
        stated(&settings.default_type),
        stated(&settings.default_content_type),
        json!(settings.dedup_window_ms),
    ]
}

pub(super) fn run_subscription(command: SubscriptionCommand, out: &Output) -> Result<(), Failure> {
    let subscriptions = match command {
        SubscriptionCommand::List { connect } => {
            connect.run(async |client| Ok(client.subscriptions().await?))?
        }
        SubscriptionCommand::Create(args) => {
            let settings = args.settings();
            vec![args.connect.run(async |client| Ok(client.create_subscription(settings).await?))?]
        }
    };
    let columns = [
        "name",
        "id",
        "version",
        "topic",
        "max_concurrent_dispatches",
        "attempt_deadline_ms",
        "max_attempts",
        "min_backoff_ms",
        "max_backoff_ms",
        "max_doublings",
        "jitter_permille",
        "misfire",
        "misfire_ms",
    ];
    out.rows(&columns, &subscriptions.iter().map(subscription_row).collect::<Vec<_>>())
}

fn subscription_row(info: &SubscriptionInfo) -> Vec<Value> {
    let settings = &info.settings;
    vec![
        json!(settings.name),
        json!(info.subscription.0),
        json!(info.version),
        json!(settings.topic),
        json!(settings.max_concurrent_dispatches),
        json!(settings.attempt_deadline_ms),
        json!(settings.max_attempts),
        json!(settings.min_backoff_ms),
        json!(settings.max_backoff_ms),
        json!(settings.max_doublings),
        json!(settings.jitter_permille),
        json!(misfire_name(settings.misfire)),
        match settings.misfire.code() {
            (0, _) => Value::Null,
            (_, ms) => json!(ms),
        },
    ]
}

fn misfire_name(misfire: Misfire) -> &'static str {
    match misfire {
        Misfire::Fire => "fire",
        Misfire::SkipOlderThan(_) => "skip-older-than",
        Misfire::SpreadOver(_) => "spread-over",
    }
}

fn parse_misfire(text: &str) -> Result<Misfire, String> {
    let form = "write fire, skip-older-than=1h or spread-over=10m";
    let (name, time) = text.split_once('=').unwrap_or((text, ""));
    if (name, time) == ("fire", "") {
        return Ok(Misfire::Fire);
    }
    let policy = match name {
        "skip-older-than" => Misfire::SkipOlderThan,
        "spread-over" => Misfire::SpreadOver,
        _ => return Err(format!("{name:?} is not a policy; {form}")),
    };
    let time = parse_duration(time).map_err(|error| format!("{error}; {form}"))?;
    Ok(policy(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misfire_policy_is_read_as_its_help_writes_it() {
        assert_eq!(parse_misfire("fire"), Ok(Misfire::Fire));
        assert_eq!(parse_misfire("skip-older-than=1h"), Ok(Misfire::SkipOlderThan(3_600_000)));
        assert_eq!(parse_misfire("spread-over=10m"), Ok(Misfire::SpreadOver(600_000)));
        for bad in ["", "fire=1s", "skip-older-than", "spread-over=", "later=1s"] {
            assert!(parse_misfire(bad).is_err_and(|error| error.contains("spread-over=10m")), "{bad}");
        }
    }
}
