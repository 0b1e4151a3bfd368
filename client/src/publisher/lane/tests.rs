//! A lane without its stream: what is written is read back, and answers come in every shape.

use std::time::Duration;

use escapement_protocol::frame::{AckDuplicate, AckException, Durability, Items};
use escapement_protocol::{EventView, Sequence, ShardId, WallMs};

use super::*;

/// First index, count, first sequence.
type Run = (u32, u32, u64);

struct Bench {
    state: LaneState,
    receipts: mpsc::UnboundedReceiver<TokenReceipt>,
}

impl Bench {
    fn new(options: PublisherOptions) -> Self {
        let (sender, receipts) = mpsc::unbounded_channel();
        Bench { state: LaneState::new(options, sender), receipts }
    }

    /// A batch of events named `token.0`, `token.1` and so on.
    fn batch(&mut self, token: u64, count: u32) {
        self.state.begin(TopicId(1));
        for n in 0..count {
            let id = format!("{token}.{n}");
            self.state.writer().push_spec(&EventSpec::new(Due::After(0), &id, b"")).expect("valid");
        }
        self.state.seal(Reply::Channel(token));
    }

    /// What leaves now: each frame's first number and the ids in it.
    fn take(&mut self, now: Instant) -> Vec<(u64, Vec<String>)> {
        let mut out = Vec::new();
        self.state.take_due(now, &mut out);
        let frames = out.iter().map(|frame| {
            let body = &frame[PREFIX_SIZE_BYTES..];
            let Ok(Frame::PublishBatch(batch)) = parse_body(FrameKind::PublishBatch, body) else {
                panic!("a lane sends batches")
            };
            let ids = batch.events.iter().map(|bytes| {
                let (event, _) = EventView::parse(bytes).expect("well-formed");
                String::from_utf8_lossy(event.id()).into_owned()
            });
            (batch.first_item, ids.collect())
        });
        frames.collect()
    }

    /// Answers everything before `through`: these runs of (first sequence, count), these items refused.
    fn answer(&mut self, through: u64, runs: &[(u64, u32)], refused: &[u64]) -> Result<(), FrameError> {
        self.answer_with(through, runs, refused, &[])
    }

    /// The same, where these items are duplicates of something scheduled for 99.
    fn answer_with(
        &mut self,
        through: u64,
        runs: &[(u64, u32)],
        refused: &[u64],
        duplicates: &[u64],
    ) -> Result<(), FrameError> {
        let duplicates: Vec<AckDuplicate> =
            duplicates.iter().map(|&item| AckDuplicate { item, schedule_time: WallMs(99) }).collect();
        let runs: Vec<AckRun> = runs
            .iter()
            .map(|&(first, count)| AckRun {
                first_sequence: Sequence(first),
                accepted: WallMs(7),
                count,
                shard: ShardId(3),
            })
            .collect();
        let exceptions: Vec<AckException> =
            refused.iter().map(|&item| AckException { item, retry_after_ms: 5, code: 30 }).collect();
        self.state.acknowledge(&PublishAck {
            through_item: through,
            durability: Durability::LOCAL_DISK,
            runs: Items::from(&runs[..]),
            exceptions: Items::from(&exceptions[..]),
            exhausted: "",
            duplicates: Items::from(&duplicates[..]),
        })
    }

    /// The next receipt: its token, its runs, and refused indices.
    fn receipt(&mut self) -> Option<(u64, Vec<Run>, Vec<u32>)> {
        let (token, receipt) = self.receipts.try_recv().ok()?;
        let receipt = receipt.expect("answered");
        let runs =
            receipt.runs.iter().map(|run| (run.first_index, run.count, run.first_sequence.0)).collect();
        Some((token, runs, receipt.refusals.iter().map(|refusal| refusal.index).collect()))
    }
}

fn ids(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[tokio::test]
async fn one_acknowledgement_answers_many_batches_and_many_answer_one() {
    let mut bench = Bench::new(PublisherOptions::default());
    bench.batch(0, 2);
    bench.batch(1, 3);
    bench.batch(2, 1);
    assert_eq!(bench.take(Instant::now()).len(), 3);
    // One run over two batches, broken by a refusal; the second batch is answered in two steps.
    bench.answer(4, &[(10, 3)], &[1]).expect("well-formed");
    assert_eq!(bench.receipt(), Some((0, vec![(0, 1, 10)], vec![1])));
    assert_eq!(bench.receipt(), None);
    bench.answer(6, &[(13, 1), (20, 1)], &[]).expect("well-formed");
    assert_eq!(bench.receipt(), Some((1, vec![(0, 2, 11), (2, 1, 13)], vec![])));
    assert_eq!(bench.receipt(), Some((2, vec![(0, 1, 20)], vec![])));
    assert!(bench.state.is_idle());
    assert_eq!(bench.state.stats().acknowledged + bench.state.stats().refused, 6);
}

#[tokio::test]
async fn a_duplicate_is_answered_with_the_id_of_the_first_and_says_so() {
    let mut bench = Bench::new(PublisherOptions::default());
    bench.batch(0, 2);
    bench.batch(1, 3);
    bench.take(Instant::now());
    // The last of the first batch and the first two of the second.
    bench.answer_with(5, &[(10, 1), (3, 2), (7, 1), (11, 1)], &[], &[1, 2, 3]).expect("well-formed");
    for (token, places, first_sequence) in [(0, vec![1], 3), (1, vec![0, 1], 4)] {
        let (of, receipt) = bench.receipts.try_recv().expect("a receipt");
        let receipt = receipt.expect("answered");
        assert_eq!(of, token);
        let duplicates: Vec<u32> = receipt.duplicates.iter().map(|duplicate| duplicate.index).collect();
        assert_eq!(duplicates, places);
        let first = receipt.answer(places[0], Due::At(WallMs(5))).expect("an answer").expect("accepted");
        assert!(first.duplicate);
        assert_eq!((first.event_id.sequence.0, first.event_id.schedule_time_ms), (first_sequence, 99));
        // The others are not.
        let other =
            receipt.answer(2 * token as u32, Due::At(WallMs(5))).expect("an answer").expect("accepted");
        assert_eq!((other.duplicate, other.event_id.schedule_time_ms), (false, 5));
    }
    assert_eq!((bench.state.stats().acknowledged, bench.state.stats().duplicates), (5, 3));
}

#[tokio::test]
async fn an_answer_to_what_was_not_sent_or_one_that_does_not_add_up_is_refused() {
    let mut bench = Bench::new(PublisherOptions::default());
    bench.batch(0, 2);
    assert!(bench.answer(2, &[(1, 2)], &[]).is_err(), "it was collected and not sent");
    bench.take(Instant::now());
    assert!(bench.answer(3, &[(1, 3)], &[]).is_err());
    assert!(bench.answer(2, &[(1, 1)], &[]).is_err());
    assert!(bench.answer(2, &[(1, 1)], &[7]).is_err());
    bench.answer(2, &[(1, 2)], &[]).expect("well-formed");
    assert!(bench.answer(2, &[(1, 2)], &[]).is_err(), "it is answered already");
}

#[tokio::test]
async fn a_new_stream_gets_what_is_unanswered_with_numbers_from_0_and_receipts_keep_their_places() {
    let mut bench = Bench::new(PublisherOptions::default());
    bench.batch(0, 1);
    bench.batch(1, 3);
    bench.take(Instant::now());
    bench.batch(2, 1);
    // The first batch is answered, of the second one event, the third has not left.
    bench.answer(2, &[(1, 2)], &[]).expect("well-formed");
    bench.state.restart().expect("frames of our own making");
    assert_eq!(bench.take(Instant::now()), [(0, ids(&["1.1", "1.2"])), (2, ids(&["2.0"]))]);
    assert_eq!(bench.state.stats().resent, 2);
    bench.batch(3, 1);
    assert_eq!(bench.take(Instant::now()), [(3, ids(&["3.0"]))]);
    // A second loss, before anything was answered.
    bench.state.restart().expect("frames of our own making");
    assert_eq!(bench.take(Instant::now()).len(), 3);
    bench.answer(4, &[(50, 4)], &[]).expect("well-formed");
    assert_eq!(bench.receipt(), Some((0, vec![(0, 1, 1)], vec![])));
    assert_eq!(bench.receipt(), Some((1, vec![(0, 1, 2), (1, 2, 50)], vec![])));
    assert_eq!(bench.receipt(), Some((2, vec![(0, 1, 52)], vec![])));
    assert_eq!(bench.receipt(), Some((3, vec![(0, 1, 53)], vec![])));
    assert!(bench.state.is_idle());
}

#[tokio::test]
async fn a_single_event_leaves_at_once_when_alone_and_in_company_after_lingering() {
    let options = PublisherOptions { linger: Duration::from_secs(1), ..PublisherOptions::default() };
    let mut bench = Bench::new(options);
    let now = Instant::now();
    let event = |id| EventSpec::new(Due::After(0), id, b"");
    let first = bench.state.add(TopicId(1), &event("a")).expect("valid");
    assert_eq!(bench.take(now), [(0, ids(&["a"]))]);
    let _second = bench.state.add(TopicId(1), &event("b")).expect("valid");
    let _third = bench.state.add(TopicId(1), &event("c")).expect("valid");
    assert_eq!(bench.take(now), [], "another is under way: these wait for company");
    assert_eq!(bench.take(now + Duration::from_secs(2)), [(1, ids(&["b", "c"]))]);
    bench.answer(1, &[(9, 1)], &[]).expect("well-formed");
    assert_eq!(first.await.expect("answered").expect("accepted").event_id.sequence, Sequence(9));
}

#[tokio::test]
async fn a_lane_that_fails_tells_everyone_who_waits() {
    let mut bench = Bench::new(PublisherOptions::default());
    bench.batch(0, 1);
    bench.take(Instant::now());
    bench.batch(1, 1);
    let waiting = bench.state.add(TopicId(1), &EventSpec::new(Due::After(0), "a", b"")).expect("valid");
    bench.state.fail(&ClientError::Closed);
    for expected in 0..2 {
        let (token, receipt) = bench.receipts.try_recv().expect("a word for each batch");
        assert_eq!(token, expected);
        assert!(matches!(receipt, Err(ClientError::Closed)));
    }
    assert!(matches!(waiting.await.expect("answered"), Err(ClientError::Closed)));
    assert!(bench.state.check_room().is_err() && bench.state.is_idle());
}
