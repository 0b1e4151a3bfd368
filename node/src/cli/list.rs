//! `escapement event list`.

use escapement_client::Client;
use escapement_protocol::WallMs;
use escapement_protocol::frame::{
    EVENT_PAGE_COUNT_MAX, ListEvents, ListedEvent, PAGE_TOKEN_SIZE_BYTES, TaskState,
};
use hashbrown::HashMap;
use serde_json::{Value, json};

use super::connect::ConnectArgs;
use super::event::{COLUMNS, info_row};
use super::failure::{Exit, Failure};
use super::moment::Moment;
use super::output::{Output, notice, object, stated};
use super::subscribe::hex;

/// Arguments of `event list`.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Topic of the events
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Only events in this state
    #[arg(long)]
    state: Option<State>,
    /// Only events with this ordering key
    #[arg(long, default_value = "", hide_default_value = true, value_name = "KEY")]
    key: String,
    /// Only events due at this moment or later: RFC 3339 as in 2031-05-17T08:30:00Z, or milliseconds since 1970
    #[arg(long, value_name = "MOMENT")]
    from: Option<Moment>,
    /// Only events due before this moment
    #[arg(long, value_name = "MOMENT")]
    until: Option<Moment>,
    /// Most events to print
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "all")]
    limit: u32,
    /// Go on where an earlier listing of the same events ended
    #[arg(long, value_name = "TOKEN", value_parser = page_token, default_value = "", hide_default_value = true)]
    page_token: Token,
    /// Print all of them, a thousand at a time
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum State {
    /// Not due yet
    Scheduled,
    /// Due, and its tasks wait or run
    Ready,
    /// Due, and a task of it waits for its next attempt
    Backoff,
}

/// A page token as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token(Vec<u8>);

fn page_token(text: &str) -> Result<Token, &'static str> {
    const WRONG: &str = "not a page token: pass on what the last page said";
    if text.is_empty() {
        return Ok(Token(Vec::new()));
    }
    if text.len() != 2 * PAGE_TOKEN_SIZE_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(WRONG);
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| WRONG);
    (0..text.len()).step_by(2).map(byte).collect::<Result<_, _>>().map(Token)
}

pub(super) fn run(args: &ListArgs, out: &Output) -> Result<(), Failure> {
    args.connect.run(async |client| {
        let topic = client.topic(&args.topic).await?;
        let topics = HashMap::from([(topic.topic.0, topic.settings.name)]);
        let mut list = ListEvents {
            topic: topic.topic,
            state: args.state.map(|state| match state {
                State::Scheduled => TaskState::Scheduled,
                State::Ready => TaskState::Ready,
                State::Backoff => TaskState::Backoff,
            }),
            ordering_key: args.key.as_bytes().to_vec(),
            from: args.from.map_or(WallMs(0), |Moment(at)| at),
            until: args.until.map_or(WallMs(u64::MAX), |Moment(at)| at),
            token: args.page_token.0.clone(),
            ..ListEvents::default()
        };
        let mut columns = COLUMNS.to_vec();
        columns.extend(["id", "key", "failed_attempts"]);
        let mut lacking = Lacking::default();
        loop {
            let count_max = if args.all { EVENT_PAGE_COUNT_MAX } else { args.limit };
            let events = some(&client, &mut list, count_max as usize, &mut lacking).await?;
            let rows: Vec<Vec<Value>> = events.iter().map(|event| row(event, &topics)).collect();
            out.rows(&columns, &rows)?;
            if list.token.is_empty() {
                lacking.print(out)?;
                return lacking.verdict();
            }
            if !args.all {
                lacking.print(out)?;
                more(&list.token, out)?;
                return lacking.verdict();
            }
        }
    })
}

/// What is not in the pages that came.
#[derive(Debug, Default)]
struct Lacking {
    /// Shards that are out of service.
    shards: Vec<u16>,
    /// Events, about, in blocks that can't be read.
    unread: u64,
}

impl Lacking {
    /// Says so to programs.
    fn print(&self, out: &Output) -> Result<(), Failure> {
        let mut facts = Vec::new();
        if !self.shards.is_empty() {
            facts.push(("shards_missing", json!(self.shards)));
        }
        if self.unread > 0 {
            facts.push(("events_unread", json!(self.unread)));
        }
        if facts.is_empty() || !out.is_json() {
            return Ok(());
        }
        out.line(&object(facts.into_iter()).to_string())
    }

    fn verdict(&self) -> Result<(), Failure> {
        let unread = format!(
            "about {} pending events of the topic are in blocks of runs that can't be read, and may be missing here: the \
             node's standard error says which",
            self.unread
        );
        match (&self.shards[..], self.unread) {
            ([], 0) => Ok(()),
            ([], _) => Err(Failure::new(Exit::Refused, format!("UNAVAILABLE: {unread}"))),
            (shards, 0) => Err(Failure::without_shards(shards)),
            (shards, _) => {
                notice(&unread);
                Err(Failure::without_shards(shards))
            }
        }
    }
}

/// Asks for pages until they have as many events, or the last one has come. Leaves the token for the next in `list`.
async fn some(
    client: &Client,
    list: &mut ListEvents,
    count_max: usize,
    lacking: &mut Lacking,
) -> Result<Vec<ListedEvent>, Failure> {
    let mut events = Vec::new();
    loop {
        list.count_max = u32::try_from(count_max - events.len()).unwrap_or(u32::MAX);
        let page = client.list(list.clone()).await?;
        events.extend(page.events);
        lacking.unread += page.unread;
        lacking.shards.extend(page.missing.iter().map(|shard| shard.0));
        list.token = page.token;
        if list.token.is_empty() || events.len() >= count_max {
            return Ok(events);
        }
    }
}

/// Says that there may be more.
fn more(token: &[u8], out: &Output) -> Result<(), Failure> {
    if out.is_json() {
        return out.line(&object([("page_token", json!(hex(token)))].into_iter()).to_string());
    }
    notice(&format!("there may be more: repeat this with --page-token {}", hex(token)));
    Ok(())
}

fn row(event: &ListedEvent, topics: &HashMap<u32, String>) -> Vec<Value> {
    let mut row = info_row(&event.info, topics);
    let key = String::from_utf8_lossy(&event.ordering_key);
    row.extend([json!(event.id), stated(&key), json!(event.attempt)]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_are_hexadecimal_digits_of_their_length() {
        let bytes: Vec<u8> = (0..PAGE_TOKEN_SIZE_BYTES as u8).collect();
        assert_eq!(page_token(&hex(&bytes)), Ok(Token(bytes.clone())));
        assert_eq!(page_token(""), Ok(Token(Vec::new())));
        let long = "0".repeat(2 * PAGE_TOKEN_SIZE_BYTES - 2);
        for text in ["00", &hex(&bytes[1..]), &format!("{long}0g"), &format!("{long}é")] {
            assert!(page_token(text).is_err(), "{text}");
        }
    }
}
