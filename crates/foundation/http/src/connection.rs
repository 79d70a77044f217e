//! One client's connection to a gRPC server: its calls, and when it ends.
//!
//! In: a connection after its TLS handshake, a service. Out: answers. Promise: all of it is one task, so a stream that rests costs its state and
//! no more, and a look at the connection is one write; a call that panics fails alone; a client that vanished is found out by pings; a connection
//! that is too old, or in which nothing was called for long, ends after the calls under way, and at last by force.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use outrigger_config::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::grpc::{GRPC_STATUS, PREFIX};
use crate::server::{GrpcCall, GrpcCode, GrpcServerOptions, GrpcService, GrpcStatus, put_status};
use crate::stream::{GrpcAnswers, GrpcMessages, GrpcOpened, framed};

/// Bytes of a call's headers; a token has 2 KiB at most.
const MAX_HEAD: u32 = 32 << 10;
/// Bytes of a stream, and of all streams of a connection, that may come before they are asked for.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
/// Bytes of a stream that wait to be written.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that a client reset before we looked at them.
const MOST_PENDING_RESETS: usize = 64;
/// Errors of the client's making that cost it a stream each, until they cost it the connection.
const MOST_ERRORS: usize = 100;

/// Who is served, and by whom.
pub(crate) struct Caller {
    pub(crate) peer: SocketAddr,
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) service: Arc<dyn GrpcService>,
    pub(crate) options: Arc<GrpcServerOptions>,
}

/// Serves a connection to its end, which begins when `closed` says so.
pub(crate) async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin,
    caller: Caller,
    mut closed: watch::Receiver<bool>,
) -> Result<(), h2::Error> {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(caller.options.max_calls)
        .max_header_list_size(MAX_HEAD)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MOST_ERRORS));
    let limit = caller.options.handshake_timeout;
    let Ok(begun) = timeout(limit, builder.handshake::<_, Bytes>(io)).await else {
        tracing::debug!(peer = %caller.peer, "a client said nothing after its TLS handshake");
        return Ok(());
    };
    let mut connection = begun?;
    let mut times = Times::new(&caller.options, connection.ping_pong());
    let mut timer = pin!(sleep_until(times.next()));
    let mut closing = pin!(closed.wait_for(|closed| *closed));
    let mut calls: Vec<Call> = Vec::new();
    poll_fn(|cx| {
        if !times.is_ending() && closing.as_mut().poll(cx).is_ready() {
            connection.graceful_shutdown();
            times.end();
            timer.as_mut().reset(times.next());
        }
        while timer.as_mut().poll(cx).is_ready() {
            match times.due() {
                Due::Nothing => {}
                Due::End => {
                    connection.graceful_shutdown();
                    times.end();
                }
                Due::Break(why) => {
                    tracing::debug!(peer = %caller.peer, why, "a connection is given up");
                    return Poll::Ready(Ok(()));
                }
            }
            timer.as_mut().reset(times.next());
        }
        loop {
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => calls.extend(caller.begin(request, respond)),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            times.hear(cx);
            let moved = poll_calls(&mut calls, times.is_ending(), cx);
            times.busy(!calls.is_empty());
            // What they said is still to be sent, and room that this makes may let them say more.
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await
}

impl Caller {
    /// Begins a call; nothing when it is answered already.
    fn begin(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Call> {
        let (head, body) = request.into_parts();
        if let Err(status) = is_grpc(&head) {
            answer_http(&mut respond, status);
            return None;
        }
        let method = head.uri.path().to_owned();
        if !self.service.streams(&method) {
            let (service, peer, metadata) = (Arc::clone(&self.service), self.peer, head.headers);
            let (limit, most) = (self.options.timeout, self.options.max_request);
            let answering = async move {
                let answer = async {
                    let message = whole(body, most).await?;
                    service.call(GrpcCall { method, metadata, peer, message }).await
                };
                timeout(limit, answer).await.unwrap_or_else(|_| {
                    Err(GrpcStatus::new(GrpcCode::DeadlineExceeded, format!("not answered within {limit:?}")))
                })
            };
            return Some(Call::One(Box::pin(answering), respond));
        }
        let messages = GrpcMessages::of_call(body, self.options.max_request);
        let (metadata, identity) = (head.headers, self.identity.clone());
        let opened = GrpcOpened { method, metadata, peer: self.peer, identity, messages };
        match guarded(|| self.service.open(opened)).flatten() {
            Ok(answers) => {
                // The client has gone if this fails.
                let out = respond.send_response(grpc(), false).ok()?;
                Some(Call::Stream(Stream { answers, queue: VecDeque::new(), out }))
            }
            Err(status) => {
                answer_status(&mut respond, &status);
                None
            }
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Bytes, GrpcStatus>> + Send>>;

/// A call under way.
enum Call {
    /// One message comes, and one goes back.
    One(Answering, SendResponse<Bytes>),
    Stream(Stream),
}

/// A stream under way.
struct Stream {
    answers: Box<dyn GrpcAnswers>,
    /// The rest of an answer.
    queue: VecDeque<Bytes>,
    out: SendStream<Bytes>,
}

/// What came of looking at a call.
#[derive(PartialEq, Eq)]
enum Step {
    Waits,
    /// It said something.
    Said,
    Over,
}

/// Goes on with the calls that can; whether any said something.
fn poll_calls(calls: &mut Vec<Call>, ending: bool, cx: &mut Context<'_>) -> bool {
    let mut moved = false;
    calls.retain_mut(|call| {
        let step = match call {
            Call::One(answering, respond) => poll_one(answering, respond, cx),
            Call::Stream(stream) => stream.poll(ending, cx),
        };
        moved |= step != Step::Waits;
        step != Step::Over
    });
    moved
}

fn poll_one(answering: &mut Answering, respond: &mut SendResponse<Bytes>, cx: &mut Context<'_>) -> Step {
    if respond.poll_reset(&mut silent()).is_ready() {
        return Step::Over;
    }
    match guarded(|| answering.as_mut().poll(cx)) {
        Ok(Poll::Pending) => return Step::Waits,
        Ok(Poll::Ready(Ok(message))) => answer_message(respond, &message),
        Ok(Poll::Ready(Err(status))) | Err(status) => answer_status(respond, &status),
    }
    Step::Over
}

impl Stream {
    /// The next answer is asked for when the one before has gone to the connection.
    fn poll(&mut self, ending: bool, cx: &mut Context<'_>) -> Step {
        let mut step = Step::Waits;
        loop {
            if self.out.poll_reset(&mut silent()).is_ready() {
                return Step::Over;
            }
            if ending {
                let status = "this connection has had its time; connect again";
                return self.end(Some(&GrpcStatus::new(GrpcCode::Unavailable, status)));
            }
            if self.out.capacity() == 0 {
                self.out.reserve_capacity(1);
                match self.out.poll_capacity(&mut silent()) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Step::Over,
                    Poll::Pending => return step,
                }
            }
            if let Some(bytes) = self.queue.pop_front() {
                if self.out.send_data(bytes, false).is_err() {
                    return Step::Over;
                }
                step = Step::Said;
                continue;
            }
            match guarded(|| self.answers.poll_next(cx)) {
                Ok(Poll::Pending) => return step,
                Ok(Poll::Ready(Some(Ok(parts)))) => framed(parts, &mut self.queue),
                Ok(Poll::Ready(Some(Err(status)))) | Err(status) => return self.end(Some(&status)),
                Ok(Poll::Ready(None)) => return self.end(None),
            }
        }
    }

    fn end(&mut self, status: Option<&GrpcStatus>) -> Step {
        let mut trailers = HeaderMap::new();
        match status {
            Some(status) => put_status(status, &mut trailers),
            None => drop(trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"))),
        }
        // The client has gone if this fails.
        let _ = self.out.send_trailers(trailers);
        Step::Over
    }
}

/// What the service does for one call. Its panic, which the process's own log tells of, is that call's status, and the others go on.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, GrpcStatus> {
    let fault = |_| GrpcStatus::new(GrpcCode::Internal, "a fault of the server, which its log tells of");
    catch_unwind(AssertUnwindSafe(work)).map_err(fault)
}

/// For what only changes while the connection is looked at: the calls are looked at after that in any case, and to wake the task that does both, while
/// it does, would have it look a second time.
pub(crate) fn silent() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// When a connection is to be looked at though nothing happens.
struct Times {
    ping_every: Duration,
    pong_within: Duration,
    idle_timeout: Duration,
    /// Time for the calls under way, once the end has begun.
    farewell: Duration,
    pings: Option<PingPong>,
    ends_at: Instant,
    ping_at: Instant,
    /// A ping was sent that is to be answered by then.
    pong_by: Option<Instant>,
    /// Nothing has been called since then.
    idle_since: Option<Instant>,
    /// The end has begun, and is to be done by then.
    over_by: Option<Instant>,
}

/// What is due.
enum Due {
    Nothing,
    End,
    Break(&'static str),
}

impl Times {
    fn new(options: &GrpcServerOptions, pings: Option<PingPong>) -> Self {
        let now = Instant::now();
        Self {
            ping_every: options.idle_timeout / 2,
            pong_within: options.handshake_timeout,
            idle_timeout: options.idle_timeout,
            farewell: options.timeout * 2,
            pings,
            ends_at: now + earlier(options.max_age),
            ping_at: now + options.idle_timeout / 2,
            pong_by: None,
            idle_since: Some(now),
            over_by: None,
        }
    }

    fn is_ending(&self) -> bool {
        self.over_by.is_some()
    }

    /// The end begins.
    fn end(&mut self) {
        self.over_by = Some(Instant::now() + self.farewell);
    }

    /// Notes whether anything is called.
    fn busy(&mut self, busy: bool) {
        if busy != self.idle_since.is_none() {
            self.idle_since = (!busy).then(Instant::now);
        }
    }

    /// Takes the answer to a ping.
    fn hear(&mut self, cx: &mut Context<'_>) {
        if self.pong_by.is_some() && self.pings.as_mut().is_some_and(|pings| pings.poll_pong(cx).is_ready()) {
            self.pong_by = None;
        }
    }

    fn idle_at(&self) -> Option<Instant> {
        self.idle_since.map(|since| since + self.idle_timeout)
    }

    /// Never later than the next ping, so what may come before it (the end of a rest that has yet to begin) is not missed by much.
    fn next(&self) -> Instant {
        let ending = if self.is_ending() {
            self.over_by
        } else {
            self.idle_at().map(|idle| idle.min(self.ends_at)).or(Some(self.ends_at))
        };
        [ending, self.pong_by].into_iter().flatten().fold(self.ping_at, Instant::min)
    }

    fn due(&mut self) -> Due {
        let now = Instant::now();
        if self.over_by.is_some_and(|by| by <= now) {
            return Due::Break("its calls did not end in time");
        }
        if self.pong_by.is_some_and(|by| by <= now) {
            return Due::Break("the client does not answer a ping");
        }
        if self.ping_at <= now {
            self.ping_at = now + self.ping_every;
            if self.pong_by.is_none()
                && self.pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok())
            {
                self.pong_by = Some(now + self.pong_within);
            }
        }
        let over = self.ends_at <= now || self.idle_at().is_some_and(|at| at <= now);
        if over && !self.is_ending() { Due::End } else { Due::Nothing }
    }
}

/// A little earlier.
fn earlier(age: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
    age.mul_f64(1.0 - chance / 4.0)
}

/// The one message of a call.
async fn whole(mut body: RecvStream, most: usize) -> Result<Bytes, GrpcStatus> {
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        // The client has gone, so nobody reads this.
        let data = data.map_err(|_| GrpcStatus::new(GrpcCode::Unavailable, "the message broke off"))?;
        if whole.len() + data.len() > most + PREFIX {
            return Err(GrpcStatus::new(
                GrpcCode::ResourceExhausted,
                format!("the message is larger than {most} bytes"),
            ));
        }
        whole.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    unframed(whole.freeze())
}

fn unframed(mut body: Bytes) -> Result<Bytes, GrpcStatus> {
    let bad = |message: &str| GrpcStatus::new(GrpcCode::InvalidArgument, message);
    if body.len() < PREFIX {
        return Err(bad("the call holds no message"));
    }
    if body.get_u8() != 0 {
        return Err(GrpcStatus::new(GrpcCode::Unimplemented, "compressed messages are not taken"));
    }
    if body.get_u32() as usize != body.len() {
        return Err(bad("the call is not one whole message"));
    }
    Ok(body)
}

/// The status where a call is none of gRPC's.
fn is_grpc(head: &http::request::Parts) -> Result<(), StatusCode> {
    if head.method != Method::POST {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if kind.starts_with(b"application/grpc") { Ok(()) } else { Err(StatusCode::UNSUPPORTED_MEDIA_TYPE) }
}

fn grpc() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

// Where a client has gone, nobody hears that it cannot be answered.

fn answer_http(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let _ = respond.send_response(response, true);
}

/// A status without a message stands among the headers.
fn answer_status(respond: &mut SendResponse<Bytes>, status: &GrpcStatus) {
    let mut response = grpc();
    put_status(status, response.headers_mut());
    let _ = respond.send_response(response, true);
}

/// What the client's window does not let go waits, within the number of calls.
fn answer_message(respond: &mut SendResponse<Bytes>, message: &[u8]) {
    let Ok(mut out) = respond.send_response(grpc(), false) else { return };
    let mut whole = BytesMut::with_capacity(PREFIX + message.len());
    whole.put_u8(0);
    whole.put_u32(message.len() as u32);
    whole.put_slice(message);
    if out.send_data(whole.freeze(), false).is_ok() {
        let _ = out.send_trailers(HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_one_whole_message() {
        let framed = |bytes: &'static [u8]| unframed(Bytes::from_static(bytes));
        assert_eq!(framed(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), Bytes::from_static(&[7, 8]));
        for (name, bytes, code) in [
            ("none", &[][..], GrpcCode::InvalidArgument),
            ("cut", &[0, 0, 0, 0, 2, 7], GrpcCode::InvalidArgument),
            ("compressed", &[1, 0, 0, 0, 1, 7], GrpcCode::Unimplemented),
            ("two", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0], GrpcCode::InvalidArgument),
        ] {
            assert_eq!(unframed(Bytes::copy_from_slice(bytes)).unwrap_err().code, code, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_it_rests_too_long_or_does_not_answer() {
        let options = GrpcServerOptions { idle_timeout: Duration::from_secs(60), ..GrpcServerOptions::default() };
        let mut times = Times::new(&options, None);
        let mut seen = Vec::new();
        let begun = Instant::now();
        times.busy(true);
        for seconds in [40, 100] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert!(matches!(times.due(), Due::Nothing), "it is in use");
            assert!(times.next() <= Instant::now() + Duration::from_secs(30));
        }
        times.busy(false);
        while !matches!(times.due(), Due::End) {
            tokio::time::sleep_until(times.next()).await;
            seen.push(begun.elapsed().as_secs());
        }
        assert_eq!(seen.last(), Some(&200), "{seen:?}");
        times.end();
        tokio::time::sleep_until(times.next()).await;
        while !matches!(times.due(), Due::Break(_)) {
            tokio::time::sleep_until(times.next()).await;
        }
        assert_eq!(begun.elapsed().as_secs(), 230, "twice the time of a call");
    }
}
