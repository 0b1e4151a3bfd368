//! Receiving attempts and answering them.
//!
//! Three ways, from the fastest to the most comfortable: [`Subscriber::run_batches`] hands over each
//! frame where it lies, [`Subscriber::run`] calls a function for each attempt, and
//! [`Subscriber::run_async`] runs a future for each attempt, many at once.
//!
//! However a subscriber runs, it comes back after a lost connection, and tells the node which
//! attempts it still works on.

mod outbox;
mod session;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use escapement_protocol::frame::{Credit, PushBatch, ResultItem, Subscribed};
use escapement_protocol::{AttemptResult, ErrorCode, Tag};
use tokio::sync::{Notify, mpsc};

use crate::dial::random;
use crate::{Client, ClientError};
use outbox::Outbox;
pub use task::{Attempt, Task};

/// How much may be outstanding.
#[derive(Clone, Copy, Debug)]
pub struct SubscriberOptions {
    /// Most attempts pushed and without a result.
    pub credit_tasks: u32,
    /// Most bytes of their events.
    pub credit_bytes: u32,
}

impl Default for SubscriberOptions {
    fn default() -> Self {
        SubscriberOptions { credit_tasks: 1_024, credit_bytes: 1024 * 1024 }
    }
}

/// What became of a subscriber's session.
#[derive(Clone, Copy, Debug)]
pub enum SessionChange<'a> {
    /// Nothing is received for this reason, and it is tried again. Said once for each reason that the node gives,
    /// not for each try.
    Lost(&'a ClientError),
    /// A session began after one was lost or could not be had.
    Restored,
}

/// A subscriber that is not running yet.
#[derive(Debug)]
pub struct Subscriber {
    client: Client,
    subscription: String,
    options: SubscriberOptions,
    /// Where this subscriber runs: sessions of one subscription under the same number replace each other.
    host: u64,
    stop: Arc<Stop>,
    watch: Watch,
}

type Tell = dyn FnMut(SessionChange<'_>) + Send + Sync;

/// Who is told of changes of the session, and what they were told last.
#[derive(Default)]
struct Watch {
    tell: Option<Box<Tell>>,
    /// The session is lost; for the node's own reason where it gave one.
    lost: Option<Option<ErrorCode>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Watch {
    fn lost(&mut self, error: &ClientError) {
        let code = error.code();
        // A dial that fails says no more than the loss before it did; a node that refuses does.
        if self.lost.is_some_and(|told| code.is_none() || told == code) {
            return;
        }
        self.lost = Some(code);
        self.say(SessionChange::Lost(error));
    }

    fn attached(&mut self) {
        if self.lost.take().is_some() {
            self.say(SessionChange::Restored);
        }
    }

    fn say(&mut self, change: SessionChange<'_>) {
        if let Some(tell) = &mut self.tell {
            tell(change);
        }
    }
}

#[derive(Debug, Default)]
struct Stop {
    asked: AtomicBool,
    wake: Notify,
}

/// Ends a running subscriber.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Stop>);

impl Stopper {
    /// Asks for no more pushes; the subscriber ends when what it has is answered.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

/// Takes frames of attempts as they come.
pub trait PushHandler {
    /// A frame came: each attempt in it is to be answered, now through `results` or later.
    fn pushed(&mut self, batch: &PushBatch<'_>, results: &mut ResultSink);

    /// These results are about to leave.
    fn leaving(&mut self, results: &[ResultItem]) {
        let _ = results;
    }

    /// A session began, at first and after each lost connection.
    fn attached(&mut self, session: &Subscribed) {
        let _ = session;
    }
}

impl<F: FnMut(&PushBatch<'_>, &mut ResultSink)> PushHandler for F {
    fn pushed(&mut self, batch: &PushBatch<'_>, results: &mut ResultSink) {
        self(batch, results);
    }
}

/// Collects results. They leave together, as soon as nothing more can be read.
#[derive(Debug, Default)]
pub struct ResultSink(Vec<ResultItem>);

impl ResultSink {
    /// Answers an attempt; a retryable failure is tried again by the subscription's policy.
    pub fn push(&mut self, tag: Tag, result: AttemptResult) {
        self.0.push(ResultItem { tag, result, retry_after_ms: 0 });
    }

    /// Answers an attempt with a retryable failure, to be tried again no sooner than after that many ms.
    pub fn push_retry(&mut self, tag: Tag, retry_after_ms: u32) {
        self.0.push(ResultItem { tag, result: AttemptResult::RetryableFailure, retry_after_ms });
    }
}

impl Subscriber {
    pub(crate) fn new(client: Client, subscription: &str, options: SubscriberOptions) -> Self {
        // 0 would mean that the host is not named.
        let host = random() | 1;
        Subscriber {
            client,
            subscription: subscription.to_owned(),
            options,
            host,
            stop: Arc::default(),
            watch: Watch::default(),
        }
    }

    /// A handle that ends the subscriber from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Tells `watch` when the session is lost and when there is one again. It runs between reads: what it waits for,
    /// everyone waits for. An error that ends the subscriber is not told, but returned.
    #[must_use]
    pub fn watched(mut self, watch: impl FnMut(SessionChange<'_>) + Send + Sync + 'static) -> Self {
        self.watch.tell = Some(Box::new(watch));
        self
    }

    /// Runs until it is stopped, handing each frame to `handler`.
    ///
    /// # Errors
    /// What ended it otherwise: no such subscription, or a node that stayed away for too long.
    pub async fn run_batches(self, handler: &mut impl PushHandler) -> Result<(), ClientError> {
        session::run(self, &Arc::new(Outbox::default()), handler).await
    }

    /// Runs until it is stopped, answering each attempt with what `handler` returns. The handler
    /// runs between reads: what it waits for, everyone waits for.
    ///
    /// # Errors
    /// As [`Subscriber::run_batches`].
    pub async fn run(
        self,
        mut handler: impl FnMut(&Attempt<'_>) -> AttemptResult,
    ) -> Result<(), ClientError> {
        let mut each = |batch: &PushBatch<'_>, results: &mut ResultSink| {
            task::attempts(batch, |tag, attempt| {
                // An event that cannot be read is a fault in between, which a retry may not meet.
                let result = attempt.map_or(AttemptResult::RetryableFailure, |attempt| handler(&attempt));
                results.push(tag, result);
            });
        };
        self.run_batches(&mut each).await
    }

    /// Runs until it is stopped, with one spawned future for each attempt: as many at once as the
    /// credit allows. A future that panics is a retryable failure.
    ///
    /// # Errors
    /// As [`Subscriber::run_batches`].
    pub async fn run_async<H, R>(self, handler: H) -> Result<(), ClientError>
    where
        H: Fn(Task) -> R,
        R: Future<Output = AttemptResult> + Send + 'static,
    {
        let outbox = Arc::new(Outbox::default());
        let mut spawn = |batch: &PushBatch<'_>, results: &mut ResultSink| {
            task::tasks(batch, &outbox, results, |task, answer| {
                let running = handler(task);
                tokio::spawn(async move { answer.give(running.await) });
            });
        };
        session::run(self, &outbox, &mut spawn).await
    }

    /// Runs in the background, and hands over tasks as they are asked for.
    ///
    /// Dropping the handle stops it; tasks that are not answered then come again.
    #[must_use]
    pub fn into_tasks(self) -> Tasks {
        let (sender, tasks) = mpsc::unbounded_channel();
        let stopper = self.stopper();
        let running = tokio::spawn(async move {
            let outbox = Arc::new(Outbox::default());
            let mut forward = |batch: &PushBatch<'_>, results: &mut ResultSink| {
                task::tasks(batch, &outbox, results, |task, answer| {
                    // Credit bounds what is in the channel. Nobody at its end means that the handle was dropped.
                    let _ = sender.send((task, answer));
                });
            };
            session::run(self, &outbox, &mut forward).await
        });
        Tasks { tasks, stopper, running: Some(running) }
    }

    fn credit(&self) -> Credit {
        Credit { tasks: self.options.credit_tasks, bytes: self.options.credit_bytes }
    }
}

/// Tasks of a subscriber that runs in the background.
#[derive(Debug)]
pub struct Tasks {
    tasks: mpsc::UnboundedReceiver<(Task, Answer)>,
    stopper: Stopper,
    running: Option<tokio::task::JoinHandle<Result<(), ClientError>>>,
}

impl Tasks {
    /// The next task with what answers it; `None` once it was stopped.
    ///
    /// # Errors
    /// As [`Subscriber::run_batches`], once.
    pub async fn next(&mut self) -> Result<Option<(Task, Answer)>, ClientError> {
        if let Some(next) = self.tasks.recv().await {
            return Ok(Some(next));
        }
        match self.running.take() {
            Some(running) => running.await.unwrap_or(Err(ClientError::Closed)).map(|()| None),
            None => Ok(None),
        }
    }

    /// Asks for no more pushes: [`Tasks::next`] ends when every task is answered.
    pub fn stop(&self) {
        self.stopper.stop();
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

/// Answers one task. Dropped without an answer, it answers with a retryable failure.
#[derive(Debug)]
pub struct Answer {
    tag: Tag,
    outbox: Arc<Outbox>,
    given: bool,
}

impl Answer {
    /// Answers.
    pub fn give(mut self, result: AttemptResult) {
        self.given = true;
        self.outbox.finish(ResultItem { tag: self.tag, result, retry_after_ms: 0 });
    }

    /// Answers with a retryable failure, to be tried again no sooner than after that many ms.
    pub fn retry_after(mut self, retry_after_ms: u32) {
        self.given = true;
        let result = AttemptResult::RetryableFailure;
        self.outbox.finish(ResultItem { tag: self.tag, result, retry_after_ms });
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            let result = AttemptResult::RetryableFailure;
            self.outbox.finish(ResultItem { tag: self.tag, result, retry_after_ms: 0 });
        }
    }
}
