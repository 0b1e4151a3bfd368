//! The program `escapement`: a node, and the commands that talk to one. All of it is in [`escapement_node::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    escapement_node::cli::run(std::env::args_os())
}
