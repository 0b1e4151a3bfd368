//! One shard: its log as a start would read it, what replaying it comes to, and the runs that it speaks of.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use escapement_engine::far::{RunError, RunFiles, RunId};
use escapement_engine::record::records;
use escapement_engine::{ApplyError, Shard, ShardConfig};
use escapement_wal::format::{
    Place, SUPER_COPY_COUNT, SUPER_COPY_SIZE_BYTES, SegmentHeaderError, Superblock, extent_size_bytes,
};
use escapement_wal::inspect::{InspectedSegment, inspect};
use escapement_wal::recovery::table::RecoveryCase;
use escapement_wal::{
    Directory, FileId, FsDirectory, LogIdentity, OpenError, RUN_DIR, RecoveredBlock, WalConfig, check,
};

use super::Finding;
use super::run::RunCheck;
use crate::cli::runs::{LoggedNames, LoggedRuns, NamesFault, check_names};
use crate::open_files::explained;
use crate::runs::RunDirectory;

/// What was found in a shard.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) blocks: u64,
    pub(super) records: u64,
    /// `None` where the log could not be replayed.
    pub(super) pending: Option<u64>,
    /// Of these, in runs; `None` where a run's blocks cannot be found.
    pub(super) far: Option<u64>,
    /// Runs that the log speaks of and whose files are there.
    pub(super) runs: u64,
    /// Read and compared with checksums.
    pub(super) bytes: u64,
    pub(super) findings: Vec<Finding>,
}

/// Checks the shard in `dir`.
pub(super) fn check_shard(dir: &Path, identity: LogIdentity) -> Checked {
    let mut checked = Checked::default();
    if !dir.is_dir() {
        let what = "the shard's directory is missing: restore it from a copy; it held acknowledged events";
        checked.findings.push(Finding::damaged(identity.shard, String::new(), what.into()));
        return checked;
    }
    let mut look = Look {
        dir,
        identity,
        files: RunDirectory(FsDirectory::read_only(dir)),
        shard: Shard::new(replay_config(identity)),
        runs: LoggedRuns::default(),
        fault: None,
        is_whole: true,
        checked,
    };
    look.check_super();
    look.check_log();
    look.check_runs();
    look.check_state();
    look.checked
}

/// Nothing of it but the shard's number changes what replay comes to.
pub(in crate::cli) fn replay_config(identity: LogIdentity) -> ShardConfig {
    ShardConfig {
        shard: identity.shard,
        shard_count: identity.shard_count,
        memory_bytes_max: usize::MAX,
        admission_per_s: 0,
        block_size_bytes_max: WalConfig::default().records_size_bytes_max(),
        horizon_ms: 0,
        run_size_bytes: 0,
        names_run_size_bytes: usize::MAX,
        batch_count_max: 1,
        seed: 0,
    }
}

/// A shard that is being looked at.
struct Look<'a> {
    dir: &'a Path,
    identity: LogIdentity,
    files: RunDirectory<FsDirectory>,
    shard: Shard,
    runs: LoggedRuns,
    /// The first block that could not be replayed, and why.
    fault: Option<(u64, ApplyError)>,
    /// Whether the log was read to its end.
    is_whole: bool,
    checked: Checked,
}

impl Look<'_> {
    fn damaged(&mut self, file: impl Into<String>, what: String) {
        self.checked.findings.push(Finding::damaged(self.identity.shard, file.into(), what));
    }

    fn noted(&mut self, file: impl Into<String>, what: String) {
        self.checked.findings.push(Finding::noted(self.identity.shard, file.into(), what));
    }

    /// The copies of `SUPER` one by one: opening needs two, and mends the others.
    fn check_super(&mut self) {
        // What is wrong with the file as a whole is for the log's check to say.
        let Ok(bytes) = std::fs::read(self.dir.join(FileId::Super.path())) else { return };
        self.checked.bytes += bytes.len() as u64;
        if Superblock::choose(&bytes).is_err() {
            return;
        }
        let generations = Superblock::generations(&bytes);
        for (number, generation) in generations.iter().enumerate() {
            if generation.is_some() {
                continue;
            }
            let offset = number * SUPER_COPY_SIZE_BYTES;
            let what = format!(
                "copy {} of {SUPER_COPY_COUNT} is damaged: the log opens by the others, and the next start writes it again; \
                 only a loss of power during a write explains it, otherwise distrust the disk",
                number + 1
            );
            let finding = Finding::damaged(self.identity.shard, FileId::Super.path(), what);
            self.checked.findings.push(Finding { offset: Some(offset as u64), ..finding });
        }
        let mut intact: Vec<u64> = generations.into_iter().flatten().collect();
        intact.dedup();
        if intact.len() > 1 {
            let what = "its copies are not all of one generation: its last write was cut short, and the next start evens them";
            self.noted(FileId::Super.path(), what.into());
        }
    }

    fn check_log(&mut self) {
        let Look { files, shard, runs, fault, checked, identity, .. } = self;
        let mut visit = |block: RecoveredBlock<'_>| {
            checked.blocks += 1;
            checked.records += u64::from(block.record_count);
            checked.bytes += extent_size_bytes(block.records.len()) as u64;
            let mut count = 0;
            for record in records(block.records).map_while(Result::ok) {
                count += 1;
                runs.take(&record);
            }
            if count != block.record_count {
                let what = format!("it holds {count} records, and its header says {}", block.record_count);
                let finding = Finding::damaged(identity.shard, String::new(), what);
                checked.findings.push(Finding { block: Some(block.seq.0), ..finding });
            }
            if fault.is_none() {
                let replayed = shard.replay_block(block.seq.0, block.records, files);
                *fault = replayed.err().map(|error| (block.seq.0, error));
            }
        };
        let mut log = FsDirectory::read_only(self.dir);
        let found = check(&mut log, *identity, &WalConfig::default(), &mut visit);
        // Its segments, to say in which file something is. Where they cannot be listed, the check has said so.
        let seen = inspect(self.dir).ok();
        let oldest =
            seen.as_ref().and_then(|seen| seen.superblock.ok()).map_or(1, |found| found.first_segment_id);
        let segments = seen.map(|seen| seen.segments).unwrap_or_default();
        match found {
            Ok(report) => {
                self.check_headers(&segments, oldest..=report.end_place.segment_id);
                let is_torn = matches!(
                    report.end,
                    RecoveryCase::FrameDamaged | RecoveryCase::HeaderDamaged | RecoveryCase::BodyDamaged
                );
                if is_torn {
                    let Place { segment_id, offset } = report.end_place;
                    let what =
                        "a torn write, which nothing says was ever acknowledged: the next start erases it";
                    let finding =
                        Finding::noted(self.identity.shard, name_of(&segments, segment_id), what.into());
                    self.checked.findings.push(Finding { offset: Some(u64::from(offset)), ..finding });
                }
            }
            Err(OpenError::Corrupt { first, last, case, segment_id, offset, token }) => {
                self.is_whole = false;
                let (intact, also) = self.look_behind(&segments, first.0, last.0);
                let what = format!(
                    "block {first} is damaged ({case:?}), and blocks {first} to {last} were acknowledged, {intact} of which \
                     are intact behind it: copy the directory, then restore it, or give all of them up with \
                     repair --accept-loss {token:016x}"
                );
                let finding = Finding::damaged(self.identity.shard, name_of(&segments, segment_id), what);
                self.checked.findings.push(Finding { block: Some(first.0), offset: Some(offset), ..finding });
                self.checked.findings.extend(also);
            }
            Err(error) => {
                self.is_whole = false;
                self.damaged(String::new(), explained(&error));
            }
        }
        for finding in &mut self.checked.findings {
            if let (true, Some(block)) = (finding.file.is_empty(), finding.block) {
                (finding.file, finding.offset) = place_of(&segments, block);
            }
        }
        if let Some((block, error)) = &self.fault
            && !matches!(error, ApplyError::Run(_))
        {
            let (file, offset) = place_of(&segments, *block);
            let what = format!(
                "block {block} can't be replayed, and the shard will not serve: {error}; its checksum holds, so that this is \
                 a mistake of the program that wrote it, or of another version: report it, and keep a copy"
            );
            let finding = Finding::damaged(self.identity.shard, file, what);
            self.checked.findings.push(Finding { block: Some(*block), offset, ..finding });
        }
    }

    /// What else is damaged among blocks behind the first damaged one, and how many are intact. Runs are known from those,
    /// too.
    fn look_behind(&mut self, segments: &[InspectedSegment], first: u64, last: u64) -> (u64, Vec<Finding>) {
        let mut intact = 0;
        let mut also = Vec::new();
        for segment in segments {
            for extent in segment.extents() {
                let Some(seq) = extent.header.map(|header| header.block_seq.0) else { continue };
                if seq <= first || seq > last {
                    continue;
                }
                if let Some(block) = extent.block {
                    intact += 1;
                    records(block.records()).map_while(Result::ok).for_each(|record| self.runs.take(&record));
                } else {
                    let what = format!("block {seq} is damaged as well");
                    let finding = Finding::damaged(self.identity.shard, segment.file.path(), what);
                    let offset = Some(u64::from(extent.frame.place.offset));
                    also.push(Finding { block: Some(seq), offset, ..finding });
                }
            }
        }
        (intact, also)
    }

    /// Headers of segment files that cannot be read: opening finds a segment by its first block all the same.
    fn check_headers(&mut self, segments: &[InspectedSegment], mut live: RangeInclusive<u64>) {
        let ids: Vec<u64> =
            segments.iter().filter_map(|segment| Some(segment.header.ok()?.segment_id)).collect();
        let is_one_hidden = live.any(|id| !ids.contains(&id));
        let unreadable = segments.iter().filter(|segment| segment.header == Err(SegmentHeaderError::Damaged));
        for segment in unreadable {
            if is_one_hidden {
                let what = "its header is damaged: the log is read by what its blocks say, and its blocks are intact";
                self.damaged(segment.file.path(), what.into());
            } else {
                let what =
                    "its header can't be read: the log needs nothing in it, and a start prepares it again";
                self.noted(segment.file.path(), what.into());
            }
        }
    }

    /// Every run that the log speaks of, and every file beside them.
    fn check_runs(&mut self) {
        let names = match self.files.0.list(RUN_DIR) {
            Ok(names) => names,
            Err(error) => return self.damaged(RUN_DIR, format!("it can't be listed: {error}")),
        };
        let mut there = BTreeMap::new();
        for name in names {
            let Some(FileId::Run(run)) = FileId::from_run_name(&name) else {
                self.noted(
                    format!("{RUN_DIR}/{name}"),
                    "it is no file of this shard, and a start leaves it alone".into(),
                );
                continue;
            };
            match self.files.size(RunId(run)) {
                Ok(size_bytes) => there.extend(size_bytes.map(|size_bytes| (RunId(run), size_bytes))),
                Err(error) => {
                    self.damaged(FileId::Run(run).path(), format!("it can't be looked at: {error}"));
                }
            }
        }
        let runs = std::mem::take(&mut self.runs);
        let mut far = Some(0);
        for (run, logged) in &runs.events {
            let Some(size_bytes) = there.remove(run) else {
                if logged.is_needed() {
                    far = None;
                    self.missing(*run, logged.moved - logged.loaded.min(logged.moved));
                }
                continue;
            };
            self.checked.runs += 1;
            let is_replayed = self.is_whole && self.fault.is_none();
            let (bytes, pending) = RunCheck {
                shard: self.identity.shard,
                run: *run,
                logged,
                replayed: is_replayed.then_some(&self.shard),
                files: &mut self.files,
                findings: &mut self.checked.findings,
            }
            .check(size_bytes);
            self.checked.bytes += bytes;
            far = far.zip(pending).map(|(far, pending)| far + pending);
        }
        self.checked.far = far.filter(|_| self.is_whole);
        for (run, logged) in runs.names {
            let size_bytes = there.remove(&run);
            if !logged.is_ended {
                self.check_names_run(run, logged, size_bytes);
            }
        }
        for (RunId(run), size_bytes) in there {
            let then = if self.is_whole {
                "the log does not know it: left over, and the next start removes it"
            } else {
                "the log can't be read to its end, so that it is not known whether it is needed"
            };
            self.noted(FileId::Run(run).path(), format!("{then} ({size_bytes} bytes)"));
        }
    }

    /// A run of names: its file, block for block.
    fn check_names_run(&mut self, run: RunId, logged: LoggedNames, size_bytes: Option<u64>) {
        let (shard, file) = (self.identity.shard, FileId::Run(run.0).path());
        let (footer, faults) = match check_names(&mut self.files, shard, run, logged) {
            Ok(checked) => checked,
            Err(error) => return self.damaged(file, format!("it can't be read: {error}")),
        };
        self.checked.runs += u64::from(size_bytes.is_some());
        self.checked.bytes += size_bytes.unwrap_or(0);
        if footer.is_some_and(|footer| footer.is_given_up) {
            let what = "its names were given up: what was published under them may have been accepted again";
            self.noted(file.clone(), what.into());
        }
        for NamesFault { block, what } in faults {
            let then = if block.is_some() {
                "the shard stops when it needs the block"
            } else {
                "the shard will not serve"
            };
            let what = format!(
                "{what}; it holds names of events, {then}: restore it from a copy, or give it up with repair"
            );
            let finding = Finding::damaged(shard, file.clone(), what);
            let (block, offset) = block.map(|(block, offset)| (u64::from(block), offset)).unzip();
            self.checked.findings.push(Finding { block, offset, ..finding });
        }
    }

    fn missing(&mut self, run: RunId, blocks: u32) {
        let held = if blocks > 0 {
            format!("pending events are in {blocks} of its blocks and nowhere else, and ")
        } else {
            String::new()
        };
        let what = format!("it is missing: {held}the shard will not serve: restore the file from a copy");
        self.damaged(FileId::Run(run.0).path(), what);
    }

    /// What replay has come to, where nothing was found before that explains it.
    fn check_state(&mut self) {
        let is_told = |is_it: &dyn Fn(&str) -> bool| {
            self.checked.findings.iter().any(|finding| finding.is_damage && is_it(&finding.file))
        };
        if let Some((block, ApplyError::Run(error))) = &self.fault {
            let file = FileId::Run(run_of(error).0).path();
            if !is_told(&|told| told == file) {
                let what = format!("block {block} can't be replayed, and the shard will not serve: {error}");
                self.damaged(file, what);
            }
            return;
        }
        if self.fault.is_some() || !self.is_whole || is_told(&|file| file.starts_with(RUN_DIR)) {
            return;
        }
        if let Err(error) = self.shard.replayed() {
            return self.damaged(FileId::Run(run_of(&error).0).path(), error.to_string());
        }
        if let Err(broken) = self.shard.audit() {
            let what =
                format!("replaying the log comes to what can't be: {broken}; report it, and keep a copy");
            return self.damaged(String::new(), what);
        }
        let stats = self.shard.stats();
        self.checked.pending = Some(stats.pending);
        if self.checked.far.is_some_and(|far| far != stats.far) {
            let (files, log) = (self.checked.far.unwrap_or(0), stats.far);
            self.damaged(
                RUN_DIR,
                format!("its files hold {files} pending events, and replaying the log comes to {log}"),
            );
        }
    }
}

fn run_of(error: &RunError) -> RunId {
    match error {
        RunError::Missing(run) | RunError::Io(run, _) | RunError::Damaged(run, _) => *run,
    }
}

fn name_of(segments: &[InspectedSegment], segment_id: u64) -> String {
    let is_it =
        |segment: &&InspectedSegment| segment.header.is_ok_and(|header| header.segment_id == segment_id);
    let found = segments.iter().find(is_it).map(|segment| segment.file.path());
    found.unwrap_or_else(|| format!("segment {segment_id}"))
}

/// The file and the offset where a block is.
fn place_of(segments: &[InspectedSegment], block: u64) -> (String, Option<u64>) {
    for segment in segments {
        let is_it = |extent: &escapement_wal::inspect::InspectedExtent<'_>| {
            extent.block.is_some_and(|found| found.header().block_seq.0 == block)
        };
        if let Some(extent) = segment.extents().find(is_it) {
            return (segment.file.path(), Some(u64::from(extent.frame.place.offset)));
        }
    }
    (String::new(), None)
}
