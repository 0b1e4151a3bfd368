//! Runs seeds of the simulator until as many crashes as asked for have been survived.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use escapement_tests::sim::{Bug, Options, Tally, run};

const USAGE: &str = "\
usage: simulate [--crashes N] [--seed S] [--seconds N] [--bug NAME] [--quic] [--trace] [--keep-going] [--state FILE]

  --crashes N   stop after N crashes (default 10000; none with --seconds); with --state earlier ones count too
  --seed S      begin with seed S (default 0); without --crashes and --seconds, run this seed alone
  --seconds N   stop after N seconds of this invocation
  --bug NAME    plant a bug of tests/src/sim/bug.rs, which must be found
  --quic        let clients speak QUIC in every seed, and not only in one of eight
  --keep-going  count failing seeds, and go on with the next
  --state FILE  go on after the last seed that FILE names, and keep seeds, counts and failing seeds there
  --trace       print what happens to standard error";

struct Arguments {
    crashes: u64,
    seed: u64,
    seconds: Option<u64>,
    bug: Option<Bug>,
    quic: bool,
    trace: bool,
    keep_going: bool,
    state: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        crashes: 0,
        seed: 0,
        seconds: None,
        bug: None,
        quic: false,
        trace: false,
        keep_going: false,
        state: None,
    };
    let (mut seeded, mut crashes) = (false, None);
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
        if !["--crashes", "--seed", "--seconds", "--bug", "--state"].contains(&name.as_str()) {
            return Err(format!("{name:?} is not an option\n{USAGE}"));
        }
        let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
        if name == "--bug" {
            let bug = Bug::named(&value);
            parsed.bug = Some(bug.ok_or_else(|| format!("{value:?} is none of {:?}\n{USAGE}", Bug::ALL))?);
            continue;
        }
        if name == "--state" {
            parsed.state = Some(value.into());
            continue;
        }
        let number = value.parse().map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
        match name.as_str() {
            "--crashes" => crashes = Some(number),
            "--seed" => (parsed.seed, seeded) = (number, true),
            _ => parsed.seconds = Some(number),
        }
    }
    if parsed.state.is_some() && (seeded || parsed.bug.is_some()) {
        return Err(format!(
            "--state counts clean seeds from the one that is next: without --seed and --bug\n{USAGE}"
        ));
    }
    let default = match (seeded, parsed.seconds) {
        (_, Some(_)) => u64::MAX,
        (true, None) => 1,
        (false, None) => 10_000,
    };
    parsed.crashes = crashes.unwrap_or(default);
    Ok(parsed)
}

fn report(tally: &Tally) -> String {
    let Tally { counts, took_ms, .. } = tally;
    let seconds = *took_ms as f64 / 1_000.0;
    format!(
        "{} seeds, {} crashes ({} in recovery), {} restarts, {} events, {} pushes, {} turns, {} snapshots, {} listings, {} QUIC connections, \
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
        counts.listings,
        counts.connections,
        counts.datagrams,
        counts.seeds as f64 / seconds,
        counts.crashes as f64 / seconds,
    )
}

/// Seeds from the next on, until a limit is reached. Answers the digest of the last seed's trace.
fn campaign(arguments: &Arguments, tally: &mut Tally) -> std::io::Result<u64> {
    let options = Options { bug: arguments.bug, quic: arguments.quic, trace: arguments.trace };
    let limit = arguments.seconds.map(Duration::from_secs);
    let (started, before_ms) = (Instant::now(), tally.took_ms);
    let mut printed = started;
    let mut digest = 0;
    loop {
        let ran = run(tally.next_seed, options);
        tally.next_seed += 1;
        tally.took_ms = before_ms + started.elapsed().as_millis() as u64;
        let mut is_over = limit.is_some_and(|limit| started.elapsed() >= limit);
        match ran {
            Ok(passed) => {
                tally.counts.add(passed.counts);
                digest = passed.trace_hash;
            }
            Err(failed) => {
                println!("{failed}");
                tally.failed.push(failed.seed);
                is_over |= !arguments.keep_going;
            }
        }
        is_over |= tally.counts.crashes >= arguments.crashes;
        let is_time = printed.elapsed() >= Duration::from_secs(5);
        if is_over || is_time {
            printed = Instant::now();
            if let Some(path) = &arguments.state {
                tally.write(path)?;
            }
            println!("{}", report(tally));
        }
        if is_over {
            return Ok(digest);
        }
    }
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let state = arguments.state.as_deref();
    let kept = state.map_or(Ok(None), |path| Tally::read(path).map_err(|error| (path, error)));
    let mut tally = match kept {
        Ok(kept) => kept.unwrap_or(Tally { next_seed: arguments.seed, ..Tally::default() }),
        Err((path, error)) => {
            eprintln!("{} can't be gone on from: {error}; give another file", path.display());
            return ExitCode::from(2);
        }
    };
    if !arguments.trace {
        // A panic is a finding, reported with its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let digest = match campaign(&arguments, &mut tally) {
        Ok(digest) => digest,
        Err(error) => {
            eprintln!("the state can't be written: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(first) = tally.failed.first() {
        eprintln!("{} seeds failed: {:?}", tally.failed.len(), tally.failed);
        eprintln!(
            "replay: cargo run --release -p escapement-tests --bin simulate -- --seed {first}{} --trace",
            if arguments.quic { " --quic" } else { "" },
        );
        return ExitCode::FAILURE;
    }
    println!("no promise was broken; the last seed's trace has digest {digest:016x}");
    ExitCode::SUCCESS
}
