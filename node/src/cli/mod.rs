//! The command line: `escapement COMMAND`.
//!
//! Thin on purpose: `serve` and `dev` put a configuration and a data directory together and hand them to
//! [`crate::serve`], `inspect` and `verify` read a directory, and everything else is one request through the client SDK.
//!
//! What a command is asked for goes to standard output; what is said about it goes to standard error.

mod admin;
mod change;
mod connect;
mod count;
mod dev;
mod event;
mod failure;
mod group;
mod inspect;
mod list;
mod moment;
mod output;
mod publish;
mod repair;
mod runs;
mod serve;
mod setting_flags;
mod snapshot;
mod subscribe;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;

use crate::data_dir::IDENTITY_FORMAT;
pub use failure::Exit;
use failure::Failure;
use output::{Format, Output};

const AFTER_HELP: &str = "\
Exit status: 0 done, 1 failed, 2 wrong arguments or configuration, 3 refused by the node, 4 node not reached, 5 data directory not usable.

Try it: `escapement dev` starts a node to play with, and says what to type next.";

/// A delayed-event scheduler and push router.
#[derive(Debug, Parser)]
#[command(name = "escapement", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    /// How results are printed: for people, or one JSON value a line
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Output")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Serve(serve::ServeArgs),
    /// Run a node to play with: temporary, on this machine, with a subscriber that prints what arrives
    Dev(dev::DevArgs),
    /// Publish one event
    Publish(publish::PublishArgs),
    /// Receive the events of a subscription, and print them
    Subscribe(subscribe::SubscribeArgs),
    /// Create and list topics
    #[command(subcommand)]
    Topic(admin::TopicCommand),
    /// Create and list subscriptions
    #[command(subcommand)]
    Subscription(admin::SubscriptionCommand),
    /// Look at events that are pending
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Count what is pending, exactly
    Count(count::CountArgs),
    /// Cancel events that are not yet due
    Cancel(change::CancelArgs),
    /// Give events that are not yet due another due time
    Reschedule(change::RescheduleArgs),
    /// Make events that are not yet due run at once
    RunNow(change::RunNowArgs),
    /// Cancel, pause or postpone all pending events of a group at once, take that back, or look at the group
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Look into a data directory, without changing it
    Inspect(inspect::InspectArgs),
    /// Check every checksum, count and reference in a data directory, without changing it
    Verify(verify::VerifyArgs),
    /// Copy the data directory of a node that goes on serving
    Snapshot(snapshot::SnapshotArgs),
    /// Say what a damaged directory has lost, and give it up so that the rest can serve
    Repair(repair::RepairArgs),
    /// Print the versions of the program, its protocol and its formats
    Version,
    /// Print a completion script
    ///
    /// For example: escapement completions bash > /etc/bash_completion.d/escapement
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command line, the program's name first, and says how the process is to exit.
///
/// Blocks for as long as the command runs. `serve` prints one line to standard output once it takes connections:
/// `listening on ADDR cert-sha256 HEX`.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let program =
        args.first().map_or_else(|| "escapement".into(), |name| name.to_string_lossy().into_owned());
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(refusal) => {
            // Nobody is left to tell where this cannot be printed.
            let _ = refusal.print();
            return if refusal.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let out = Output::new(cli.output);
    match execute(cli.command, &program, &out) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if let Some(text) = failure.text() {
                output::notice(&format!("error: {text}"));
            }
            failure.exit().into()
        }
    }
}

fn execute(command: Command, program: &str, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(&args, out),
        Command::Dev(args) => dev::run(args, program, out),
        Command::Publish(args) => publish::run(&args, out),
        Command::Subscribe(args) => subscribe::run(&args, out),
        Command::Topic(command) => admin::run_topic(command, out),
        Command::Subscription(command) => admin::run_subscription(command, out),
        Command::Event(command) => event::run(command, out),
        Command::Count(args) => count::run(&args, out),
        Command::Cancel(args) => change::run_cancel(&args, out),
        Command::Reschedule(args) => change::run_reschedule(&args, out),
        Command::RunNow(args) => change::run_now(&args, out),
        Command::Group(command) => group::run(&command, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Verify(args) => verify::run(&args, out),
        Command::Snapshot(args) => snapshot::run(&args, out),
        Command::Repair(args) => repair::run(&args, out),
        Command::Version => version(out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "escapement", &mut script);
            out.raw(&script)
        }
    }
}

fn version(out: &Output) -> Result<(), Failure> {
    let facts = [
        ("escapement", json!(env!("CARGO_PKG_VERSION"))),
        ("protocol", json!(escapement_protocol::PROTOCOL_VERSION)),
        ("data_directory_format", json!(IDENTITY_FORMAT)),
        ("log_format", json!(escapement_wal::format::FORMAT_VERSION)),
    ];
    out.facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_help() {
        fn check(command: &clap::Command) {
            // Terminals are of different widths: prose is wrapped when it is printed.
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let prose = after.split("\n\n").filter(|part| !part.contains("\n  "));
            prose.for_each(|part| assert!(!part.contains('\n'), "broken by hand: {part}"));
            assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            for inner in command.get_subcommands() {
                check(inner);
            }
        }
        check(&Cli::command());
    }
}
