//! `escapement group`.

use std::time::Duration;

use escapement_client::{Client, GroupOutcome};
use escapement_protocol::frame::{GroupAct, GroupEpoch};
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use super::publish::whole_ms;
use crate::config::units::parse_duration;

/// `group` and what it does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum GroupCommand {
    /// Cancel what is pending in a group, however many events these are
    #[command(
        after_help = "Cancelled are the events that were accepted before and not yet handed to their subscriptions. Until an event's time comes, undo brings it back. Where a shard did not answer, the command says so and ends with status 1: the same command with the printed --epoch does what is missing, and nothing twice.\n\nExample:\n  escapement group cancel --topic mail --group account-7"
    )]
    Cancel {
        #[command(flatten)]
        group: GroupArgs,
        /// Number of an operation that is to be completed, as it was printed; a new one where it is left out
        #[arg(long, value_name = "NUMBER")]
        epoch: Option<u64>,
    },
    /// Let what is pending in a group wait, whether its time comes or not, until resume
    #[command(
        after_help = "Paused are the events that were accepted before and not yet handed to their subscriptions. They stay pending, and expire where they have a ttl. What is paused and due is in memory. As with cancel, --epoch completes what not every shard has done.\n\nExample:\n  escapement group pause --topic mail --group account-7"
    )]
    Pause {
        #[command(flatten)]
        group: GroupArgs,
        /// Number of an operation that is to be completed, as it was printed; a new one where it is left out
        #[arg(long, value_name = "NUMBER")]
        epoch: Option<u64>,
    },
    /// Take every pause of a group back: what has become due meanwhile is due at once
    Resume {
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Let what is pending in a group be due later
    #[command(
        after_help = "Postponed are the events that were accepted before and not yet handed to their subscriptions. Postponements add up, and a ttl counts from the new due time. Until that comes, undo gives an event its old one back; where that has passed, the event is due at once. What has passed its old due time is in memory. As with cancel, --epoch completes what not every shard has done.\n\nExample:\n  escapement group postpone --topic mail --group account-7 --by 10m"
    )]
    Postpone {
        #[command(flatten)]
        group: GroupArgs,
        /// How much later, as in 90s, 10m, 36h or 7d; at most ten years
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        by: Duration,
        /// Number of an operation that is to be completed, as it was printed; a new one where it is left out
        #[arg(long, value_name = "NUMBER")]
        epoch: Option<u64>,
    },
    /// Take an operation back, for all its events that still wait
    Undo {
        #[command(flatten)]
        group: GroupArgs,
        /// Number of the operation, as it was printed
        #[arg(long, value_name = "NUMBER")]
        epoch: u64,
    },
    /// Count what a group holds, and list its operations
    Get {
        #[command(flatten)]
        group: GroupArgs,
    },
}

/// Which group.
#[derive(Debug, clap::Args)]
pub(super) struct GroupArgs {
    /// Topic of the group's events
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// The group, as its events were published with
    #[arg(long, value_name = "TEXT")]
    group: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(command: &GroupCommand, out: &Output) -> Result<(), Failure> {
    let new = |epoch: &Option<u64>| epoch.unwrap_or_else(Client::group_epoch);
    let (args, epoch) = match command {
        GroupCommand::Cancel { group, epoch }
        | GroupCommand::Pause { group, epoch }
        | GroupCommand::Postpone { group, epoch, .. } => (group, new(epoch)),
        GroupCommand::Undo { group, epoch } => (group, *epoch),
        GroupCommand::Resume { group } | GroupCommand::Get { group } => (group, 0),
    };
    let outcome = args.connect.run(async |client| {
        let topic = client.topic(&args.topic).await?.topic;
        let group = args.group.as_str();
        Ok(match command {
            GroupCommand::Cancel { .. } => client.cancel_group(topic, group, epoch).await?,
            GroupCommand::Pause { .. } => client.pause_group(topic, group, epoch).await?,
            GroupCommand::Postpone { by, .. } => {
                client.postpone_group(topic, group, whole_ms(*by), epoch).await?
            }
            GroupCommand::Undo { .. } => client.undo_group(topic, group, epoch).await?,
            GroupCommand::Resume { .. } => client.resume_group(topic, group).await?,
            GroupCommand::Get { .. } => client.group(topic, group).await?,
        })
    })?;
    out.facts(&facts(command, epoch, &outcome))?;
    if outcome.failed.is_empty() {
        return Ok(());
    }
    for (shard, error) in &outcome.failed {
        notice(&format!("shard {}: {error}", shard.0));
    }
    let message = match command {
        GroupCommand::Get { .. } => "the counts are not of all shards: ask again".to_owned(),
        GroupCommand::Resume { .. } => "not every shard has done it: ask again".to_owned(),
        _ => format!("not every shard has done it: ask again with --epoch {epoch}"),
    };
    Err(Failure::new(Exit::Failed, message))
}

fn facts(command: &GroupCommand, epoch: u64, outcome: &GroupOutcome) -> Vec<(&'static str, Value)> {
    let mut facts = match command {
        GroupCommand::Get { .. } => Vec::new(),
        GroupCommand::Resume { .. } => vec![("count", json!(outcome.count))],
        _ => vec![
            ("verdict", json!(verdict(command, outcome))),
            ("epoch", json!(epoch)),
            ("count", json!(outcome.count)),
        ],
    };
    facts.extend([
        ("pending", json!(outcome.pending)),
        ("paused", json!(outcome.paused)),
        ("cancelled", json!(outcome.cancelled)),
    ]);
    if let GroupCommand::Get { .. } = command {
        let operations: Vec<Value> = outcome.operations.iter().map(operation).collect();
        facts.push(("operations", Value::Array(operations)));
    }
    facts
}

fn operation(held: &GroupEpoch) -> Value {
    let GroupEpoch { epoch, taken, left, by_ms, act, is_undone } = *held;
    let act = match act {
        GroupAct::Pause => "PAUSE",
        GroupAct::Postpone => "POSTPONE",
        _ => "CANCEL",
    };
    json!({ "epoch": epoch, "act": act, "by_ms": by_ms, "taken": taken, "left": left, "undone": is_undone })
}

fn verdict(command: &GroupCommand, outcome: &GroupOutcome) -> &'static str {
    match (outcome, command) {
        (GroupOutcome { is_known: false, .. }, _) => "NOT_FOUND",
        (GroupOutcome { is_undone: true, .. }, _) => "UNDONE",
        (_, GroupCommand::Pause { .. }) => "PAUSED",
        (_, GroupCommand::Postpone { .. }) => "POSTPONED",
        _ => "CANCELLED",
    }
}
