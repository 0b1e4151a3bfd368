//! The program `escapement` again, so that this crate's tests have its path and start what was built with them.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    escapement_node::cli::run(std::env::args_os())
}
