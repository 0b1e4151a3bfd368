//! Lets a shard live through a hundred years of timers.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::process::ExitCode;
use std::time::Instant;

use escapement_tests::century::{Bug, Options, run};

const USAGE: &str = "\
usage: century [--years N] [--events N] [--seed S] [--seeds N] [--bug NAME]

  --years N   simulated years, from 11 on (default 100)
  --events N  events, about (default 100000)
  --seed S    begin with seed S (default 0)
  --seeds N   run N seeds: of six neighbours two have no runs, and three end where 48 bits do (default 6)
  --bug NAME  plant a bug of tests/src/century.rs, which must be found";

fn arguments() -> Result<(Options, u64), String> {
    let mut options = Options { seed: 0, years: 100, events: 100_000, bug: None };
    let mut seeds = 6;
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
        if name == "--bug" {
            let bug = Bug::named(&value);
            options.bug = Some(bug.ok_or_else(|| format!("{value:?} is none of {:?}\n{USAGE}", Bug::ALL))?);
            continue;
        }
        let number = value.parse().map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
        match name.as_str() {
            "--years" if (11..=1_000).contains(&number) => options.years = number,
            "--years" => return Err(format!("--years wants 11 to 1000\n{USAGE}")),
            "--events" => options.events = number.max(1),
            "--seed" => options.seed = number,
            "--seeds" => seeds = number,
            _ => return Err(format!("{name:?} is not an option\n{USAGE}")),
        }
    }
    Ok((options, seeds))
}

fn main() -> ExitCode {
    let (options, seeds) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    for seed in options.seed..options.seed.saturating_add(seeds) {
        let started = Instant::now();
        match run(Options { seed, ..options }) {
            Ok(counts) => println!(
                "seed {seed}: {} years, {} events, {} of them in their due millisecond and {} after a start; {} pushes, \
                 {} restarts, {} wakes; at most {} events in {} runs, {} blocks of the log; {:.1} s",
                options.years,
                counts.events,
                counts.in_time,
                counts.after_start,
                counts.pushes,
                counts.restarts,
                counts.wakes,
                counts.far_max,
                counts.files_max,
                counts.log_max,
                started.elapsed().as_secs_f64(),
            ),
            Err(failed) => {
                eprintln!("{failed}");
                eprintln!(
                    "replay: cargo run --release -p escapement-tests --bin century -- --seed {seed} --seeds 1 --years {} \
                     --events {}",
                    options.years, options.events
                );
                return ExitCode::FAILURE;
            }
        }
    }
    println!("nothing was early, late or lost");
    ExitCode::SUCCESS
}
