//! `escapement serve`.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use super::failure::{Exit, Failure};
use super::output::{Output, notice};
use super::setting_flags::SettingFlags;
use crate::config::NodeConfig;
use crate::data_dir::DataDir;
use crate::open_files::{explained, raise_limit};
use crate::serve::{Control, Ready, ServeEnd, check_start, out_of_service, serve};
use crate::signals::drain_on_signals;
use crate::supervisor::Supervisor;

const AFTER_HELP: &str = "\
Settings come from defaults, then the file, then flags. Once it takes connections, the node prints one line:
  listening on 127.0.0.1:4433 cert-sha256 5f1c...

A start says every second on standard error how far it is. Under systemd, Type=notify works: the manager hears of progress and \
of the end of the start through NOTIFY_SOCKET.

SIGTERM and SIGINT drain it: nothing new is accepted, running attempts may end. A second one ends it at once.

Examples:
  escapement serve --data /var/lib/escapement
  escapement serve --data ./data --listen 0.0.0.0:4433 --tls-certificate cert.pem --tls-key key.pem
  escapement serve --config /etc/escapement.toml --admission 500k/s";

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ServeArgs {
    /// Read settings from this TOML file; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingFlags,
}

pub(super) fn run(args: &ServeArgs, out: &Output) -> Result<(), Failure> {
    let mut config = NodeConfig::default();
    if let Some(path) = &args.config {
        config.read_file(path)?;
    }
    args.settings.apply(&mut config)?;
    config.validate()?;
    let control = Arc::new(Control::default());
    let supervisor = Supervisor::from_environment();
    let is_ready = Cell::new(false);
    supervisor.starting("opening the data directory");
    let on_ready = |ready: &Ready| {
        let line = format!("listening on {} cert-sha256 {}", ready.addr, ready.cert_sha256);
        if let Err(failure) = out.line(&line) {
            notice(failure.text().unwrap_or("standard output is closed"));
        }
        is_ready.set(true);
        let but = match &ready.out[..] {
            [] => String::new(),
            out => format!("; {}", out_of_service(out, ready.shard_count)),
        };
        supervisor.ready(&format!("listening on {}{but}", ready.addr));
        notice(&format!("ready after {} ms{but}", ready.start_ms));
    };
    let on_notice = |text: &str| {
        notice(text);
        if is_ready.get() {
            supervisor.status(text);
        } else {
            supervisor.starting(text);
        }
    };
    run_node(&config, &control, on_ready, on_notice)
}

/// Opens the data directory and serves it until a signal or `control` drains it.
pub(super) fn run_node(
    config: &NodeConfig,
    control: &Arc<Control>,
    on_ready: impl FnOnce(&Ready),
    on_notice: impl Fn(&str),
) -> Result<(), Failure> {
    raise_limit();
    // Before anything that takes long, so that a start can be ended too.
    drain_on_signals(Arc::clone(control), notice).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot listen for signals: {}", explained(&error)))
    })?;
    if !DataDir::is_formatted(&config.data) {
        // A node that could not serve leaves no directory behind, of a size and shape that may have been a mistake too.
        check_start(config)?;
    }
    let data = DataDir::open_or_format(config)?;
    if data.is_new() {
        let shards = match data.shard_count() {
            1 => "1 shard".to_owned(),
            count => format!("{count} shards"),
        };
        on_notice(&format!("formatted {} with {shards}", data.path().display()));
    }
    let ServeEnd { refused, failures, cut_short } = serve(config, &data, control, on_ready, on_notice)?;
    if cut_short {
        notice("drained, but the time was over before every attempt had ended: those will be redelivered");
    }
    if failures.is_empty() && refused.is_empty() {
        return Ok(());
    }
    let (count, shard_count) = (failures.len() + refused.len(), usize::from(data.shard_count()));
    for (shard, why) in refused {
        notice(&format!("shard {} did not serve: {why}", shard.0));
    }
    for (shard, why) in failures {
        notice(&format!("shard {} stopped: {why}", shard.0));
    }
    let message = if count == shard_count {
        "the node stopped because no shard of it served any more; start it again to recover"
    } else {
        "the node stopped, and not all of its shards had served; start it again to recover them"
    };
    Err(Failure::new(Exit::Failed, message))
}
