//! The clock of a client's connection, and the orders given to it.
//!
//! In: what the connection is doing. Out: its end when it takes too long, or when its
//! listener is drained or cut. Promise: a request costs no timer, lock or allocation here.
//! One timer per worker sleeps until the earliest deadline of all its connections and then
//! looks at each; deadlines that have moved since are found by that look.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::BuildHasherDefault;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_config::ListenerLimits;
use tokio::sync::Notify;

use crate::metrics::NumberHasher;

/// Deadlines this close together are met together.
const SLACK: Duration = Duration::from_millis(5);
/// The clock looks at its connections at least so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No byte of the next request has come.
    Idle,
    /// A TLS handshake or a request's headers are coming.
    Head,
    /// A request is being answered.
    Busy,
}

/// What a connection is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Go on.
    None,
    /// End after the request under way.
    Drain,
    /// End at once, for this reason.
    Cut(&'static str),
}

/// One connection's clock and orders, shared by all that handle it.
pub(crate) struct Watched {
    clock: Rc<Clock>,
    listener: u64,
    header_timeout: Duration,
    idle_timeout: Duration,
    phase: Cell<Phase>,
    /// When the phase, or the wait for the endpoint's answer, has lasted too long.
    deadline: Cell<Option<Instant>>,
    /// When a client that we wait for in the middle of a request has let us wait too long.
    patience: Cell<Option<Instant>>,
    waiting_to_read: Cell<bool>,
    waiting_to_write: Cell<bool>,
    order: Cell<Order>,
    timed_out: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Requests that were handled.
    pub(crate) handled: Cell<u64>,
    /// It is drained, but is given a moment for its last request.
    pub(crate) draining_soon: Cell<bool>,
}

impl Watched {
    /// Begins a phase. A busy connection has no deadline until it is given one.
    pub(crate) fn enter(&self, phase: Phase, now: Instant) {
        self.phase.set(phase);
        self.set_deadline(match phase {
            Phase::Idle => after(now, self.idle_timeout),
            Phase::Head => after(now, self.header_timeout),
            Phase::Busy => None,
        });
    }

    /// What the connection is doing.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Sets until when an answer must have come.
    pub(crate) fn set_deadline(&self, deadline: Option<Instant>) {
        self.deadline.set(deadline);
        self.clock.mind(deadline);
    }

    /// Notes whether the rest of a request is waited for.
    pub(crate) fn wait_to_read(&self, waiting: bool) {
        self.waiting_to_read.set(waiting);
        self.set_patience();
    }

    /// Whether the rest of a request is waited for.
    pub(crate) fn is_read_awaited(&self) -> bool {
        self.waiting_to_read.get()
    }

    /// Notes whether the client does not take what we write.
    pub(crate) fn wait_to_write(&self, waiting: bool) {
        if self.waiting_to_write.replace(waiting) != waiting {
            self.set_patience();
        }
    }

    /// Bytes moved in a tunnel: it may rest for so long from now.
    pub(crate) fn be_patient(&self) {
        let patience = after(Instant::now(), self.idle_timeout);
        self.patience.set(patience);
        self.clock.mind(patience);
    }

    fn set_patience(&self) {
        let waiting = self.waiting_to_read.get() || self.waiting_to_write.get();
        let patience = if waiting { after(Instant::now(), self.idle_timeout) } else { None };
        self.patience.set(patience);
        self.clock.mind(patience);
    }

    /// Whether the request under way has been waited for too long.
    pub(crate) fn has_timed_out(&self) -> bool {
        self.timed_out.get()
    }

    /// Begins a request.
    pub(crate) fn begin(&self, now: Instant) {
        self.timed_out.set(false);
        self.waiting_to_read.set(false);
        self.patience.set(None);
        self.enter(Phase::Busy, now);
    }

    /// The order in force.
    pub(crate) fn order(&self) -> Order {
        self.order.get()
    }

    /// Gives an order; one to cut stays in force.
    fn give(&self, order: Order) {
        if !matches!(self.order.get(), Order::Cut(_)) {
            self.order.set(order);
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Keeps the waker of the connection's task, for orders.
    pub(crate) fn keep_waker(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        if !kept.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *kept = Some(waker.clone());
        }
    }

    /// Waits for something unless the connection is cut before.
    pub(crate) async fn unless_cut<F: Future>(&self, work: F) -> Result<F::Output, &'static str> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Order::Cut(reason) = self.order() {
                return Poll::Ready(Err(reason));
            }
            self.keep_waker(cx.waker());
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Does what a look at the clock demands; returns the deadline that is still ahead.
    fn judge(&self, now: Instant) -> Option<Instant> {
        let horizon = now + SLACK;
        if self.deadline.get().is_some_and(|deadline| deadline <= horizon) {
            self.deadline.set(None);
            match self.phase.get() {
                Phase::Idle => self.give(Order::Cut("idle_timeout")),
                Phase::Head => self.give(Order::Cut("header_timeout")),
                Phase::Busy => {
                    self.timed_out.set(true);
                    self.wake();
                }
            }
        }
        if self.patience.get().is_some_and(|patience| patience <= horizon) {
            self.patience.set(None);
            self.give(Order::Cut("idle_timeout"));
        }
        [self.deadline.get(), self.patience.get()].into_iter().flatten().min()
    }
}

/// `0s` turns a limit off.
fn after(now: Instant, limit: Duration) -> Option<Instant> {
    if limit.is_zero() { None } else { now.checked_add(limit) }
}

/// A connection's entry with its worker's clock, until dropped.
pub(crate) struct Registered {
    pub(crate) watched: Rc<Watched>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.watched.clock.connections.borrow_mut().remove(&self.number);
    }
}

/// The clock of all connections of a worker.
pub(crate) struct Clock {
    connections: RefCell<HashMap<u64, Rc<Watched>, BuildHasherDefault<NumberHasher>>>,
    next_number: Cell<u64>,
    /// No deadline is before this.
    earliest: Cell<Instant>,
    earlier: Notify,
}

impl Clock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            connections: RefCell::default(),
            next_number: Cell::new(0),
            earliest: Cell::new(Instant::now() + LONGEST_SLEEP),
            earlier: Notify::new(),
        })
    }

    /// Adds a connection of a listener that was accepted just now; it is held to the header timeout.
    pub(crate) fn register(self: &Rc<Self>, listener: u64, limits: &ListenerLimits) -> Registered {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let watched = Rc::new(Watched {
            clock: Rc::clone(self),
            listener,
            header_timeout: limits.header_timeout.into(),
            idle_timeout: limits.idle_timeout.into(),
            phase: Cell::new(Phase::Head),
            deadline: Cell::new(None),
            patience: Cell::new(None),
            waiting_to_read: Cell::new(false),
            waiting_to_write: Cell::new(false),
            order: Cell::new(Order::None),
            timed_out: Cell::new(false),
            waker: RefCell::default(),
            handled: Cell::new(0),
            draining_soon: Cell::new(false),
        });
        watched.enter(Phase::Head, Instant::now());
        self.connections.borrow_mut().insert(number, Rc::clone(&watched));
        Registered { watched, number }
    }

    /// Gives an order to all connections of a listener.
    pub(crate) fn order(&self, listener: u64, order: Order) {
        for watched in self.connections.borrow().values().filter(|watched| watched.listener == listener) {
            watched.give(order);
        }
    }

    fn mind(&self, deadline: Option<Instant>) {
        if deadline.is_some_and(|deadline| deadline < self.earliest.get()) {
            self.earliest.set(deadline.unwrap_or_else(Instant::now));
            self.earlier.notify_one();
        }
    }

    /// Keeps all deadlines; never ends by itself.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            let until = self.earliest.get();
            let _ = tokio::time::timeout_at(until.into(), self.earlier.notified()).await;
            let now = Instant::now();
            if self.earliest.get() > now {
                continue;
            }
            let next = self.connections.borrow().values().filter_map(|watched| watched.judge(now)).min();
            self.earliest.set(next.unwrap_or(now + LONGEST_SLEEP).min(now + LONGEST_SLEEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(header: u64, idle: u64) -> ListenerLimits {
        ListenerLimits {
            header_timeout: outrigger_config::Duration::from_millis(header),
            idle_timeout: outrigger_config::Duration::from_millis(idle),
            ..ListenerLimits::default()
        }
    }

    #[tokio::test]
    async fn each_phase_ends_in_its_time() {
        let local = tokio::task::LocalSet::new();
        let clock = Clock::new();
        local.spawn_local(Rc::clone(&clock).run());
        local
            .run_until(async {
                let head = clock.register(1, &limits(30, 10_000));
                let idle = clock.register(1, &limits(10_000, 60));
                let busy = clock.register(1, &limits(10_000, 10_000));
                let stalled = clock.register(1, &limits(10_000, 40));
                let off = clock.register(1, &limits(0, 0));
                idle.watched.enter(Phase::Idle, Instant::now());
                busy.watched.begin(Instant::now());
                busy.watched.set_deadline(Instant::now().checked_add(Duration::from_millis(50)));
                stalled.watched.begin(Instant::now());
                stalled.watched.wait_to_write(true);
                let cut = |one: &Registered| {
                    let watched = Rc::clone(&one.watched);
                    async move { watched.unless_cut(std::future::pending::<()>()).await }
                };
                assert_eq!(cut(&head).await, Err("header_timeout"));
                assert_eq!(cut(&stalled).await, Err("idle_timeout"));
                assert_eq!(cut(&idle).await, Err("idle_timeout"));
                assert!(busy.watched.has_timed_out(), "its deadline was between");
                assert_eq!((busy.watched.order(), off.watched.order()), (Order::None, Order::None));
            })
            .await;
    }

    #[tokio::test]
    async fn a_deadline_that_moved_is_not_met() {
        let local = tokio::task::LocalSet::new();
        let clock = Clock::new();
        local.spawn_local(Rc::clone(&clock).run());
        local
            .run_until(async {
                let moving = clock.register(1, &limits(40, 10_000));
                let mark = clock.register(1, &limits(120, 10_000));
                tokio::task::yield_now().await;
                moving.watched.enter(Phase::Idle, Instant::now());
                let watched = Rc::clone(&mark.watched);
                assert_eq!(watched.unless_cut(std::future::pending::<()>()).await, Err("header_timeout"));
                assert_eq!(moving.watched.order(), Order::None);
            })
            .await;
    }

    #[tokio::test]
    async fn orders_reach_one_listener_and_a_cut_stays() {
        let clock = Clock::new();
        let (one, other) = (clock.register(1, &limits(0, 0)), clock.register(2, &limits(0, 0)));
        clock.order(1, Order::Drain);
        assert_eq!((one.watched.order(), other.watched.order()), (Order::Drain, Order::None));
        clock.order(1, Order::Cut("drain"));
        clock.order(1, Order::Drain);
        assert_eq!(one.watched.order(), Order::Cut("drain"));
        drop((one, other));
        assert!(clock.connections.borrow().is_empty());
    }
}
