//! What many seeds came to, kept in a file from one invocation to the next.

use std::fs;
use std::io;
use std::path::Path;

use super::Counts;

/// The first line of the file: another simulator's counts are not added to.
const TITLE: &str = "simulated seeds, version 1";

/// Seeds run so far, in all invocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The seed that is next.
    pub next_seed: u64,
    /// What those before it went through.
    pub counts: Counts,
    /// Time that took, in ms.
    pub took_ms: u64,
    /// Seeds that broke a promise, in order.
    pub failed: Vec<u64>,
}

impl Tally {
    /// Reads what [`Tally::write`] wrote. `None` where there is no file.
    ///
    /// # Errors
    /// Of the operating system; `InvalidData` with the line that is wrong.
    pub fn read(path: &Path) -> io::Result<Option<Tally>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let wrong = |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the line {line:?}"));
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(wrong(text.lines().next().unwrap_or_default()));
        }
        let mut tally = Tally::default();
        let mut missing = tally.fields().map(|(name, _)| name).to_vec();
        for line in lines {
            let (name, value) = line.split_once(' ').ok_or_else(|| wrong(line))?;
            let value: u64 = value.parse().map_err(|_| wrong(line))?;
            if name == "failed" {
                tally.failed.push(value);
                continue;
            }
            let at = missing.iter().position(|missing| *missing == name).ok_or_else(|| wrong(line))?;
            missing.swap_remove(at);
            for (field, place) in tally.fields() {
                if field == name {
                    *place = value;
                }
            }
        }
        match missing.first() {
            Some(name) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has no line for {name}")))
            }
            None => Ok(Some(tally)),
        }
    }

    /// Writes it in place of what is there, which stays whole until then.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn write(&mut self, path: &Path) -> io::Result<()> {
        let mut text = format!("{TITLE}\n");
        for (name, value) in self.fields() {
            text.push_str(&format!("{name} {value}\n"));
        }
        for seed in &self.failed {
            text.push_str(&format!("failed {seed}\n"));
        }
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(new, path)
    }

    fn fields(&mut self) -> [(&'static str, &mut u64); 11] {
        let Tally { next_seed, counts, took_ms, .. } = self;
        [
            ("next_seed", next_seed),
            ("took_ms", took_ms),
            ("seeds", &mut counts.seeds),
            ("crashes", &mut counts.crashes),
            ("recovery_crashes", &mut counts.recovery_crashes),
            ("restarts", &mut counts.restarts),
            ("events", &mut counts.events),
            ("pushes", &mut counts.pushes),
            ("turns", &mut counts.turns),
            ("connections", &mut counts.connections),
            ("datagrams", &mut counts.datagrams),
        ]
    }
}
