//! The full check of what must hold between calls, for tests and simulation.

use crate::Router;
use crate::pool::{NIL, State};
use crate::subscription::Subscription;

impl Router {
    /// Counts everything anew and compares. Takes time in proportion to all tasks and sessions.
    ///
    /// # Panics
    /// If anything does not match: a fault in the router.
    pub fn check(&self) {
        let mut tasks = 0;
        let mut attached = 0;
        for (id, &at) in &self.by_id {
            let subscription = self.subscriptions[at as usize].as_ref().expect("ids name live subscriptions");
            assert_eq!(subscription.id, *id);
            self.check_tasks(at, subscription);
            self.check_keys(subscription);
            attached += self.check_sessions(at, subscription);
            tasks += subscription.tasks;
            if subscription.dirty {
                assert!(self.dirty.contains(&at), "a dirty subscription has a turn");
            }
        }
        assert_eq!(tasks, self.pool.used(), "every task belongs to one subscription");
        assert_eq!(attached, self.by_session.len(), "every attached session belongs to one subscription");
        let live = self.subscriptions.iter().flatten().count();
        assert_eq!(live, self.by_id.len());
        assert_eq!(live + self.free.len(), self.subscriptions.len());
    }

    fn check_tasks(&self, at: u32, subscription: &Subscription) {
        let mut count = 0;
        for index in subscription.all(&self.pool, &self.sessions) {
            let node = &self.pool[index];
            assert_eq!(node.subscription, at, "a task hangs in its own subscription's lists");
            if let Some(lookup) = &subscription.lookup {
                assert_eq!(lookup.get(&(node.task.shard, node.task.sequence)), Some(&index));
            }
            count += 1;
        }
        assert_eq!(count, subscription.tasks, "every task is in exactly one list");
        if let Some(lookup) = &subscription.lookup {
            assert_eq!(lookup.len(), count);
        }
        for (list, state, attempted) in [
            (subscription.retries, State::Ready, Some(true)),
            (subscription.fresh, State::Ready, Some(false)),
            (subscription.apart.backoff, State::Backoff, None),
        ] {
            assert_eq!(list.iter(&self.pool).count(), list.len as usize);
            for index in list.iter(&self.pool) {
                let node = &self.pool[index];
                assert_eq!(node.state, state);
                assert!(attempted.is_none_or(|attempted| attempted == (node.task.attempt > 0)));
            }
        }
        if !subscription.dirty && subscription.can_pick() {
            let size_bytes = subscription.front().map_or(0, |index| self.pool[index].task.size_bytes);
            let fits = subscription.open.iter().any(|at| self.sessions[*at].fits(size_bytes));
            assert!(!fits, "a task that may go has a turn ahead");
        }
    }

    fn check_keys(&self, subscription: &Subscription) {
        let mut keyed = 0;
        for (hash, front, blocked) in subscription.apart.keys.iter() {
            let node = &self.pool[front];
            assert_eq!(node.task.key, hash);
            assert!(matches!(node.state, State::Ready | State::Running | State::Backoff));
            let mut last = None;
            for index in blocked.iter(&self.pool) {
                let (state, task) = (self.pool[index].state, self.pool[index].task);
                assert_eq!((state, task.key), (State::Blocked, hash));
                let rank = Some((task.due, task.sequence));
                assert!(last <= rank, "blocked tasks wait by (due, sequence)");
                last = rank;
            }
            keyed += 1 + blocked.len as usize;
        }
        let tasks = subscription.all(&self.pool, &self.sessions);
        let with_key = tasks.filter(|index| self.pool[*index].task.key != 0).count();
        assert_eq!(keyed, with_key, "every task with a key is in front or blocked");
        assert!(subscription.apart.keys.len() <= subscription.tasks);
    }

    fn check_sessions(&self, at: u32, subscription: &Subscription) -> usize {
        let mut running = 0;
        let mut attached = 0;
        let mut open = 0;
        for &place in &subscription.apart.sessions {
            let session = &self.sessions[place];
            assert_eq!(session.subscription, at);
            let (mut tasks, mut bytes) = (0, 0);
            for lane in &session.lanes {
                let mut last = None;
                for index in lane.list.iter(&self.pool) {
                    let node = &self.pool[index];
                    assert_eq!((node.state, node.session), (State::Running, place));
                    assert_eq!(node.deadline_ms, lane.deadline_ms);
                    assert!(last <= Some(node.deadline), "a lane is in order of deadline");
                    last = Some(node.deadline);
                    tasks += 1;
                    bytes += u64::from(node.task.size_bytes);
                }
            }
            assert_eq!((tasks, bytes), (session.tasks, session.bytes));
            if let Some((deadline, _)) = session.earliest(&self.pool) {
                assert!(session.armed.is_some_and(|armed| armed <= deadline), "a deadline has a timer");
            }
            assert_eq!(session.attached, self.by_session.get(&session.id) == Some(&place));
            assert!(session.attached || session.tasks > 0, "a cut session lives by its slots");
            assert_eq!(session.has_credit(), session.open_at != NIL);
            if session.open_at != NIL {
                assert_eq!(subscription.open.get(session.open_at as usize), Some(&place));
                open += 1;
            }
            attached += usize::from(session.attached);
            running += session.tasks;
        }
        assert_eq!(open, subscription.open.len());
        assert_eq!(running, subscription.running, "every running attempt holds one slot");
        attached
    }
}
