//! The decision about each place where the next block should be, as an enumerated table.
//!
//! `docs/formats/wal-v1.md` has the same table; a test walks over every combination.

use crate::log::BlockSeq;

/// What the frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// All zero.
    Blank,
    /// Not a frame.
    Damaged,
    /// Intact, written for another segment or another offset: left over from a recycled segment, or misdirected.
    Elsewhere,
    /// Intact, written for this place.
    Here,
}

/// What the block's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderState {
    /// Its own checksum fails, or its fields are impossible.
    Damaged,
    /// Intact, of another cluster or shard.
    Foreign,
    /// Intact, of this log.
    Ours,
}

/// What the rest of the extent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyState {
    /// The block's checksum fails, or the padding is not zero.
    Damaged,
    /// As it was written.
    Intact,
}

/// How the block's sequence stands to the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceState {
    /// Lower.
    Behind,
    /// Equal.
    Expected,
    /// Higher.
    Ahead,
}

/// What is seen at one place. Later fields mean something only where the earlier ones are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The frame.
    pub frame: FrameState,
    /// The block's header.
    pub header: HeaderState,
    /// Records and padding.
    pub body: BodyState,
    /// The block's sequence.
    pub sequence: SequenceState,
    /// Whether the block names the checksum of the block before it.
    pub chained: bool,
    /// Whether the block's epoch is at least that of the block before it.
    pub epoch_holds: bool,
}

/// The cases, in the order in which they are tried: the first that applies is the one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecoveryCase {
    /// No segment file claims to hold this part of the log.
    SegmentMissing,
    /// The segment has no room for another extent.
    SegmentEnd,
    /// Nothing was ever written here.
    Blank,
    /// Something that is not a frame.
    FrameDamaged,
    /// An extent written for another place.
    FrameElsewhere,
    /// A header that can't be believed.
    HeaderDamaged,
    /// A block of another log.
    HeaderForeign,
    /// A believable header, and records or padding that are not what it describes.
    BodyDamaged,
    /// A good block, lower in the chain.
    SequenceBehind,
    /// A good block, higher in the chain.
    SequenceAhead,
    /// A good block that follows another block than the one accepted before it.
    ChainBroken,
    /// A good block of an epoch older than the block before it.
    EpochRegressed,
    /// The next block.
    Accept,
}

impl Observation {
    /// The case that this observation is.
    #[must_use]
    pub fn case(self) -> RecoveryCase {
        match self {
            Observation { frame: FrameState::Blank, .. } => RecoveryCase::Blank,
            Observation { frame: FrameState::Damaged, .. } => RecoveryCase::FrameDamaged,
            Observation { frame: FrameState::Elsewhere, .. } => RecoveryCase::FrameElsewhere,
            Observation { header: HeaderState::Damaged, .. } => RecoveryCase::HeaderDamaged,
            Observation { header: HeaderState::Foreign, .. } => RecoveryCase::HeaderForeign,
            Observation { body: BodyState::Damaged, .. } => RecoveryCase::BodyDamaged,
            Observation { sequence: SequenceState::Behind, .. } => RecoveryCase::SequenceBehind,
            Observation { sequence: SequenceState::Ahead, .. } => RecoveryCase::SequenceAhead,
            Observation { chained: false, .. } => RecoveryCase::ChainBroken,
            Observation { epoch_holds: false, .. } => RecoveryCase::EpochRegressed,
            Observation {
                frame: FrameState::Here,
                header: HeaderState::Ours,
                body: BodyState::Intact,
                sequence: SequenceState::Expected,
                chained: true,
                epoch_holds: true,
            } => RecoveryCase::Accept,
        }
    }
}

/// What to do at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Hand the block over and go on behind it.
    Accept,
    /// The log ends here: what follows was never acknowledged.
    End,
    /// What should be here was acknowledged: refuse.
    Corrupt,
}

/// The verdict at the place of block `expected`, where `evidence` is the highest block known to have been acknowledged.
#[must_use]
pub fn verdict(case: RecoveryCase, expected: BlockSeq, evidence: BlockSeq) -> Verdict {
    match case {
        RecoveryCase::Accept => Verdict::Accept,
        _ if evidence >= expected => Verdict::Corrupt,
        _ => Verdict::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: [FrameState; 4] =
        [FrameState::Blank, FrameState::Damaged, FrameState::Elsewhere, FrameState::Here];
    const HEADERS: [HeaderState; 3] = [HeaderState::Damaged, HeaderState::Foreign, HeaderState::Ours];
    const BODIES: [BodyState; 2] = [BodyState::Damaged, BodyState::Intact];
    const SEQUENCES: [SequenceState; 3] =
        [SequenceState::Behind, SequenceState::Expected, SequenceState::Ahead];

    fn every_observation() -> Vec<Observation> {
        let mut all = Vec::new();
        for frame in FRAMES {
            for header in HEADERS {
                for body in BODIES {
                    for sequence in SEQUENCES {
                        for (chained, epoch_holds) in
                            [(false, false), (false, true), (true, false), (true, true)]
                        {
                            all.push(Observation { frame, header, body, sequence, chained, epoch_holds });
                        }
                    }
                }
            }
        }
        all
    }

    /// One row of the document's table: a name, and whether an observation shows that fault.
    type Row = (RecoveryCase, fn(&Observation) -> bool);

    const ROWS: [Row; 10] = [
        (RecoveryCase::Blank, |seen| seen.frame == FrameState::Blank),
        (RecoveryCase::FrameDamaged, |seen| seen.frame == FrameState::Damaged),
        (RecoveryCase::FrameElsewhere, |seen| seen.frame == FrameState::Elsewhere),
        (RecoveryCase::HeaderDamaged, |seen| seen.header == HeaderState::Damaged),
        (RecoveryCase::HeaderForeign, |seen| seen.header == HeaderState::Foreign),
        (RecoveryCase::BodyDamaged, |seen| seen.body == BodyState::Damaged),
        (RecoveryCase::SequenceBehind, |seen| seen.sequence == SequenceState::Behind),
        (RecoveryCase::SequenceAhead, |seen| seen.sequence == SequenceState::Ahead),
        (RecoveryCase::ChainBroken, |seen| !seen.chained),
        (RecoveryCase::EpochRegressed, |seen| !seen.epoch_holds),
    ];

    #[test]
    fn every_combination_is_the_first_fault_it_shows() {
        let all = every_observation();
        assert_eq!(all.len(), 288);
        for seen in all {
            let first = ROWS.iter().find(|(_, shows)| shows(&seen)).map_or(RecoveryCase::Accept, |row| row.0);
            assert_eq!(seen.case(), first, "{seen:?}");
        }
    }

    #[test]
    fn only_one_combination_of_all_is_accepted() {
        let accepted = every_observation().into_iter().filter(|seen| seen.case() == RecoveryCase::Accept);
        assert_eq!(accepted.count(), 1);
    }

    #[test]
    fn every_case_but_accept_is_corrupt_exactly_where_evidence_reaches_it() {
        let mut cases: Vec<RecoveryCase> = ROWS.iter().map(|row| row.0).collect();
        cases.extend([RecoveryCase::SegmentMissing, RecoveryCase::SegmentEnd]);
        for case in cases {
            for evidence in 0..20 {
                let want = if evidence >= 10 { Verdict::Corrupt } else { Verdict::End };
                assert_eq!(verdict(case, BlockSeq(10), BlockSeq(evidence)), want, "{case:?} {evidence}");
            }
        }
        assert_eq!(verdict(RecoveryCase::Accept, BlockSeq(10), BlockSeq(99)), Verdict::Accept);
    }
}
