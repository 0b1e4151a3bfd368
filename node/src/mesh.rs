//! Mail between cores: one inbox for each core, whole turns at a time. An inbox has no bound of its own; a full one stops
//! the reading of publishers.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;
use crossbeam_utils::CachePadded;

use crate::core::Mail;
use crate::io::Waker;

/// Bytes in one inbox from which on no core reads publishers any more. What was accepted still goes through.
pub(crate) const INBOX_SIZE_BYTES_MAX: usize = 8 * 1024 * 1024;

#[derive(Debug, Default)]
struct Inbox {
    queue: SegQueue<Mail>,
    size_bytes: AtomicUsize,
    waker: OnceLock<Waker>,
}

/// The cores' inboxes. Shared by all of them.
#[derive(Debug)]
pub(crate) struct Mesh {
    inboxes: Vec<CachePadded<Inbox>>,
}

impl Mesh {
    pub(crate) fn new(core_count: u16) -> Self {
        Mesh { inboxes: (0..core_count).map(|_| CachePadded::default()).collect() }
    }

    /// A core has its host: from now on mail wakes it. For what came before, its first wait is none.
    pub(crate) fn attach(&self, core: u16, waker: Waker) {
        let inbox = &self.inboxes[usize::from(core)];
        assert!(inbox.waker.set(waker).is_ok(), "a core attaches once");
        if let Some(waker) = inbox.waker.get() {
            waker.wake();
        }
    }

    /// Wakes every core that has attached.
    pub(crate) fn wake_all(&self) {
        self.inboxes.iter().filter_map(|inbox| inbox.waker.get()).for_each(Waker::wake);
    }

    pub(crate) fn send(&self, core: u16, mail: Mail) {
        let inbox = &self.inboxes[usize::from(core)];
        inbox.size_bytes.fetch_add(mail.size_bytes(), Ordering::Relaxed);
        inbox.queue.push(mail);
        if let Some(waker) = inbox.waker.get() {
            waker.wake();
        }
    }

    pub(crate) fn receive(&self, core: u16) -> Option<Mail> {
        let inbox = &self.inboxes[usize::from(core)];
        let mail = inbox.queue.pop()?;
        inbox.size_bytes.fetch_sub(mail.size_bytes(), Ordering::Relaxed);
        Some(mail)
    }

    /// Whether some core is so far behind that publishers should wait.
    pub(crate) fn is_crowded(&self) -> bool {
        self.inboxes.len() > 1
            && self
                .inboxes
                .iter()
                .any(|inbox| inbox.size_bytes.load(Ordering::Relaxed) > INBOX_SIZE_BYTES_MAX)
    }
}
