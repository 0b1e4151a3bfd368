//! `escapement count`.

use escapement_client::{NodeCounts, NodeDueCounts};
use escapement_protocol::{Outcome, ShardId};
use serde_json::{Map, Value, json};

use super::connect::ConnectArgs;
use super::failure::Failure;
use super::output::Output;

/// Arguments of `count`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "pending is scheduled and ready together. scheduled events wait for their time, or behind others that are due; in_runs counts those of them that are on the disk. ready events are due, and their tasks wait, run or back off. ended counts since the node started. The counts are exact, and cost the same however many events are pending. Of shards that are out of service nothing is counted: shards_missing names them, and the exit status is 3. \
                  With --due, events are counted by when they come due instead: within so long from now, and first those that are due already. \
                  A count is not exact where a moment falls among events that are counted together, or while a group's events are cancelled. Of shards that are out of service nothing is counted, there too.\n\n\
                  Examples:\n  escapement count\n  escapement count --topic mail --subscription mailer\n  escapement count --topic mail --due"
)]
pub(super) struct CountArgs {
    /// Count events of this topic only
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Count the tasks of this subscription, too
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Count events by when they come due
    #[arg(long, conflicts_with = "subscription")]
    due: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(args: &CountArgs, out: &Output) -> Result<(), Failure> {
    if args.due {
        return due(args, out);
    }
    let NodeCounts { counts, missing } = args.connect.run(async |client| {
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
    let missing = numbers(&missing);
    if missing.is_empty() {
        return out.facts(&facts);
    }
    facts.push(("shards_missing", json!(missing)));
    out.facts(&facts)?;
    Err(Failure::without_shards(&missing))
}

fn due(args: &CountArgs, out: &Output) -> Result<(), Failure> {
    let NodeDueCounts { counts, missing } = args.connect.run(async |client| {
        let topic = match &args.topic {
            Some(name) => Some(client.topic(name).await?.topic),
            None => None,
        };
        Ok(client.count_due(topic).await?)
    })?;
    let rows: Vec<Vec<Value>> = counts
        .iter()
        .map(|count| vec![json!(within(count.within_ms)), json!(count.count), json!(count.exact)])
        .collect();
    out.rows(&["within", "events", "exact"], &rows)?;
    let missing = numbers(&missing);
    if missing.is_empty() {
        return Ok(());
    }
    if out.is_json() {
        out.line(&json!({ "shards_missing": missing }).to_string())?;
    }
    Err(Failure::without_shards(&missing))
}

fn numbers(shards: &[ShardId]) -> Vec<u16> {
    shards.iter().map(|shard| shard.0).collect()
}

/// A span as people write it.
fn within(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = units.iter().find(|(unit_ms, _)| ms >= *unit_ms && ms.is_multiple_of(*unit_ms));
    match (ms, unit) {
        (0, _) => "due".to_owned(),
        (ms, Some((unit_ms, name))) => format!("{}{name}", ms / unit_ms),
        (ms, None) => format!("{ms}ms"),
    }
}

fn outcome_name(code: u8) -> String {
    Outcome::from_code(code).map_or_else(|| format!("outcome {code}"), |outcome| outcome.name().to_owned())
}
