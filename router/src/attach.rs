//! Sessions come and go: credit, adoption of running attempts, slots of cut connections.

use escapement_protocol::{MonoNs, SubscriptionId, Tag};

use crate::pool::NIL;
use crate::{Credit, Detach, HostKey, Router, SessionId, UnknownSubscription, subscription_mut};

impl Router {
    /// Attaches a session of a host that did not say which one it is: [`Router::attach_host`] with [`HostKey`] 0.
    ///
    /// # Errors
    /// The subscription is unknown.
    pub fn attach(
        &mut self,
        now: MonoNs,
        id: SubscriptionId,
        session: SessionId,
        credit: Credit,
        running: &[Tag],
    ) -> Result<(), UnknownSubscription> {
        self.attach_host(now, id, session, HostKey::default(), credit, running)
    }

    /// Attaches a session. It adopts the attempts that `running` names, with the deadlines that they
    /// have, and every slot that is held for a cut session of the same host and not named is free: its
    /// task goes to the front. Tags that name nothing are passed over.
    ///
    /// Slots of other hosts stay held, so that the limit also holds for what still runs there. A session
    /// id that is attached already is cut first.
    ///
    /// # Errors
    /// The subscription is unknown.
    pub fn attach_host(
        &mut self,
        now: MonoNs,
        id: SubscriptionId,
        session: SessionId,
        host: HostKey,
        credit: Credit,
        running: &[Tag],
    ) -> Result<(), UnknownSubscription> {
        self.detach(now, session, Detach::Cut);
        let &at = self.by_id.get(&id).ok_or(UnknownSubscription)?;
        let new = self.sessions.add(session, host, at, credit);
        self.by_session.insert(session, new);
        self.subscription(at).apart.sessions.push(new);

        let named = running.iter().filter_map(|tag| self.pool.running(*tag));
        let mut adopted: Vec<u32> = named.filter(|index| self.pool[*index].subscription == at).collect();
        // In order of deadline, as a session's lanes keep it.
        adopted.sort_unstable_by_key(|index| (self.pool[*index].deadline, *index));
        for index in adopted {
            let from = self.pool[index].session;
            self.sessions[from].remove(&mut self.pool, index);
            self.vacate(from);
            self.pool[index].session = new;
            self.sessions[new].push(&mut self.pool, index);
        }
        self.arm(new);

        let held = |index: &u32| !self.sessions[*index].attached && self.sessions[*index].host == host;
        let cut: Vec<u32> = self.subscriptions[at as usize]
            .iter()
            .flat_map(|subscription| &subscription.apart.sessions)
            .copied()
            .filter(held)
            .collect();
        for held in cut {
            self.empty(now, held);
        }
        self.refresh_open(new);
        self.touch(at);
        Ok(())
    }

    /// Changes the most that may be outstanding at a session. False where it is not attached.
    pub fn set_credit(&mut self, session: SessionId, credit: Credit) -> bool {
        let Some(&at) = self.by_session.get(&session) else { return false };
        self.sessions[at].credit = credit;
        self.refresh_open(at);
        self.touch(self.sessions[at].subscription);
        true
    }

    /// Ends a session. After [`Detach::Cut`] its slots stay held until its host attaches again without
    /// naming them, or until their deadline. After [`Detach::Graceful`] they are free, and their tasks go
    /// to the front. Neither counts against `max_attempts`. Nothing happens where it is not attached.
    pub fn detach(&mut self, now: MonoNs, session: SessionId, how: Detach) {
        let Some(at) = self.by_session.remove(&session) else { return };
        self.sessions[at].attached = false;
        self.refresh_open(at);
        if self.sessions[at].tasks == 0 {
            self.vacate(at);
        } else if how == Detach::Graceful {
            self.empty(now, at);
        }
    }

    /// Frees all slots held for a cut session.
    fn empty(&mut self, now: MonoNs, at: u32) {
        while let Some(index) = self.sessions[at].any() {
            self.end_attempt(index);
            self.excuse(now, index);
        }
    }

    /// Forgets a cut session that nothing is held for, and reopens one that has credit.
    pub(crate) fn vacate(&mut self, at: u32) {
        if self.sessions[at].attached || self.sessions[at].tasks > 0 {
            return self.refresh_open(at);
        }
        let subscription = subscription_mut(&mut self.subscriptions, self.sessions[at].subscription);
        subscription.apart.sessions.retain(|other| *other != at);
        self.forget_session(at);
    }

    pub(crate) fn forget_session(&mut self, at: u32) {
        let armed = self.sessions[at].armed.is_some();
        self.sessions.forget(at);
        if armed {
            self.outdate_deadline();
        }
    }

    /// Keeps the list of open sessions true for one session.
    pub(crate) fn refresh_open(&mut self, at: u32) {
        let session = &mut self.sessions[at];
        let subscription = subscription_mut(&mut self.subscriptions, session.subscription);
        match (session.open_at, session.has_credit()) {
            (NIL, true) => {
                session.open_at = subscription.open.len() as u32;
                subscription.open.push(at);
            }
            (place, false) if place != NIL => {
                session.open_at = NIL;
                subscription.open.swap_remove(place as usize);
                if let Some(&moved) = subscription.open.get(place as usize) {
                    self.sessions[moved].open_at = place;
                }
            }
            _ => {}
        }
    }
}
