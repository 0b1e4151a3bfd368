//! `loadgen`: offers a load to a node, open loop, and judges what becomes of it.
//!
//! Latency counts from the moment at which an event should have been sent, so that a node that
//! stalls, or a generator that cannot keep up, shows in the figures. Without `--addr` the node is
//! this program itself, started once more as a process of its own on half of the CPUs.

mod args;
mod burst;
mod clock;
mod disk;
mod judge;
mod measure;
mod node_process;
mod preload;
mod publish;
mod receive;
mod report;
mod restart;
mod run;
mod slo;
mod sys;
mod units;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Hidden first argument that turns this program into the node; arguments of the node's command line follow.
const NODE_ARGUMENT: &str = "__node";

fn main() -> ExitCode {
    let mut raw: Vec<OsString> = std::env::args_os().collect();
    if raw.get(1).is_some_and(|first| first == NODE_ARGUMENT) {
        raw.remove(1);
        return escapement_node::cli::run(raw);
    }
    let args = match args::Args::try_parse_from(raw).and_then(args::Args::checked) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    match run::run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
