//! The gRPC service: `DeltaAggregatedResources`.
//!
//! In: streams of proxies that proved who they are. Out: their answers. Promise: a stream costs its state and nothing else,
//! no task and no queue; a proxy that sends without end lets others have their turn.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use outrigger_http::{GrpcAnswer, GrpcAnswers, GrpcCall, GrpcCode, GrpcMessages, GrpcOpened, GrpcService, GrpcStatus};
use outrigger_wire::xds::{DELTA_ADS, Request};

use crate::catalogue::Catalogue;
use crate::metrics::Metrics;
use crate::stream::Subscriber;

/// Requests of one stream that are taken before others have their turn.
const TURN: usize = 16;

pub(crate) struct DiscoveryService {
    pub(crate) catalogue: Catalogue,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) most_names: usize,
}

impl GrpcService for DiscoveryService {
    fn call(&self, _: GrpcCall) -> GrpcAnswer<'_> {
        let status =
            GrpcStatus::new(GrpcCode::Unimplemented, "only delta ADS (DeltaAggregatedResources) is served here");
        Box::pin(async move { Err(status) })
    }

    fn streams(&self, method: &str) -> bool {
        method == DELTA_ADS
    }

    fn open(&self, opened: GrpcOpened) -> Result<Box<dyn GrpcAnswers>, GrpcStatus> {
        let proxy = opened.identity.as_ref().map(|id| id.as_str()).unwrap_or_default();
        tracing::debug!(component = "discovery", peer = %opened.peer, proxy, "a proxy is connected");
        let subscriber = Subscriber::counted(&self.catalogue, self.most_names, Arc::clone(&self.metrics));
        Ok(Box::new(Serving { messages: opened.messages, subscriber }))
    }
}

/// A stream under way.
struct Serving {
    messages: GrpcMessages,
    subscriber: Subscriber,
}

impl GrpcAnswers for Serving {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<Bytes>, GrpcStatus>>> {
        for turn in 0.. {
            match self.messages.poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(status) = self.subscriber.take(&Request::read(&message)) {
                        tracing::warn!(component = "discovery", reason = status.message, "a proxy's stream is ended");
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
        if let Some(answer) = self.subscriber.answer() {
            return Poll::Ready(Some(Ok(answer)));
        }
        self.subscriber.wake(cx.waker());
        Poll::Pending
    }
}
