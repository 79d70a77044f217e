//! Copies of requests for another cluster.
//!
//! In: a request that was answered, with its body. Out: the same at an endpoint of the mirror's cluster. Promise:
//! nobody waits for a copy or sees its answer; bodies and the number under way are bounded, and what is not
//! copied is counted.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use outrigger_config::{ClusterProtocol, RequestMirror};
use outrigger_wire::h1::Framing;
use outrigger_wire::head::Head;

use crate::body::{KeptBody, Sink, Source, poll_pump};
use crate::cluster::Cluster;
use crate::dial::Ends;
use crate::error::Reason;
use crate::exchange::is_grpc;
use crate::metrics::Mirrored;
use crate::pool::{Pool, Way, Wish};
use crate::upstream::{Ask, Got, Up};
use crate::worker::Worker;

/// The largest body that is copied.
pub(crate) const MOST_BODY: usize = 64 * 1024;
/// Copies under way on a worker.
const MOST_COPIES: u32 = 64;
/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(15);

thread_local! {
    static UNDER_WAY: Cell<u32> = const { Cell::new(0) };
}

/// A route's mirror, compiled.
pub(crate) struct Mirror {
    cluster: Arc<Cluster>,
    /// Of how many requests: this many of 2³².
    share: u64,
}

impl Mirror {
    pub(crate) fn of(config: &RequestMirror, cluster: Arc<Cluster>) -> Self {
        let (part, whole) = match (config.percent, &config.fraction) {
            (Some(percent), _) => (percent, 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator.max(1)),
            (None, None) => (1, 1),
        };
        Self { cluster, share: (u64::from(part) << 32) / u64::from(whole) }
    }

    /// Whether a request is copied; `random` is any number.
    pub(crate) fn takes(&self, random: u32) -> bool {
        u64::from(random) < self.share
    }

    /// Sends a copy, in its own time. Without a body there is none to be had.
    pub(crate) fn send(
        &self,
        worker: &Rc<Worker>,
        ends: Ends,
        request: Box<Head>,
        framing: Framing,
        body: Option<KeptBody>,
    ) {
        let pool = worker.pool(&self.cluster);
        let Some(body) = body else { return pool.metrics.mirrored(Mirrored::BodyTooLarge) };
        let Some(place) = Place::take() else { return pool.metrics.mirrored(Mirrored::TooMany) };
        worker.spawn(async move {
            let _place = place;
            let outcome = tokio::time::timeout(PATIENCE, copy(&pool, ends, &request, framing, &body)).await;
            let sent = matches!(outcome, Ok(Ok(())));
            pool.metrics.mirrored(if sent { Mirrored::Sent } else { Mirrored::Failed });
        });
    }
}

/// A place among the copies under way, free again when dropped.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let under_way = UNDER_WAY.get();
        (under_way < MOST_COPIES).then(|| {
            UNDER_WAY.set(under_way + 1);
            Self
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // While the thread ends nobody counts.
        let _ = UNDER_WAY.try_with(|under_way| under_way.set(under_way.get() - 1));
    }
}

/// Sends a request and reads its answer to the end, so that the connection can carry another.
async fn copy(pool: &Rc<Pool>, ends: Ends, request: &Head, framing: Framing, body: &KeptBody) -> Result<(), Reason> {
    let way = match pool.cluster.config.protocol {
        ClusterProtocol::Http2 => Way::Shared,
        ClusterProtocol::Auto if is_grpc(request) => Way::Shared,
        ClusterProtocol::Auto => Way::Either,
        ClusterProtocol::Http1 => Way::Own,
    };
    let key = pool.key(Some(request), ends.client.ip());
    let wish = Wish { way, fresh: false, certain: true, ends, tried: &[], key, prefer: None };
    let mut lease = pool.checkout(wish).await?;
    let (secure, report) = (lease.is_secure(), lease.report());
    let (link, keep) = lease.parts();
    *keep = false;
    let Up { mut sink, mut receiver } = link.open(request, framing, secure, Ask::Answer)?;
    let mut source = Source::Own(body.bytes());
    let mut head = Head::default();
    let mut sent = false;
    let answer: Result<bool, Reason> = poll_fn(|cx| {
        sent = sent || poll_pump(cx, &mut source, &mut sink, |_| {}, &mut None).is_ready();
        loop {
            if let Got::Response(_, reusable) = ready!(receiver.poll_head(cx, &mut head))? {
                return Poll::Ready(Ok(reusable));
            }
        }
    })
    .await;
    let reusable = answer.inspect_err(|reason| report.failed(*reason))?;
    report.answered(&head, is_grpc(&head));
    let (mut rest, mut nowhere) = (receiver.into_source(), Sink::Ended);
    let drained = poll_fn(|cx| poll_pump(cx, &mut rest, &mut nowhere, |_| {}, &mut None)).await;
    drop((rest, sink));
    *lease.parts().1 = reusable && sent && drained.is_ok();
    lease.settle(Instant::now());
    drained.map_err(|_| Reason::Reset)
}
