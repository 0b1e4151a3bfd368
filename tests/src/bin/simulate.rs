//! Runs seeds of the simulator until as many crashes as asked for have been survived.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use escapement_tests::sim::{Bug, Counts, Options, run};

const USAGE: &str = "\
usage: simulate [--crashes N] [--seed S] [--seconds N] [--bug NAME] [--quic] [--trace] [--keep-going]

  --crashes N   stop after N crashes (default 10000)
  --seed S      begin with seed S (default 0); without --crashes and --seconds, run this seed alone
  --seconds N   stop after N seconds
  --bug NAME    plant a bug of tests/src/sim/bug.rs, which must be found
  --quic        let clients speak QUIC in every seed, and not only in one of eight
  --keep-going  count failing seeds, and go on with the next
  --trace       print what happens to standard error";

struct Arguments {
    crashes: u64,
    seed: u64,
    seconds: Option<u64>,
    bug: Option<Bug>,
    quic: bool,
    trace: bool,
    keep_going: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        crashes: 10_000,
        seed: 0,
        seconds: None,
        bug: None,
        quic: false,
        trace: false,
        keep_going: false,
    };
    let (mut seeded, mut limited) = (false, false);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        if name == "--trace" {
            parsed.trace = true;
            continue;
        }
        if name == "--quic" {
            parsed.quic = true;
            continue;
        }
        if name == "--keep-going" {
            parsed.keep_going = true;
            continue;
        }
        if !["--crashes", "--seed", "--seconds", "--bug"].contains(&name.as_str()) {
            return Err(format!("{name:?} is not an option\n{USAGE}"));
        }
        let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
        if name == "--bug" {
            let bug = Bug::named(&value);
            parsed.bug = Some(bug.ok_or_else(|| format!("{value:?} is none of {:?}\n{USAGE}", Bug::ALL))?);
            continue;
        }
        let number = value.parse().map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
        match name.as_str() {
            "--crashes" => (parsed.crashes, limited) = (number, true),
            "--seed" => (parsed.seed, seeded) = (number, true),
            _ => (parsed.seconds, limited) = (Some(number), true),
        }
    }
    if seeded && !limited {
        parsed.crashes = 1;
    }
    Ok(parsed)
}

fn report(counts: &Counts, started: Instant) -> String {
    let seconds = started.elapsed().as_secs_f64();
    format!(
        "{} seeds, {} crashes ({} in recovery), {} restarts, {} events, {} pushes, {} turns, {} snapshots, {} QUIC connections, \
         {} datagrams in {seconds:.1} s: \
         {:.0} seeds/s, {:.0} crashes/s",
        counts.seeds,
        counts.crashes,
        counts.recovery_crashes,
        counts.restarts,
        counts.events,
        counts.pushes,
        counts.turns,
        counts.snapshots,
        counts.connections,
        counts.datagrams,
        counts.seeds as f64 / seconds,
        counts.crashes as f64 / seconds,
    )
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if !arguments.trace {
        // A panic is a finding, reported below with its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let options = Options { bug: arguments.bug, quic: arguments.quic, trace: arguments.trace };
    let started = Instant::now();
    let limit = arguments.seconds.map(Duration::from_secs);
    let mut counts = Counts::default();
    let mut printed = started;
    let mut seed = arguments.seed;
    let mut failures = 0_u64;
    let mut digest = 0;
    loop {
        match run(seed, options) {
            Ok(passed) => {
                counts.add(passed.counts);
                digest = passed.trace_hash;
            }
            Err(failed) if arguments.keep_going => {
                println!("{failed}");
                failures += 1;
            }
            Err(failed) => {
                eprintln!("{failed}");
                eprintln!("after {}", report(&counts, started));
                eprintln!(
                    "replay: cargo run --release -p escapement-tests --bin simulate -- --seed {}{} --trace",
                    failed.seed,
                    if arguments.quic { " --quic" } else { "" },
                );
                return ExitCode::FAILURE;
            }
        }
        seed += 1;
        if counts.crashes >= arguments.crashes || limit.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        if printed.elapsed() >= Duration::from_secs(5) {
            printed = Instant::now();
            println!("{}", report(&counts, started));
        }
    }
    println!("{}", report(&counts, started));
    if failures > 0 {
        println!("{failures} seeds failed");
        return ExitCode::FAILURE;
    }
    println!("no promise was broken; the last seed's trace has digest {digest:016x}");
    ExitCode::SUCCESS
}
