//! `escapement topic` and `subscription`.

use std::time::Duration;

use escapement_protocol::frame::{SubscriptionInfo, TopicInfo};
use escapement_protocol::{Misfire, SubscriptionSettings, TopicSettings};
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
