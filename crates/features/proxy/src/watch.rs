//! The clock of a client's connection, and the orders given to it.
//!
//! In: what the connection is doing. Out: its end when it takes too long, when its
//! listener is drained or cut, or when its memory is needed. Promise: a request costs no timer,
//! lock or allocation here. One timer per worker sleeps until the earliest deadline of all its
//! connections and then looks at each; deadlines that have moved since are found by that look.
//!
//! A client that we wait for in the middle of a body has an account of time: `bodyTimeout` is its
//! credit, waiting takes from it, and bytes that move give back. So one that trickles is cut as
//! surely as one that stops, and one that is slow but goes on is not.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use outrigger_config::ListenerLimits;
use tokio::sync::Notify;

use crate::body::Waiting;
use crate::connections::{About, State};
use crate::metrics::NumberHasher;

/// Deadlines this close together are met together.
pub(crate) const SLACK: Duration = Duration::from_millis(5);
/// A drained connection is given so long for its last request; a tunnel in which nothing moves for so long is at rest.
pub(crate) const LAST_MOMENT: Duration = Duration::from_millis(250);
/// The clock looks at its connections at least so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// A client's bytes give back waiting time at this rate: bytes a second, as Kestrel has it.
const SLOWEST: u64 = 240;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum Order {
    /// Go on.
    None,
    /// The next request is the last one, where its answer can say so: the process is about to go, but still accepts.
    Last,
    /// The same, and end in a moment of rest; HTTP/2 goes on, for its goodbye takes no time.
    Leave,
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
    body_timeout: Duration,
    idle_timeout: Duration,
    phase: Cell<Phase>,
    /// When the phase, or the wait for the endpoint's answer, has lasted too long.
    deadline: Cell<Option<Instant>>,
    /// When a client that we wait for in the middle of a request has let us wait too long.
    patience: Cell<Option<Instant>>,
    /// What the request's body, and the answer's, wait for.
    request: Cell<Option<Waiting>>,
    answer: Cell<Option<Waiting>>,
    /// The answer has begun.
    answering: Cell<bool>,
    /// How long the client may yet let us wait, since when it does, and the bytes that had moved by then.
    credit: Cell<Duration>,
    awaited: Cell<Option<Instant>>,
    moved: Cell<u64>,
    /// Since when it holds memory that it cannot be rid of.
    holding: Cell<Option<Instant>>,
    order: Cell<Order>,
    timed_out: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Requests that were handled.
    pub(crate) handled: Cell<u64>,
    /// Requests in a row that were refused for want of room.
    pub(crate) refused: Cell<u32>,
    /// It is drained, but is given a moment for its last request.
    pub(crate) draining_soon: Cell<bool>,
    /// It can be ended at any time without losing a request: HTTP/2.
    pub(crate) says_goodbye: Cell<bool>,
    /// When bytes moved last, in a tunnel.
    tunnel_moved: Cell<Option<Instant>>,
    /// Whose it is, for operators; streams of HTTP/2 are not told apart.
    about: OnceCell<Box<About>>,
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

    /// The first bytes of a head have come, unless it is known already.
    pub(crate) fn begin_head(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Head, Instant::now());
        }
    }

    /// Makes it one that operators are told of.
    pub(crate) fn accepted(&self, client: SocketAddr) {
        let _ = self.about.set(About::new(client));
    }

    /// What is known of the client, if it is one that operators are told of.
    pub(crate) fn about(&self) -> Option<&About> {
        self.about.get().map(|about| &**about)
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

    /// Begins another try of a request, or another wait: until when it may last.
    pub(crate) fn try_until(&self, deadline: Option<Instant>) {
        self.timed_out.set(false);
        self.set_deadline(deadline);
    }

    /// Notes what the request's body waits for, and how many bytes have moved in all.
    pub(crate) fn request_waits(&self, waiting: Option<Waiting>, moved: u64) {
        if self.request.replace(waiting).is_some() || waiting.is_some() {
            self.set_patience(moved);
        }
    }

    /// Whether the rest of a request is waited for.
    pub(crate) fn is_request_awaited(&self) -> bool {
        self.request.get() == Some(Waiting::ForSource)
    }

    /// Notes what the answer's body waits for, and how many bytes have moved in all.
    pub(crate) fn answer_waits(&self, waiting: Option<Waiting>, moved: u64) {
        // To wait for the endpoint is nothing that the client is to blame for.
        let waiting = waiting.filter(|waiting| *waiting == Waiting::ForSink);
        if self.answer.replace(waiting).is_some() || waiting.is_some() {
            self.set_patience(moved);
        }
    }

    /// The answer has begun: the request's rest may come when it likes.
    pub(crate) fn begin_answer(&self) {
        self.answering.set(true);
        self.set_deadline(None);
    }

    /// Bytes moved in a tunnel: it may rest for so long from now.
    pub(crate) fn be_patient(&self) {
        let now = Instant::now();
        self.tunnel_moved.set(Some(now));
        let patience = after(now, self.idle_timeout);
        self.patience.set(patience);
        self.clock.mind(patience);
    }

    /// Whether it is a tunnel in which nothing has moved for a moment.
    fn is_resting_tunnel(&self, now: Instant) -> bool {
        self.tunnel_moved.get().is_some_and(|moved| now.saturating_duration_since(moved) >= LAST_MOMENT)
    }

    /// Notes whether a tunnel holds bytes that it cannot be rid of.
    pub(crate) fn hold(&self, holding: bool) {
        if self.holding.get().is_some() != holding {
            self.holding.set(holding.then(Instant::now));
        }
    }

    fn set_patience(&self, moved: u64) {
        let now = Instant::now();
        let mut credit = self.credit.get();
        if let Some(since) = self.awaited.take() {
            credit = credit.saturating_sub(now.saturating_duration_since(since));
        }
        let gained = moved.saturating_sub(self.moved.replace(moved));
        credit = (credit + Duration::from_millis(gained * 1000 / SLOWEST)).min(self.body_timeout);
        self.credit.set(credit);

        let (request, answer) = (self.request.get(), self.answer.get());
        self.hold(answer.is_some() || request == Some(Waiting::ForSink));
        let patience = if answer.is_some() || (request == Some(Waiting::ForSource) && !self.answering.get()) {
            self.awaited.set(Some(now));
            now.checked_add(credit)
        } else if request == Some(Waiting::ForSource) {
            after(now, self.idle_timeout)
        } else {
            None
        };
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
        self.request.set(None);
        self.answer.set(None);
        self.answering.set(false);
        self.credit.set(self.body_timeout);
        self.awaited.set(None);
        self.moved.set(0);
        self.holding.set(None);
        self.patience.set(None);
        self.enter(Phase::Busy, now);
    }

    /// The order in force.
    pub(crate) fn order(&self) -> Order {
        self.order.get()
    }

    /// Gives an order; a stricter one stays in force.
    pub(crate) fn give(&self, order: Order) {
        if !matches!(self.order.get(), Order::Cut(_)) && self.order.get() < order {
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
            if self.awaited.get().is_none() {
                self.give(Order::Cut("idle_timeout"));
            } else if self.answer.get().is_some() {
                self.give(Order::Cut("body_timeout"));
            } else {
                // It can still be answered.
                self.timed_out.set(true);
                self.wake();
            }
        }
        [self.deadline.get(), self.patience.get()].into_iter().flatten().min()
    }
}

impl Watched {
    /// Since when it holds memory to no end: a head that does not come whole, bytes that nobody takes.
    fn holds_since(&self) -> Option<Instant> {
        match self.phase.get() {
            Phase::Idle => None,
            Phase::Head => self.deadline.get()?.checked_sub(self.header_timeout),
            Phase::Busy => self.holding.get(),
        }
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

/// Tells connections that were there from those that came later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(u64);

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
    pub(crate) fn register(self: &Rc<Self>, listener: u64, limits: &ListenerLimits, now: Instant) -> Registered {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let watched = Rc::new(Watched {
            clock: Rc::clone(self),
            listener,
            header_timeout: limits.header_timeout.into(),
            body_timeout: limits.body_timeout.into(),
            idle_timeout: limits.idle_timeout.into(),
            phase: Cell::new(Phase::Head),
            deadline: Cell::new(None),
            patience: Cell::new(None),
            request: Cell::new(None),
            answer: Cell::new(None),
            answering: Cell::new(false),
            credit: Cell::new(limits.body_timeout.into()),
            awaited: Cell::new(None),
            moved: Cell::new(0),
            holding: Cell::new(None),
            order: Cell::new(Order::None),
            timed_out: Cell::new(false),
            waker: RefCell::default(),
            handled: Cell::new(0),
            refused: Cell::new(0),
            draining_soon: Cell::new(false),
            says_goodbye: Cell::new(false),
            tunnel_moved: Cell::new(None),
            about: OnceCell::new(),
        });
        watched.enter(Phase::Head, now);
        self.connections.borrow_mut().insert(number, Rc::clone(&watched));
        Registered { watched, number }
    }

    /// Gives an order to all connections of a listener.
    pub(crate) fn order(&self, listener: u64, order: Order) {
        for watched in self.connections.borrow().values().filter(|watched| watched.listener == listener) {
            watched.give(order);
        }
    }

    /// Has a listener's connections end while further ones are still accepted. Returns a mark of those there are.
    pub(crate) fn leave(&self, listener: u64) -> Mark {
        self.order(listener, Order::Leave);
        Mark(self.next_number.get())
    }

    /// Whether nothing is under way any more that was there at the mark, but what can be ended at any time.
    pub(crate) fn has_left(&self, listener: u64, mark: Mark, now: Instant) -> bool {
        let connections = self.connections.borrow();
        let mut before = connections.iter().filter(|(number, one)| one.listener == listener && **number < mark.0);
        before.all(|(_, one)| one.says_goodbye.get() || one.is_resting_tunnel(now))
    }

    /// Has the rest end, for nobody is accepted any more: what was there at the mark has had its time.
    pub(crate) fn leave_at_last(&self, listener: u64, mark: Mark) {
        for (number, watched) in self.connections.borrow().iter().filter(|(_, one)| one.listener == listener) {
            let is_late = *number < mark.0 && !watched.says_goodbye.get();
            watched.give(if is_late { Order::Cut("drain") } else { Order::Drain });
        }
        self.cut_resting_tunnels(listener);
    }

    /// Cuts a listener's tunnels that rest: nothing tells their ends to go, and others wait for that.
    pub(crate) fn cut_resting_tunnels(&self, listener: u64) {
        let now = Instant::now();
        let connections = self.connections.borrow();
        let resting = connections.values().filter(|one| one.listener == listener && one.is_resting_tunnel(now));
        resting.for_each(|one| one.give(Order::Cut("drain")));
    }

    /// How clients' connections are, the oldest first, at most so many; and how many there are. Listeners are named by
    /// their numbers; those without a name are left out.
    pub(crate) fn states(&self, most: usize, name: impl Fn(u64) -> Option<String>) -> (usize, Vec<State>) {
        let connections = self.connections.borrow();
        let mut all: Vec<_> = connections
            .iter()
            .filter_map(|(number, watched)| Some((*number, watched, watched.about()?)))
            .filter_map(|(number, watched, about)| Some((number, watched, about, name(watched.listener)?)))
            .collect();
        // Numbers are given in the order of coming.
        all.sort_unstable_by_key(|(number, ..)| *number);
        let (total, now) = (all.len(), Instant::now());
        all.truncate(most);
        let state = |(_, watched, about, name): (_, &Rc<Watched>, &About, _)| {
            about.state(name, watched.phase(), watched.handled.get(), now)
        };
        (total, all.into_iter().map(state).collect())
    }

    /// Cuts so many connections, first those that hold memory longest without going on. Returns how many there were.
    pub(crate) fn cut_holders(&self, most: usize) -> usize {
        let connections = self.connections.borrow();
        let mut holders: Vec<_> = connections
            .values()
            .filter(|watched| !matches!(watched.order(), Order::Cut(_)))
            .filter_map(|watched| Some((watched.holds_since()?, watched)))
            .collect();
        holders.sort_unstable_by_key(|(since, _)| *since);
        holders.truncate(most);
        holders.iter().for_each(|(_, watched)| watched.give(Order::Cut("memory")));
        holders.len()
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
                let head = clock.register(1, &limits(30, 10_000), Instant::now());
                let idle = clock.register(1, &limits(10_000, 60), Instant::now());
                let busy = clock.register(1, &limits(10_000, 10_000), Instant::now());
                let bodies = outrigger_config::Duration::from_millis(40);
                let stalled = clock.register(
                    1,
                    &ListenerLimits { body_timeout: bodies, ..limits(10_000, 10_000) },
                    Instant::now(),
                );
                let off = clock.register(1, &limits(0, 0), Instant::now());
                idle.watched.enter(Phase::Idle, Instant::now());
                busy.watched.begin(Instant::now());
                busy.watched.set_deadline(Instant::now().checked_add(Duration::from_millis(50)));
                stalled.watched.begin(Instant::now());
                stalled.watched.answer_waits(Some(Waiting::ForSink), 0);
                let cut = |one: &Registered| {
                    let watched = Rc::clone(&one.watched);
                    async move { watched.unless_cut(std::future::pending::<()>()).await }
                };
                assert_eq!(cut(&head).await, Err("header_timeout"));
                assert_eq!(cut(&stalled).await, Err("body_timeout"));
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
                let moving = clock.register(1, &limits(40, 10_000), Instant::now());
                let mark = clock.register(1, &limits(120, 10_000), Instant::now());
                tokio::task::yield_now().await;
                moving.watched.enter(Phase::Idle, Instant::now());
                let watched = Rc::clone(&mark.watched);
                assert_eq!(watched.unless_cut(std::future::pending::<()>()).await, Err("header_timeout"));
                assert_eq!(moving.watched.order(), Order::None);
            })
            .await;
    }

    #[tokio::test]
    async fn a_trickle_uses_up_its_credit_and_a_flow_does_not() {
        let clock = Clock::new();
        let limits = ListenerLimits { body_timeout: outrigger_config::Duration::from_secs(60), ..limits(0, 0) };
        let one = clock.register(1, &limits, Instant::now()).watched.clone();
        one.begin(Instant::now());
        let waited = |seconds: u64, moved: u64| {
            one.awaited.set(Instant::now().checked_sub(Duration::from_secs(seconds)));
            one.request_waits(Some(Waiting::ForSource), moved);
            one.credit.get().as_secs_f64().round() as u64
        };
        one.request_waits(Some(Waiting::ForSource), 0);
        assert_eq!(waited(50, 1), 10, "a byte is not worth fifty seconds");
        assert_eq!(waited(5, 2401), 15, "ten seconds' worth of bytes");
        assert_eq!(waited(20, 2402), 0);
        assert!(one.patience.get() <= Instant::now().checked_add(Duration::from_millis(5)), "its time is up");
        assert_eq!(waited(1, 1_000_000), 60, "never more than all of it");
        one.begin_answer();
        one.request_waits(Some(Waiting::ForSource), 1_000_000);
        assert!(one.awaited.get().is_none(), "while it is answered it may rest");
    }

    #[tokio::test]
    async fn who_holds_memory_longest_is_cut_first() {
        let clock = Clock::new();
        let [old, new, busy, idle, head] = [0; 5].map(|_| clock.register(1, &limits(10_000, 10_000), Instant::now()));
        for one in [&old, &new, &busy, &idle] {
            one.watched.begin(Instant::now());
        }
        idle.watched.enter(Phase::Idle, Instant::now());
        busy.watched.request_waits(Some(Waiting::ForSource), 0);
        old.watched.answer_waits(Some(Waiting::ForSink), 0);
        old.watched.holding.set(Instant::now().checked_sub(Duration::from_secs(5)));
        new.watched.request_waits(Some(Waiting::ForSink), 0);
        assert_eq!(clock.cut_holders(1), 1);
        let orders = || [&old, &new, &busy, &idle, &head].map(|one| one.watched.order() == Order::Cut("memory"));
        assert_eq!(orders(), [true, false, false, false, false]);
        assert_eq!(clock.cut_holders(9), 2, "and the head that is coming");
        assert_eq!(orders(), [true, true, false, false, true]);
    }

    #[tokio::test]
    async fn what_was_there_leaves_and_what_came_later_ends_behind_it() {
        let clock = Clock::new();
        let register = |listener| clock.register(listener, &limits(0, 0), Instant::now());
        let [request, tunnel, http2, elsewhere] = [1, 1, 1, 2].map(register);
        http2.watched.says_goodbye.set(true);
        tunnel.watched.be_patient();
        let mark = clock.leave(1);
        let later = register(1);
        later.watched.give(Order::Last);
        let order = |one: &Registered| one.watched.order();
        assert_eq!(
            [&request, &http2, &later, &elsewhere].map(order),
            [Order::Leave, Order::Leave, Order::Last, Order::None]
        );
        let (now, rested) = (Instant::now(), Instant::now() + LAST_MOMENT);
        assert!(!clock.has_left(1, mark, now) && !clock.has_left(1, mark, rested), "a request is under way");
        drop(request);
        assert!(!clock.has_left(1, mark, now), "the tunnel moves");
        assert!(clock.has_left(1, mark, rested));
        let late = clock.register(1, &limits(0, 0), Instant::now());
        let mark = Mark(later.number);
        clock.leave_at_last(1, mark);
        assert_eq!(
            [&tunnel, &http2, &later, &late, &elsewhere].map(order),
            [Order::Cut("drain"), Order::Drain, Order::Drain, Order::Drain, Order::None]
        );
        late.watched.tunnel_moved.set(now.checked_sub(LAST_MOMENT));
        clock.cut_resting_tunnels(1);
        assert_eq!(order(&late), Order::Cut("drain"), "nobody else would end it");
        later.watched.give(Order::Leave);
        assert_eq!(order(&later), Order::Drain, "the stricter one stays");
    }

    #[tokio::test]
    async fn orders_reach_one_listener_and_a_cut_stays() {
        let clock = Clock::new();
        let (one, other) =
            (clock.register(1, &limits(0, 0), Instant::now()), clock.register(2, &limits(0, 0), Instant::now()));
        clock.order(1, Order::Drain);
        assert_eq!((one.watched.order(), other.watched.order()), (Order::Drain, Order::None));
        clock.order(1, Order::Cut("drain"));
        clock.order(1, Order::Drain);
        assert_eq!(one.watched.order(), Order::Cut("drain"));
        drop((one, other));
        assert!(clock.connections.borrow().is_empty());
    }
}
