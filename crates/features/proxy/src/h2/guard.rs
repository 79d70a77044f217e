//! What the other side's HTTP/2 frames cost us, and what it holds of our memory.
//!
//! In: the bytes of a connection, both ways. Out: the end of reading when a client, or an endpoint, sends far
//! more frames that ask for work than requests and bodies. Promise: whatever the `h2` crate
//! bounds by itself (CONTINUATION, resets of streams we have not looked at, small DATA frames,
//! header lists, errors that cost a stream) stays its business; all other kinds are bounded
//! here, by one account per connection that is paid by requests, by bytes we send, and by time.
//!
//! A client that works through its requests gains more than it spends: it acknowledges windows,
//! pings now and then, gives up a request. A flood spends and gains nothing. An endpoint gains by what it is asked.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_wire::frames::{Frame, Frames, Kind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::{self, Buffer};
use crate::h2::wire::Wire;

/// The account holds the points of so many seconds: a burst that is forgiven.
const BURST_SECONDS: i64 = 10;
/// A request brings so many points: a window's update for it and for the connection.
const PER_REQUEST: i64 = 2;
/// So many bytes sent to the client bring a point.
const BYTES_PER_POINT: usize = 1024;
/// New settings may touch every stream.
const SETTINGS_COST: i64 = 8;
/// A request that is given up costs its endpoint's connection.
const RESET_COST: i64 = 4;
/// What an endpoint may answer a request with, beside data: interim responses, a head, trailers, updates of windows.
const PER_ANSWER: i64 = 16;
/// Points a second of an endpoint: as many as clients have by default.
const ENDPOINT_RATE: i64 = 400;
/// Streams whose bodies are counted at once; those beyond are of requests that were refused.
const MOST_BODIES: usize = 1024;

/// The account of one connection.
pub(crate) struct Guard {
    /// Points a second; 0 is no limit.
    rate: i64,
    /// It is an endpoint's, which does not ask but answers.
    answers: bool,
    points: Cell<i64>,
    refilled: Cell<Instant>,
    /// Bytes sent that have not brought a point yet.
    sent: Cell<usize>,
    flood: Cell<Option<Kind>>,
    /// Streams with a body that comes, and how many bytes of it were not taken yet. What comes for other streams `h2`
    /// drops at once.
    bodies: RefCell<Vec<(u32, usize)>>,
    newest: Cell<u32>,
}

impl Guard {
    /// An account with `rate` frames a second.
    pub(crate) fn new(rate: u32) -> Rc<Self> {
        Self::with(rate.into(), false)
    }

    /// The account of an endpoint.
    pub(crate) fn of_endpoint() -> Rc<Self> {
        Self::with(ENDPOINT_RATE, true)
    }

    fn with(rate: i64, answers: bool) -> Rc<Self> {
        Rc::new(Self {
            rate,
            answers,
            points: Cell::new(rate * BURST_SECONDS),
            refilled: Cell::new(Instant::now()),
            sent: Cell::new(0),
            flood: Cell::new(None),
            bodies: RefCell::default(),
            newest: Cell::new(0),
        })
    }

    /// The frame that was one too many, if the other side floods.
    pub(crate) fn flood(&self) -> Option<Kind> {
        self.flood.get()
    }

    fn count(&self, frame: Frame) {
        let gain = match frame.kind {
            Kind::Headers if self.answers => -1,
            Kind::Headers => {
                if frame.stream > self.newest.get() {
                    self.newest.set(frame.stream);
                    if !frame.ends_stream() {
                        self.expect(frame.stream);
                    }
                }
                PER_REQUEST
            }
            Kind::Data => {
                self.hold(frame.stream, frame.length as usize);
                if frame.length == 0 && !frame.ends_stream() { -1 } else { 0 }
            }
            Kind::Settings if !frame.is_ack() => -SETTINGS_COST,
            // An endpoint's costs us nothing but a request that it does not want.
            Kind::RstStream if !self.answers => -RESET_COST,
            _ => -1,
        };
        self.pay(frame.kind, gain);
    }

    /// An endpoint was asked something: it may answer, and the answer's body is counted.
    pub(crate) fn asked(self: &Rc<Self>, stream: u32) -> Expected {
        self.expect(stream);
        self.pay(Kind::Headers, PER_ANSWER);
        Expected(Some(Rc::clone(self)), stream)
    }

    fn pay(&self, kind: Kind, gain: i64) {
        if self.rate == 0 {
            return;
        }
        let most = self.rate * BURST_SECONDS;
        let mut points = (self.points.get() + gain).min(most);
        if points < 0 {
            // Only now is the time worth asking for.
            let now = Instant::now();
            let passed = now.saturating_duration_since(self.refilled.replace(now)).as_secs_f64();
            points = (points + (passed * self.rate as f64) as i64).min(most);
            if points < 0 {
                self.flood.set(Some(kind));
            }
        }
        self.points.set(points);
    }

    fn wrote(&self, count: usize) {
        let sent = self.sent.get() + count;
        self.sent.set(sent % BYTES_PER_POINT);
        self.points.set(self.points.get() + (sent / BYTES_PER_POINT) as i64);
    }

    fn expect(&self, stream: u32) {
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() >= MOST_BODIES {
            buffer::give_back(bodies.remove(0).1);
        }
        bodies.push((stream, 0));
    }

    fn hold(&self, stream: u32, count: usize) {
        if let Some((_, held)) = self.bodies.borrow_mut().iter_mut().find(|(one, _)| *one == stream) {
            *held += count;
            buffer::hold(count);
        }
    }

    /// A request has taken bytes of its body.
    pub(crate) fn taken(&self, stream: u32, count: usize) {
        if let Some((_, held)) = self.bodies.borrow_mut().iter_mut().find(|(one, _)| *one == stream) {
            // Padding comes with what it pads, and is not told.
            let count = count.min(*held);
            *held -= count;
            buffer::give_back(count);
        }
    }

    /// A request has ended, and with it what came of its body.
    pub(crate) fn ended(&self, stream: u32) {
        let mut bodies = self.bodies.borrow_mut();
        if let Some(at) = bodies.iter().position(|(one, _)| *one == stream) {
            buffer::give_back(bodies.swap_remove(at).1);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.bodies.take().iter().for_each(|(_, held)| buffer::give_back(*held));
    }
}

/// The body of an answer that has not begun to come.
pub(crate) struct Expected(Option<Rc<Guard>>, u32);

impl Expected {
    /// Whether the endpoint was cut off.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.as_ref().is_some_and(|guard| guard.flood.get().is_some())
    }

    /// Who counts it from here on.
    pub(crate) fn into_guard(mut self) -> Option<Rc<Guard>> {
        self.0.take()
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(guard) = &self.0 {
            guard.ended(self.1);
        }
    }
}

/// A connection with its account.
pub(crate) struct Guarded {
    wire: Rc<Wire>,
    /// What was read to find out what is spoken.
    ahead: Buffer,
    frames: Frames,
    guard: Rc<Guard>,
}

impl Guarded {
    pub(crate) fn new(wire: Rc<Wire>, ahead: Buffer, guard: Rc<Guard>) -> Self {
        let frames = if guard.answers { Frames::of_server() } else { Frames::of_client() };
        Self { wire, ahead, frames, guard }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Guarded { wire, ahead, frames, guard } = self.get_mut();
        let before = into.filled().len();
        let outcome = if ahead.is_empty() {
            wire.poll_read(cx, into)
        } else {
            let count = ahead.len().min(into.remaining());
            into.put_slice(&ahead.filled()[..count]);
            ahead.consume(count);
            ahead.rest();
            Poll::Ready(Ok(()))
        };
        frames.pass(&into.filled()[before..], |frame| guard.count(frame));
        if guard.flood.get().is_some() {
            // Whoever drives the connection looks at the guard and ends it.
            into.set_filled(before);
            return Poll::Pending;
        }
        outcome
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.wire.poll_write(cx, pieces);
        if let Poll::Ready(Ok(count)) = outcome {
            self.guard.wrote(count);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(guard: &Guard, kinds: &[Kind], most: usize) -> Option<usize> {
        (0..most).find(|_| {
            kinds.iter().for_each(|kind| {
                let gain = match kind {
                    Kind::Headers => PER_REQUEST,
                    Kind::RstStream => -RESET_COST,
                    _ => -1,
                };
                guard.pay(*kind, gain);
            });
            guard.flood().is_some()
        })
    }

    #[test]
    fn a_client_that_works_is_never_cut_and_a_flood_is() {
        let guard = Guard::new(10);
        let working = [Kind::Headers, Kind::WindowUpdate, Kind::WindowUpdate];
        assert_eq!(spend(&guard, &working, 100_000), None, "each request with the updates of its windows");
        guard.wrote(10 * 1024);
        assert_eq!(spend(&guard, &[Kind::WindowUpdate], 100), None, "a burst is forgiven");
        assert!(spend(&guard, &[Kind::Ping], 100_000).is_some());
        assert_eq!(guard.flood(), Some(Kind::Ping));
        assert!(spend(&Guard::new(10), &[Kind::Headers, Kind::RstStream], 10_000).is_some());
        assert_eq!(spend(&Guard::new(0), &[Kind::Ping], 100_000), None, "no limit");
    }

    #[test]
    fn an_endpoint_may_do_what_it_was_asked_for() {
        let guard = Guard::of_endpoint();
        let answer = [Kind::Other, Kind::Other, Kind::WindowUpdate, Kind::Other];
        for stream in 0..10_000 {
            let expected = guard.asked(stream * 2 + 1);
            assert_eq!(spend(&guard, &answer, 1), None, "interim, head, update, trailers");
            assert!(!expected.is_cut());
        }
        // The burst, and no more than that is kept.
        let most = (ENDPOINT_RATE * BURST_SECONDS) as usize;
        assert!(spend(&guard, &[Kind::Ping], 2 * most).is_some_and(|sent| sent >= most - answer.len()));
        assert!(guard.asked(1).is_cut());
    }

    #[test]
    fn what_bodies_hold_is_counted_until_it_is_taken_or_they_end() {
        let (before, _) = buffer::bytes_held();
        let held = || buffer::bytes_held().0 - before;
        let guard = Guard::new(10);
        guard.expect(1);
        guard.expect(3);
        guard.hold(1, 600);
        guard.hold(3, 500);
        assert_eq!(held(), 1100);
        guard.taken(1, 300);
        assert_eq!(held(), 800);
        guard.ended(1);
        // Still under way when its request ended: dropped at once.
        guard.hold(1, 9000);
        assert_eq!(held(), 500);
        drop(guard);
        assert_eq!(held(), 0);
        // An answer that nobody waits for any longer.
        let endpoint = Guard::of_endpoint();
        let expected = endpoint.asked(1);
        endpoint.hold(1, 700);
        assert_eq!(held(), 700);
        drop(expected);
        assert_eq!(held(), 0);
    }
}
