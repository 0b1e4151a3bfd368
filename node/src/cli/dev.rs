//! `escapement dev`: a node to play with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;

use escapement_protocol::{AttemptResult, SubscriptionSettings, TopicSettings};

use super::connect::{ConnectArgs, fingerprint};
use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use super::{serve, subscribe};
use crate::config::NodeConfig;
use crate::data_dir::lies_in_memory;
use crate::serve::{Control, Ready};

/// Name of the topic that is made.
const TOPIC: &str = "demo";
/// Name of its subscription.
const SUBSCRIPTION: &str = "demo-echo";

const SEGMENT_SIZE_BYTES: u64 = 8 * 1024 * 1024;
const SHARD_COUNT_MAX: u16 = 4;

const AFTER_HELP: &str = "\
Makes a temporary data directory on a disk and a development certificate, creates the topic `demo` with the \
subscription `demo-echo`, and prints each event that arrives with its lateness. It says what to type in another \
terminal. Ctrl-C ends it; a directory that it made is removed.";

/// Arguments of `dev`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DevArgs {
    /// UDP address to serve QUIC on; port 0 lets the system choose
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4433")]
    listen: SocketAddr,
    /// Keep the data here instead of in a temporary directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

pub(super) fn run(args: DevArgs, program: &str, out: &Output) -> Result<(), Failure> {
    let temporary = if args.data.is_none() { Some(temporary_directory()?) } else { None };
    let data = match (&temporary, args.data) {
        (Some(directory), _) => directory.path().to_owned(),
        (None, data) => data.unwrap_or_default(),
    };
    let defaults = NodeConfig::default();
    let config = NodeConfig {
        listen: args.listen,
        // A directory that was kept has its own number.
        shards: temporary.as_ref().map(|_| defaults.shard_count_of_new_directory().min(SHARD_COUNT_MAX)),
        segment_size_bytes: SEGMENT_SIZE_BYTES,
        segment_spares: 1,
        data,
        ..defaults
    };
    config.validate()?;
    let control = Arc::new(Control::default());
    let (sender, ready) = mpsc::channel::<Ready>();
    let (end_sender, end) = mpsc::channel();
    let demo = thread::Builder::new().name("demo".to_owned()).spawn({
        let (control, program, out) = (Arc::clone(&control), program.to_owned(), *out);
        move || {
            // Without a node that came up there is nothing to show; why not is said elsewhere.
            if let Ok(ready) = ready.recv() {
                let _ = end_sender.send(show(&ready, &program, out));
                control.drain();
            }
        }
    });
    demo.map_err(|error| Failure::new(Exit::Failed, format!("cannot start a thread: {error}")))?;
    let served = serve::run_node(
        &config,
        &control,
        move |ready| {
            // It hears of this as long as it lives.
            let _ = sender.send(ready.clone());
        },
        notice,
    );
    // A subscriber that a drain took by surprise dials for a while yet: there is no waiting for it.
    served.and(end.try_recv().unwrap_or(Ok(())))
}

/// A directory on a disk: the system's place for temporary files often lies in memory.
fn temporary_directory() -> Result<tempfile::TempDir, Failure> {
    let places = [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")];
    let place = places.iter().find(|place| lies_in_memory(place).is_ok_and(|in_memory| !in_memory));
    let place = place.ok_or_else(|| {
        Failure::new(
            Exit::Data,
            "no place for temporary files lies on a disk: name a directory with --data DIR",
        )
    })?;
    let made = tempfile::Builder::new().prefix("escapement-dev-").tempdir_in(place);
    made.map_err(|error| Failure::new(Exit::Data, format!("cannot create in {}: {error}", place.display())))
}

/// Makes topic and subscription, says what to type, and prints what arrives until a signal comes.
fn show(ready: &Ready, program: &str, out: Output) -> Result<(), Failure> {
    let cert_sha256 = fingerprint(&ready.cert_sha256).map_err(|what| Failure::new(Exit::Failed, what))?;
    ConnectArgs::pinned(ready.addr.to_string(), cert_sha256).run(async |client| {
        let topic = TopicSettings { name: TOPIC.to_owned(), ..TopicSettings::default() };
        client.create_topic(topic).await?;
        let subscription = SubscriptionSettings {
            name: SUBSCRIPTION.to_owned(),
            topic: TOPIC.to_owned(),
            ..SubscriptionSettings::default()
        };
        client.create_subscription(subscription).await?;
        notice(&format!(
            "listening on {}\n\nIn another terminal:\n\n  {program} publish --addr {} --cert-sha256 {} \\\n    \
             --topic {TOPIC} --delay 2s --data 'hello from two seconds ago'\n\nWhat arrives is printed here. \
             Ctrl-C ends.\n",
            ready.addr, ready.addr, ready.cert_sha256
        ));
        subscribe::receive(&client, SUBSCRIPTION, None, AttemptResult::Success, out).await
    })
}
