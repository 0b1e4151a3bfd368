//! Damage to a shard's files at rest: faults by the thousand, each judged by what the shard does with them.
//!
//! A seed decides a life of a shard, [`LIFE_FAULTS`] seeds share one: events near and far, results, cancellations,
//! restarts, segments that are used again, runs that are moved and loaded. Then one fault is made on a copy of its
//! files, the copy is recovered, and plays on until all that is pending was delivered. Either the damage is noticed, by
//! a refusal, which changes no file, or because the shard holds what it can't read and delivers all else, or all comes as it
//! would have without it: no payload that was never
//! published, nothing acknowledged that is lost, nothing again that was done.
//!
//! One exception is allowed, and counted apart: where the fault has hit each proof that the newest blocks were
//! acknowledged, the log ends before them, in a state that the shard was once in ([`Verdict::InDoubt`]).

mod fault;
mod judge;
mod running;
mod scene;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use escapement_wal::memory::Rng;

pub use fault::Kind;
use judge::Played;
pub use judge::Verdict;
use scene::Scene;

/// Faults that are made on the files of one life, each on a copy.
pub const LIFE_FAULTS: u64 = 25;

/// How many faults of each kind ended how.
pub type Counts = BTreeMap<(Kind, Verdict), u64>;

/// A fault that was neither noticed nor harmless.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: {fault}: {what}")]
pub struct Failed {
    /// Which fault, of which life.
    pub seed: u64,
    /// The fault.
    pub fault: String,
    /// What was wrong.
    pub what: String,
}

/// What is done besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Every loss that a log offers to accept is accepted: a planted bug.
    pub give_up: bool,
    /// Where a life has one, the fault is a [`Kind::StaleRun`].
    pub stale_runs: bool,
}

/// Lives and their faults, one after the other.
#[derive(Debug)]
pub struct Campaign {
    options: Options,
    life: Option<(u64, Scene, Played)>,
}

impl Campaign {
    /// A campaign that has not begun.
    #[must_use]
    pub fn new(options: Options) -> Campaign {
        Campaign { options, life: None }
    }

    /// Makes the fault of this seed, and judges what comes of it. Neighbouring seeds one after the other are cheapest.
    ///
    /// # Errors
    /// The promise that was broken, or the message of a panic in the product.
    pub fn run(&mut self, seed: u64) -> Result<(Kind, Verdict), Failed> {
        let number = seed / LIFE_FAULTS;
        let failed = |fault: &str, what: String| Failed { seed, fault: fault.to_owned(), what };
        let life = match self.life.take().filter(|(of, ..)| *of == number) {
            Some(life) => life,
            None => {
                let lived = guarded(|| {
                    let scene = Scene::new(number);
                    let played = judge::undamaged(&scene)?;
                    Ok((number, scene, played))
                });
                lived.map_err(|what| failed("none yet", what))?
            }
        };
        let (_, scene, expected) = self.life.insert(life);
        let fault = fault::plant(scene, self.options.stale_runs, &mut Rng::new(!seed));
        let verdict = guarded(|| judge::judge(scene, &fault.files, expected, self.options.give_up));
        let verdict = verdict.map_err(|what| failed(&format!("{:?}, {}", fault.kind, fault.what), what))?;
        Ok((fault.kind, verdict))
    }
}

/// A panic of the product is a finding.
fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}
