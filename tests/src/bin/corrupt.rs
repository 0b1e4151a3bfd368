//! Makes faults on a shard's files at rest, and says what came of them.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::process::ExitCode;
use std::time::Instant;

use escapement_tests::corruption::{Campaign, Counts, Failed, Kind, Options, Verdict};

const USAGE: &str = "\
usage: corrupt [--faults N] [--seed S] [--give-up] [--stale-runs] [--keep-going]

  --faults N    make N faults (default 10000)
  --seed S      begin with seed S (default 0); without --faults, make this fault alone
  --give-up     accept every loss that a log offers to accept: a planted bug, which must be found
  --stale-runs  put back an earlier run with the same number, wherever there was one
  --keep-going  count failing seeds, and go on with the next";

struct Arguments {
    faults: u64,
    seed: u64,
    options: Options,
    keep_going: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { faults: 10_000, seed: 0, options: Options::default(), keep_going: false };
    let (mut seeded, mut limited) = (false, false);
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        match name.as_str() {
            "--give-up" => parsed.options.give_up = true,
            "--stale-runs" => parsed.options.stale_runs = true,
            "--keep-going" => parsed.keep_going = true,
            "--faults" | "--seed" => {
                let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
                let number = value.parse();
                let number = number.map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
                if name == "--seed" {
                    (parsed.seed, seeded) = (number, true);
                } else {
                    (parsed.faults, limited) = (number, true);
                }
            }
            _ => return Err(format!("{name:?} is not an option\n{USAGE}")),
        }
    }
    if seeded && !limited {
        parsed.faults = 1;
    }
    Ok(parsed)
}

fn print(counts: &Counts) {
    print!("{:<18}", "");
    Verdict::ALL.iter().for_each(|verdict| print!("{:>12}", format!("{verdict:?}")));
    println!();
    for kind in Kind::ALL {
        print!("{:<18}", format!("{kind:?}"));
        Verdict::ALL.iter().for_each(|verdict| print!("{:>12}", counts.get(&(kind, *verdict)).unwrap_or(&0)));
        println!();
    }
    print!("{:<18}", "all");
    for verdict in Verdict::ALL {
        let of_verdict = counts.iter().filter(|((_, of), _)| *of == verdict);
        print!("{:>12}", of_verdict.map(|(_, count)| count).sum::<u64>());
    }
    println!();
}

fn main() -> ExitCode {
    let Arguments { faults, seed, options, keep_going } = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if faults > 1 {
        // A panic is a finding, reported below with its seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let started = Instant::now();
    let mut campaign = Campaign::new(options);
    let mut counts = Counts::new();
    let mut failures: Vec<Failed> = Vec::new();
    for seed in seed..seed + faults {
        match campaign.run(seed) {
            Ok(ended) => *counts.entry(ended).or_default() += 1,
            Err(failed) => {
                eprintln!("{failed}");
                failures.push(failed);
                if !keep_going {
                    break;
                }
            }
        }
    }
    print(&counts);
    println!("{} faults in {:.1} s", counts.values().sum::<u64>(), started.elapsed().as_secs_f64());
    let Some(first) = failures.first() else {
        println!("no promise was broken");
        return ExitCode::SUCCESS;
    };
    println!("{} faults broke a promise", failures.len());
    let planted = if options.give_up { " --give-up" } else { "" };
    let stale = if options.stale_runs { " --stale-runs" } else { "" };
    eprintln!(
        "again: cargo run --release -p escapement-tests --bin corrupt -- --seed {}{planted}{stale}",
        first.seed
    );
    ExitCode::FAILURE
}
