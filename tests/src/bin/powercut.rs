//! Cuts the power of a real node, again and again.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command speaks on its streams")]

use std::process::ExitCode;
use std::time::{Duration, Instant};

use escapement_tests::powercut::{Plan, missing, run};

const USAGE: &str = "\
usage: powercut [--cuts N] [--seed S] [--work SECONDS] [--seconds N] [--lies]

  --cuts N        make N cuts (default 100)
  --seed S        decides where they are and what is lost (default 1); what the node writes is another each time
  --work SECONDS  let the node work for so long (default 10)
  --seconds N     make no other cut after so long (default 600)
  --lies          let the disk forget what it said is safe: a planted bug, which must be found";

fn plan(mut given: impl Iterator<Item = String>) -> Result<Plan, String> {
    let mut plan = Plan {
        cuts: 100,
        seed: 1,
        work: Duration::from_secs(10),
        most: Duration::from_secs(600),
        lies: false,
    };
    while let Some(name) = given.next() {
        if name == "--lies" {
            plan.lies = true;
            continue;
        }
        let value = given.next().ok_or_else(|| format!("{name} wants a value\n{USAGE}"))?;
        let number: u64 =
            value.parse().map_err(|_| format!("{name} wants a number, not {value:?}\n{USAGE}"))?;
        match name.as_str() {
            "--cuts" => plan.cuts = number,
            "--seed" => plan.seed = number,
            "--work" => plan.work = Duration::from_secs(number),
            "--seconds" => plan.most = Duration::from_secs(number),
            _ => return Err(format!("{name:?} is not an option\n{USAGE}")),
        }
    }
    Ok(plan)
}

fn cut(plan: Plan) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    let dir = tempfile::tempdir().map_err(|error| format!("a temporary directory: {error}"))?;
    let began = Instant::now();
    let counts = run(plan, &program, dir.path())?;
    println!("{counts:?} in {:.1} s: no promise was broken", began.elapsed().as_secs_f64());
    Ok(())
}

fn main() -> ExitCode {
    // The node that is cut off is this program, too.
    if std::env::args().nth(1).is_some_and(|first| first == "serve") {
        return escapement_node::cli::run(std::env::args_os());
    }
    let plan = match plan(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    if let Some(what) = missing() {
        eprintln!("power cuts can't be made here: {what}");
        return ExitCode::from(2);
    }
    match cut(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    }
}
