//! `escapement group`.

use escapement_client::{Client, GroupOutcome};
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::failure::{Exit, Failure};
use super::output::{Output, notice};

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
    /// Take an operation back, for all its events whose time has not come
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
    let (args, epoch) = match command {
        GroupCommand::Cancel { group, epoch } => (group, epoch.unwrap_or_else(Client::group_epoch)),
        GroupCommand::Undo { group, epoch } => (group, *epoch),
        GroupCommand::Get { group } => (group, 0),
    };
    let outcome = args.connect.run(async |client| {
        let topic = client.topic(&args.topic).await?.topic;
        Ok(match command {
            GroupCommand::Cancel { .. } => client.cancel_group(topic, &args.group, epoch).await?,
            GroupCommand::Undo { .. } => client.undo_group(topic, &args.group, epoch).await?,
            GroupCommand::Get { .. } => client.group(topic, &args.group).await?,
        })
    })?;
    let mut facts = match command {
        GroupCommand::Get { .. } => Vec::new(),
        _ => vec![
            ("verdict", json!(verdict(&outcome))),
            ("epoch", json!(epoch)),
            ("count", json!(outcome.count)),
        ],
    };
    facts.extend([("pending", json!(outcome.pending)), ("cancelled", json!(outcome.cancelled))]);
    if let GroupCommand::Get { .. } = command {
        let operation = |held: &escapement_protocol::frame::GroupEpoch| json!({ "epoch": held.epoch, "taken": held.taken, "left": held.left });
        let operations: Vec<Value> = outcome.operations.iter().map(operation).collect();
        facts.push(("operations", Value::Array(operations)));
    }
    out.facts(&facts)?;
    if outcome.failed.is_empty() {
        return Ok(());
    }
    for (shard, error) in &outcome.failed {
        notice(&format!("shard {}: {error}", shard.0));
    }
    let message = match command {
        GroupCommand::Get { .. } => "the counts are not of all shards: ask again".to_owned(),
        _ => format!("not every shard has done it: ask again with --epoch {epoch}"),
    };
    Err(Failure::new(Exit::Failed, message))
}

fn verdict(outcome: &GroupOutcome) -> &'static str {
    match outcome {
        GroupOutcome { is_known: false, .. } => "NOT_FOUND",
        GroupOutcome { is_undone: true, .. } => "UNDONE",
        _ => "CANCELLED",
    }
}
