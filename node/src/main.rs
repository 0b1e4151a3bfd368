//! The program `escapement`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    escapement_node::cli::run(std::env::args_os())
}
