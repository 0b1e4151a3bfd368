//! `escapement publish`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use escapement_client::PublisherOptions;
use escapement_protocol::WallMs;
use escapement_protocol::event::{Due, EventSpec};
use escapement_protocol::frame::Durability;
use serde_json::json;

use super::connect::ConnectArgs;
use super::failure::{Exit, Failure};
use super::moment::{Moment, rfc3339};
use super::output::{Output, stated};
use crate::config::units::parse_duration;
use crate::io::random_bytes;

const AFTER_HELP: &str = "\
The event is durable when the command prints its id. Without --delay and --at it is due now.

Examples:
  escapement publish --topic mail --delay 30m --data 'remind me'
  escapement publish --topic mail --at 2031-05-17T08:30:00+02:00 --data-file letter.json
  escapement publish --topic mail --delay 30m --ttl 5m --data 'only worth it in time'
  escapement publish --topic orders --delay 2s --key customer-7 --id order-19 --data '{}'";

/// Arguments of `publish`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PublishArgs {
    /// Topic to publish to
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Due this long after the node accepts it, as in 200ms, 10s or 1m30s
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "at", allow_hyphen_values = true)]
    delay: Option<Duration>,
    /// Due at this moment: RFC 3339 as in 2031-05-17T08:30:00Z, or milliseconds since 1970
    #[arg(long, value_name = "MOMENT")]
    at: Option<Moment>,
    /// No attempt begins this long after the due time or later: what is not done then expires
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    /// The event's data
    #[arg(long, value_name = "TEXT", conflicts_with = "data_file")]
    data: Option<String>,
    /// Take the data from this file; - is standard input
    #[arg(long, value_name = "FILE")]
    data_file: Option<PathBuf>,
    /// Events of one ordering key are delivered one at a time, in order of their due times
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// Group: all pending events of a group and topic can be cancelled at once (escapement group)
    #[arg(long, value_name = "TEXT")]
    group: Option<String>,
    /// CloudEvents id; random where it is left out
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// CloudEvents source; the topic's default where it is left out
    #[arg(long, value_name = "URI")]
    source: Option<String>,
    /// CloudEvents type; the topic's default where it is left out
    #[arg(long = "type", value_name = "TYPE")]
    type_: Option<String>,
    /// CloudEvents datacontenttype; the topic's default where it is left out
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(args: &PublishArgs, out: &Output) -> Result<(), Failure> {
    let data = match (&args.data, &args.data_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(path)) => read_data(path)?,
        (None, None) => Vec::new(),
    };
    let id = match &args.id {
        Some(id) => id.clone(),
        None => random_id().map_err(|error| Failure::new(Exit::Failed, format!("no random id: {error}")))?,
    };
    let due = match (args.delay, args.at) {
        (Some(delay), _) => Due::After(whole_ms(delay)),
        (None, Some(Moment(at))) => Due::At(at),
        (None, None) => Due::After(0),
    };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (key, source, type_, content_type) =
        (text(&args.key), text(&args.source), text(&args.type_), text(&args.content_type));
    let group = text(&args.group);
    let event = EventSpec {
        group: &group,
        source: &source,
        type_: &type_,
        data_content_type: &content_type,
        ordering_key: key.as_bytes(),
        ttl_ms: args.ttl.map_or(0, whole_ms),
        ..EventSpec::new(due, &id, &data)
    };
    let (receipt, default_source) = args.connect.run(async |client| {
        let topic = client.topic(&args.topic).await?;
        let publisher = client.publisher(PublisherOptions::default()).await?;
        Ok((publisher.publish(topic.topic, &event).await?, topic.settings.default_source))
    })?;
    let source = if source.is_empty() { default_source } else { source.clone() };
    let due = WallMs(receipt.event_id.schedule_time_ms);
    if out.is_json() {
        return out.facts(&[
            ("event_id", json!(receipt.event_id.to_string())),
            ("id", json!(id)),
            ("source", stated(&source)),
            ("schedule_time", json!(rfc3339(due))),
            ("schedule_time_ms", json!(due.0)),
            ("durability", json!(durability(receipt.durability))),
            ("duplicate", json!(receipt.duplicate)),
        ]);
    }
    let source = if source.is_empty() { String::new() } else { format!("  source {source}") };
    let (event_id, due, durability) = (receipt.event_id, rfc3339(due), durability(receipt.durability));
    let duplicate = if receipt.duplicate { "  published before" } else { "" };
    out.line(&format!("{event_id}  due {due}  {durability}  id {id}{source}{duplicate}"))
}

fn read_data(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = || -> io::Result<Vec<u8>> {
        if path != Path::new("-") {
            return fs::read(path);
        }
        let mut data = Vec::new();
        io::stdin().lock().read_to_end(&mut data)?;
        Ok(data)
    };
    read().map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))
}

/// A ttl of nothing would mean no ttl.
fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = parse_duration(text).map_err(|error| error.to_string())?;
    if ttl.is_zero() {
        return Err("a ttl is at least 1 ms; leave it out for an event that never expires".into());
    }
    Ok(ttl)
}

/// Rounded up: an event is never due before what was asked for.
pub(super) fn whole_ms(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

fn random_id() -> io::Result<String> {
    Ok(format!("{:032x}", u128::from_le_bytes(random_bytes()?)))
}

fn durability(reached: Durability) -> String {
    match reached {
        Durability::LOCAL_DISK => "on disk".to_owned(),
        Durability(other) => format!("durability {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_never_shortened() {
        assert_eq!(whole_ms(Duration::from_micros(1)), 1);
        assert_eq!(whole_ms(Duration::from_millis(2_000)), 2_000);
        assert_eq!(whole_ms(Duration::from_micros(2_001)), 3);
    }

    #[test]
    fn a_ttl_of_nothing_is_refused() {
        assert_eq!(parse_ttl("5m"), Ok(Duration::from_secs(300)));
        assert!(parse_ttl("0s").is_err_and(|error| error.contains("never expires")));
    }

    #[test]
    fn ids_that_nobody_chose_differ() {
        let (first, second) = (random_id().unwrap(), random_id().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.len(), 32);
    }
}
