//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use escapement_loadgen::{DelayLaw, WorkloadConfig};

use crate::slo::{Slo, slo};
use crate::units::{Rate, count, delay, duration, permille, rate, sha256};

const AFTER_HELP: &str = "\
Exit status: 0 every promise and objective kept, 1 something lost, early, altered, out of order, over a limit or an \
objective missed, 2 wrong arguments.

Examples:
  loadgen --rate 500k/s --duration 30s --slo 'p99(lateness)<5ms'
  loadgen --rate max --delay 0s --json result.json
  loadgen --preload 10M --restart --rate 20k/s
  loadgen --burst 1M --rate 20k/s --delay uniform:100ms..300ms
  loadgen --rate 20k/s --keys 1000 --fail 1% --addr 192.0.2.7:4433 --cert-sha256 5f1c...";

/// Offers a load to an Escapement node, and judges what becomes of it
#[derive(Clone, Debug, Parser)]
#[command(name = "loadgen", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Events per second, or max for as many as are taken
    #[arg(long, default_value = "100k/s", value_parser = rate, value_name = "RATE", help_heading = "Load")]
    pub(crate) rate: Rate,
    /// How long events are offered and measured; with --preload, 0s for not at all
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "TIME", help_heading = "Load")]
    pub(crate) duration: Duration,
    /// How long events are offered before that; the default is the longest delay, from 1s to 10s
    #[arg(long, value_parser = duration, value_name = "TIME", help_heading = "Load")]
    pub(crate) warmup: Option<Duration>,
    /// Time from send to due: 2s, uniform:1s..5s or exp:5s
    #[arg(long, default_value = "uniform:1s..2s", value_parser = delay, value_name = "LAW", help_heading = "Load")]
    pub(crate) delay: DelayLaw,
    /// Bytes of data in each event
    #[arg(long, default_value_t = 128, value_name = "BYTES", help_heading = "Load")]
    pub(crate) payload: usize,
    /// Number of ordering keys; 0: events have none
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Load")]
    pub(crate) keys: u32,
    /// Number of topics, each with one subscription
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Load",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) topics: u32,
    /// Share of attempts that are answered with a retryable failure
    #[arg(long, default_value = "0%", value_parser = permille, value_name = "SHARE", help_heading = "Load")]
    pub(crate) fail: u32,
    /// What everything random follows from
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Load")]
    pub(crate) seed: u64,

    /// Publish N events at full speed first, such as 200k or 100M, which stay pending while the run is measured: it is
    /// made twice, before them and on top of them. They are counted and a sample of them is cancelled at the end;
    /// --duration 0s measures nothing else
    #[arg(long, value_parser = count, value_name = "N", help_heading = "Preload")]
    pub(crate) preload: Option<u64>,
    /// Time from publish to due of those events; the default is uniform:15m..1h for one in ten, and uniform:1h..720h
    /// for the others. Those that come due within the run are delivered and counted
    #[arg(long, value_parser = delay, value_name = "LAW", requires = "preload", help_heading = "Preload")]
    pub(crate) preload_delay: Option<DelayLaw>,
    /// At the end kill the node, start it again on its data, and measure how long it takes to answer a publish, to
    /// cancel a preloaded event and to deliver one that is due
    #[arg(long, requires = "preload", conflicts_with = "addr", help_heading = "Preload")]
    pub(crate) restart: bool,

    /// Publish N events on a topic of their own that all are due at one instant, such as 1M, while the load is measured
    /// beside them. Before that the load is measured alone, and for ten seconds at most as many events as are taken,
    /// which are due at once: what the node can do
    #[arg(long, value_parser = count, value_name = "N", conflicts_with = "preload", help_heading = "Burst")]
    pub(crate) burst: Option<u64>,

    /// Connections that publish
    #[arg(long, default_value_t = 2, value_name = "N", help_heading = "Connections",
          value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) publishers: u32,
    /// Connections that receive
    #[arg(long, default_value_t = 1, value_name = "N", help_heading = "Connections",
          value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) subscribers: u32,
    /// Most events in one frame
    #[arg(long, default_value_t = 256, value_name = "N", help_heading = "Connections",
          value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) batch_max: u32,
    /// Most events without a receipt, for each publishing connection; with --rate, the default never holds back
    #[arg(long, value_name = "N", help_heading = "Connections")]
    pub(crate) in_flight: Option<usize>,
    /// Most attempts running at once of each subscription, checked; 0: no limit
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Connections")]
    pub(crate) max_concurrent: u32,
    /// Attempts that a receiving connection takes without a result
    #[arg(long, default_value_t = 65_536, value_name = "N", help_heading = "Connections")]
    pub(crate) credit: u32,
    /// Largest datagram to be tried, in bytes of UDP payload; the default is 8952 for a node that is started
    /// here, and 1452 for one at --addr
    #[arg(long, value_name = "BYTES", help_heading = "Connections",
          value_parser = clap::value_parser!(u16).range(1_200..=65_527))]
    pub(crate) mtu: Option<u16>,

    /// Use the node at this address instead of starting one
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Node")]
    pub(crate) addr: Option<SocketAddr>,
    /// SHA-256 of that node's certificate, as it printed it at its start; else the system's authorities decide
    #[arg(long, value_parser = sha256, value_name = "HEX", requires = "addr", help_heading = "Node")]
    pub(crate) cert_sha256: Option<[u8; 32]>,
    /// Where the started node keeps its data; the default is a temporary directory beside the system's other
    /// temporary files, which is removed at the end
    #[arg(long, value_name = "DIR", conflicts_with = "addr", help_heading = "Node")]
    pub(crate) data: Option<PathBuf>,
    /// Allow data that lies in memory, where durability costs nothing and means nothing
    #[arg(long, conflicts_with = "addr", help_heading = "Node")]
    pub(crate) allow_tmpfs: bool,
    /// CPUs for the started node; the default is half of those allowed, the generator has the rest
    #[arg(long, value_name = "N", conflicts_with = "addr", help_heading = "Node")]
    pub(crate) node_cpus: Option<usize>,
    /// An argument for the started node's `serve`, such as --node-arg=--host=poll
    #[arg(
        long,
        value_name = "ARG",
        conflicts_with = "addr",
        allow_hyphen_values = true,
        help_heading = "Node"
    )]
    pub(crate) node_arg: Vec<String>,

    /// An objective, such as 'p99(lateness)<5ms'; may be repeated
    #[arg(long, value_parser = slo, value_name = "OBJECTIVE", help_heading = "Results")]
    pub(crate) slo: Vec<Slo>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) json: Option<PathBuf>,
    /// Write the distribution of lateness as HdrHistogram's percentile table
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) hgrm: Option<PathBuf>,
    /// Write every second's distributions as an HdrHistogram interval log
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) hlog: Option<PathBuf>,
    /// Print no progress
    #[arg(long, help_heading = "Results")]
    pub(crate) quiet: bool,
    /// Events due from this moment on, in ms of the wall clock, are noted one by one.
    #[arg(skip)]
    pub(crate) noted_from_ms: Option<u64>,
}

impl Args {
    /// Checks what depends on more than one argument.
    pub(crate) fn checked(self) -> Result<Self, clap::Error> {
        let refuse = |message: &str| Err(Args::command().error(ErrorKind::ValueValidation, message));
        if self.duration.is_zero() && self.preload.is_none() {
            return refuse("--duration must be longer than zero, unless there is a --preload");
        }
        if self.duration.is_zero() && !(self.slo.is_empty() && self.hgrm.is_none() && self.hlog.is_none()) {
            return refuse(
                "--duration must be longer than zero for --slo, --hgrm and --hlog: they tell of what is measured",
            );
        }
        if self.burst.is_some() && (self.duration.is_zero() || self.rate == Rate::Max) {
            return refuse(
                "--burst wants a load beside it: give --rate a number, and --duration more than zero",
            );
        }
        if self.payload > 200 * 1024 {
            return refuse("--payload is more than an event holds: at most 204800 bytes");
        }
        if self.keys > 0 && self.keys < self.topics {
            return refuse("--keys must be 0 or at least --topics, since each key belongs to one topic");
        }
        if self.in_flight == Some(0) || self.credit == 0 {
            return refuse("--in-flight and --credit must be at least 1");
        }
        Ok(self)
    }

    pub(crate) fn workload(&self) -> WorkloadConfig {
        WorkloadConfig {
            seed: self.seed,
            rate_per_s: self.rate_per_s(),
            delay: self.delay,
            payload_size_bytes: self.payload,
            keys: self.keys,
            topics: self.topics,
            fail_permille: self.fail,
        }
    }

    /// 0 where there is no schedule.
    pub(crate) fn rate_per_s(&self) -> u64 {
        match self.rate {
            Rate::PerSecond(rate) => rate,
            Rate::Max => 0,
        }
    }

    pub(crate) fn warmup(&self) -> Duration {
        let longest = Duration::from_millis(self.delay.longest_ms());
        self.warmup.unwrap_or(longest.clamp(Duration::from_secs(1), Duration::from_secs(10)))
    }

    pub(crate) fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(if self.addr.is_none() { 8_952 } else { 1_452 })
    }

    pub(crate) fn in_flight(&self) -> usize {
        // Two seconds of the load, and then some: open loop means that it is not held back.
        let open_loop = self.rate_per_s() as usize * 2 + 65_536;
        self.in_flight.unwrap_or(if self.rate_per_s() == 0 { 16_384 } else { open_loop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' ')).and_then(Args::checked)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn defaults_are_a_load_on_a_node_of_our_own() {
        let args = parse("loadgen").expect("nothing is required");
        assert_eq!((args.publishers, args.subscribers, args.mtu()), (2, 1, 8_952));
        assert_eq!(args.warmup(), Duration::from_secs(2));
        assert_eq!(parse("loadgen --addr 127.0.0.1:1").expect("valid").mtu(), 1_452);
        assert_eq!(args.preload, None);
    }

    #[test]
    fn a_preload_may_be_all_that_is_done() {
        let args = parse("loadgen --preload 200k --restart --duration 0s").expect("valid");
        assert_eq!((args.preload, args.preload_delay, args.restart), (Some(200_000), None, true));
        assert!(args.duration.is_zero());
    }

    #[test]
    fn wrong_arguments_exit_with_2_and_say_what_is_right() {
        for (line, word) in [
            ("loadgen --rate fast", "500k/s"),
            ("loadgen --slo p98(lateness)<1ms", "p99.9"),
            ("loadgen --duration 0s", "longer than zero"),
            ("loadgen --preload 5k --duration 0s --slo p99(lateness)<1ms", "longer than zero"),
            ("loadgen --preload 0", "100M"),
            ("loadgen --restart", "--preload"),
            ("loadgen --burst 1k --rate max", "beside"),
            ("loadgen --burst 1k --preload 1k", "cannot be used with"),
            ("loadgen --preload-delay 1h", "--preload"),
            ("loadgen --preload 5k --preload-delay later", "5ms"),
            ("loadgen --preload 5k --restart --addr 127.0.0.1:1", "cannot be used with"),
            ("loadgen --payload 300000", "204800"),
            ("loadgen --topics 4 --keys 2", "belongs to one topic"),
            ("loadgen --cert-sha256 00", "64"),
            ("loadgen --addr 127.0.0.1:1 --data x", "cannot be used with"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }
}
