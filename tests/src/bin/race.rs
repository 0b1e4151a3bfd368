//! Lets cancels race with dispatch until as many as asked for have been judged.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use escapement_tests::race::{Bug, Counts, run};

const USAGE: &str = "\
usage: race [--cancels N] [--seed S] [--bug NAME]

  --cancels N   stop after N cancels (default 1000000)
  --seed S      begin with seed S (default 0); without --cancels, run this seed alone
  --bug NAME    plant a bug of tests/src/race.rs, which must be found";

fn arguments() -> Result<(u64, u64, Option<Bug>), String> {
    let (mut cancels, mut seed, mut bug) = (None, None, None);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        if !["--cancels", "--seed", "--bug"].contains(&name.as_str()) {
            return Err(format!("{name:?} is not an option\n{USAGE}"));
        }
        let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
        if name == "--bug" {
            let named = Bug::named(&value);
            bug = Some(named.ok_or_else(|| format!("{value:?} is none of {:?}\n{USAGE}", Bug::ALL))?);
            continue;
        }
        let number = value.parse().map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
        *(if name == "--seed" { &mut seed } else { &mut cancels }) = Some(number);
    }
    let cancels = cancels.unwrap_or(if seed.is_some() { 1 } else { 1_000_000 });
    Ok((cancels, seed.unwrap_or(0), bug))
}

fn report(counts: &Counts, started: Instant) -> String {
    let Counts {
        seeds,
        events,
        before,
        at,
        after,
        cancelled,
        too_late,
        not_found,
        unanswered,
        crashes,
        pushes,
    } = counts;
    format!(
        "{} cancels ({before} before the due millisecond, {at} in it, {after} after) of {events} events: {cancelled} \
         CANCELLED, {too_late} TOO_LATE, {not_found} NOT_FOUND, {unanswered} unanswered; {pushes} pushes, {crashes} \
         crashes, {seeds} seeds in {:.1} s",
        counts.cancels(),
        started.elapsed().as_secs_f64(),
    )
}

fn main() -> ExitCode {
    let (cancels, mut seed, bug) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if cancels > 1 {
        // A panic is a finding, reported below with its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let started = Instant::now();
    let mut printed = started;
    let mut counts = Counts::default();
    while counts.cancels() < cancels {
        match run(seed, bug) {
            Ok(lived) => counts.add(lived),
            Err(failed) => {
                eprintln!("{failed}");
                eprintln!("after {}", report(&counts, started));
                eprintln!("replay: cargo run --release -p escapement-tests --bin race -- --seed {seed}");
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
        if printed.elapsed() >= Duration::from_secs(5) {
            printed = Instant::now();
            println!("{}", report(&counts, started));
        }
    }
    println!("{}", report(&counts, started));
    println!("every verdict is what the subscriber saw");
    ExitCode::SUCCESS
}
