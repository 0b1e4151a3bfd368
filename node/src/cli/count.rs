//! `escapement count`.

use escapement_protocol::Outcome;
use serde_json::{Map, Value, json};

use super::connect::ConnectArgs;
use super::failure::Failure;
use super::output::Output;

/// Arguments of `count`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "pending is scheduled and ready together. scheduled events wait for their time, or behind others that are due; in_runs counts those of them that are on the disk. ready events are due, and their tasks wait, run or back off. ended counts since the node started. The counts are exact, and cost the same however many events are pending.\n\n\
                  Examples:\n  escapement count\n  escapement count --topic mail --subscription mailer"
)]
pub(super) struct CountArgs {
    /// Count events of this topic only
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Count the tasks of this subscription, too
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(args: &CountArgs, out: &Output) -> Result<(), Failure> {
    let counts = args.connect.run(async |client| {
        let topic = match &args.topic {
            Some(name) => Some(client.topic(name).await?.topic),
            None => None,
        };
        let subscription = match &args.subscription {
            Some(name) => Some(client.subscription(name).await?.subscription),
            None => None,
        };
        Ok(client.count(topic, subscription).await?)
    })?;
    let mut facts = vec![
        ("pending", json!(counts.scheduled + counts.ready)),
        ("scheduled", json!(counts.scheduled)),
        ("ready", json!(counts.ready)),
        ("in_runs", json!(counts.in_runs)),
    ];
    if args.subscription.is_some() {
        facts.extend([
            ("tasks_queued", json!(counts.queued)),
            ("tasks_running", json!(counts.running)),
            ("tasks_backoff", json!(counts.backoff)),
        ]);
    }
    let ended: Map<String, Value> =
        counts.ended.iter().map(|ended| (outcome_name(ended.outcome), json!(ended.count))).collect();
    let name = if args.subscription.is_some() { "tasks_ended" } else { "ended_without_task" };
    facts.push((name, Value::Object(ended)));
    out.facts(&facts)
}

fn outcome_name(code: u8) -> String {
    Outcome::from_code(code).map_or_else(|| format!("outcome {code}"), |outcome| outcome.name().to_owned())
}
