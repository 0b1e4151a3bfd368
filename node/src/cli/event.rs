//! `escapement event`.

use escapement_client::Client;
use escapement_protocol::event::{EventView, tag};
use escapement_protocol::frame::{EventDetail, EventInfo, EventPlace, TaskInfo};
use escapement_protocol::{EventId, WallMs};
use hashbrown::HashMap;
use serde_json::{Value, json};

use super::change::state_name;
use super::connect::ConnectArgs;
use super::failure::Failure;
use super::list;
use super::moment::rfc3339;
use super::output::{Output, object};

/// Commands on events.
#[derive(Debug, clap::Subcommand)]
pub(super) enum EventCommand {
    /// Say where events stand: when they are due, what their tasks came to
    #[command(
        after_help = "Prints one line for each event, in the order of the arguments. A state of NOT_FOUND means that the event never was, or has ended; READY, that it is due, and its tasks wait or run. It ends with status 0 in either case.\n\n\
                      Example:\n  escapement event get 000000000000000101a1eac6f07b --data"
    )]
    Get(GetArgs),
    /// List pending events of a topic
    #[command(
        after_help = "The events are in no order. Listing costs the node little at a time, however many events are pending: a search for few among very many takes long, and disturbs nobody. An event that is pending all the while is listed, twice where it was moved meanwhile; one that is published while it is listed may be. Where --limit cuts it off, a page token is printed, with -o json as the last line: it is good for the same topic, state, key and time range until the node starts again. Where shards are out of service, or blocks of runs can't be read, it says so, with -o json in a line with shards_missing or events_unread, and the exit status is 3.\n\n\
                      Examples:\n  escapement event list --topic mail --state ready\n  escapement event list --topic mail --from 2031-05-17T00:00:00Z --until 2031-05-18T00:00:00Z --all -o json"
    )]
    List(Box<list::ListArgs>),
}

/// Arguments of `event get`.
#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// Numbers of the events (event_id), as publish printed them
    #[arg(required = true, value_name = "EVENT_ID")]
    events: Vec<EventId>,
    /// Show what the publisher sent, too: id, source, type, key and data
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(command: EventCommand, out: &Output) -> Result<(), Failure> {
    match command {
        EventCommand::Get(args) => get(&args, out),
        EventCommand::List(args) => list::run(&args, out),
    }
}

/// Columns that every answer about an event has.
pub(super) const COLUMNS: [&str; 7] =
    ["event_id", "state", "topic", "schedule_time", "due", "place", "size_bytes"];

fn get(args: &GetArgs, out: &Output) -> Result<(), Failure> {
    let (found, topics) = args.connect.run(async |client| {
        let mut found = Vec::new();
        for event in &args.events {
            found.push(if args.data { client.peek(*event).await? } else { client.event(*event).await? });
        }
        Ok((found, topic_names(&client).await?))
    })?;
    let mut columns = COLUMNS.to_vec();
    columns.extend(["version", "tasks"]);
    if args.data {
        columns.extend(["id", "source", "type", "key", "data"]);
    }
    let rows: Vec<Vec<Value>> =
        args.events.iter().zip(found).map(|(event, found)| row(args, *event, found, &topics)).collect();
    out.rows(&columns, &rows)
}

/// The topics' names by their numbers.
async fn topic_names(client: &Client) -> Result<HashMap<u32, String>, Failure> {
    let topics = client.topics().await?.into_iter();
    Ok(topics.map(|info| (info.topic.0, info.settings.name)).collect())
}

fn row(
    args: &GetArgs,
    event: EventId,
    found: Option<EventDetail>,
    topics: &HashMap<u32, String>,
) -> Vec<Value> {
    let width = COLUMNS.len() + 2 + if args.data { 5 } else { 0 };
    let Some(detail) = found else {
        let mut row = vec![json!(event.to_string()), json!("NOT_FOUND")];
        row.resize(width, Value::Null);
        return row;
    };
    let mut row = info_row(&detail.info, topics);
    row.push(json!(detail.version));
    row.push(Value::Array(detail.tasks.iter().map(task).collect()));
    let view = detail.bytes.as_deref().and_then(|bytes| EventView::parse(bytes).ok());
    if let Some((view, _)) = view {
        let text = |bytes: &[u8]| match bytes {
            [] => Value::Null,
            bytes => json!(String::from_utf8_lossy(bytes)),
        };
        let parts = [
            view.id(),
            view.source(),
            view.attribute(tag::TYPE).unwrap_or_default(),
            view.ordering_key(),
            view.data(),
        ];
        row.extend(parts.into_iter().map(text));
    }
    row.resize(width, Value::Null);
    row
}

pub(super) fn info_row(info: &EventInfo, topics: &HashMap<u32, String>) -> Vec<Value> {
    let topic = topics.get(&info.topic.0).map_or_else(|| json!(info.topic.0), |name| json!(name));
    let place = match info.place {
        EventPlace::Memory => "memory",
        EventPlace::Run => "run",
    };
    vec![
        json!(info.id.to_string()),
        json!(state_name(info.state)),
        topic,
        json!(rfc3339(WallMs(info.id.schedule_time_ms))),
        json!(rfc3339(info.due)),
        json!(place),
        json!(info.size_bytes),
    ]
}

fn task(task: &TaskInfo) -> Value {
    let next_due = match task.next_due {
        WallMs(0) => Value::Null,
        at => json!(rfc3339(at)),
    };
    let facts = [
        ("subscription_id", json!(task.subscription.0)),
        ("failed_attempts", json!(task.attempt)),
        ("excused_attempts", json!(task.excused)),
        ("next_due", next_due),
        ("done", json!(task.done)),
    ];
    object(facts.into_iter())
}
