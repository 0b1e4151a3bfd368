//! Damaged runs of names: what giving them up costs, and giving them up.
//!
//! A file that says that its names were given up takes the place of the damaged one, under the id that the log states. The
//! log stays as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use escapement_engine::far::{RunError, RunFiles, RunId};
use escapement_engine::names::format::NamesFooter;
use escapement_protocol::ShardId;
use escapement_wal::FileId;
use serde_json::json;

use super::super::moment::rfc3339;
use super::super::output::object;
use super::super::runs::{LoggedNames, LoggedRuns, check_names};

/// One damaged run.
#[derive(Debug)]
pub(super) struct LostRun {
    run: RunId,
    logged: LoggedNames,
    /// What is wrong with it first.
    what: String,
    /// Where it can be read.
    footer: Option<NamesFooter>,
}

/// The damaged runs of names of a shard.
#[derive(Debug)]
pub(super) struct LostNames {
    shard: ShardId,
    pub(super) token: u64,
    pub(super) runs: Vec<LostRun>,
}

impl LostRun {
    pub(super) fn file(&self) -> FileId {
        FileId::Run(self.run.0)
    }
}

impl LostNames {
    /// Reads all runs of names that the log needs.
    pub(super) fn look(
        shard: ShardId,
        files: &mut dyn RunFiles,
        logged: &LoggedRuns,
    ) -> io::Result<LostNames> {
        // As hard to type by mistake as that of a damaged log.
        let mut lost = LostNames { shard, token: u64::from(shard.0), runs: Vec::new() };
        for (run, logged) in logged.names.iter().filter(|(_, logged)| !logged.is_ended) {
            let (footer, faults) = check_names(files, shard, *run, *logged)?;
            let Some(fault) = faults.first() else { continue };
            let place = fault.block.map(|(block, _)| format!("block {block}: ")).unwrap_or_default();
            let what = format!("{place}{}", fault.what);
            lost.token =
                (lost.token ^ logged.footer_id ^ u64::from(run.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            lost.runs.push(LostRun { run: *run, logged: *logged, what, footer });
        }
        Ok(lost)
    }

    /// Whether the error is of one of these.
    pub(super) fn is_of(&self, error: &RunError) -> bool {
        let (RunError::Missing(of) | RunError::Io(of, _) | RunError::Damaged(of, _)) = error;
        self.runs.iter().any(|lost| lost.run == *of)
    }

    /// The report, a line for each run.
    pub(super) fn lines(&self, is_accepted: bool, as_json: bool) -> Vec<String> {
        let LostNames { shard: ShardId(shard), token, runs } = self;
        let line = |lost: &LostRun| {
            let file = lost.file();
            let names = lost.footer.as_ref().map(|footer| footer.index.len());
            let accepted =
                lost.footer.iter().flat_map(|footer| &footer.topics).map(|held| held.accepted).max();
            let accepted = accepted.map(rfc3339);
            if as_json {
                let facts = [
                    ("finding", json!(if is_accepted { "names_given_up" } else { "names_loss" })),
                    ("shard", json!(shard)),
                    ("token", json!(format!("{token:016x}"))),
                    ("file", json!(file.path())),
                    ("what", json!(lost.what)),
                    ("names", json!(names)),
                    ("accepted_until", json!(accepted)),
                ];
                return object(facts.into_iter()).to_string();
            }
            let verb = if is_accepted { "gives up" } else { "would give up" };
            let names = names.map_or_else(|| "an unknown number of".to_owned(), |names| names.to_string());
            let until = accepted.unwrap_or_else(|| "?".to_owned());
            format!(
                "shard {shard} {verb} {file} ({}): no event is lost, and {names} names of events accepted until {until} are \
                 forgotten, which are accepted a second time where they are published again within their window; token \
                 {token:016x}",
                lost.what
            )
        };
        runs.iter().map(line).collect()
    }

    /// Puts files that say so in the place of the damaged ones.
    pub(super) fn give_up(&self, dir: &Path) -> io::Result<()> {
        for lost in &self.runs {
            let path = dir.join(lost.file().path());
            let bytes = NamesFooter::given_up(self.shard, lost.run, lost.logged.footer_id);
            // Under a name that no start takes for a run's until it is whole.
            let partial = path.with_extension("partial");
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(dir.join(lost.file().dir()))?.sync_all()?;
        }
        Ok(())
    }
}
