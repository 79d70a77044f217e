//! What a route does beyond sending a request once, compiled.
//!
//! A route that asks for none of it has none of this, which is all that its requests look at.

use std::time::Duration;

use outrigger_config::Route as RouteConfig;
use outrigger_traffic::RetryPolicy;

/// A route's time limits for tries and streams, and its retries.
#[derive(Debug)]
pub(crate) struct Resilience {
    /// For one try.
    pub(crate) backend_request: Option<Duration>,
    /// For an answer under way in which no byte moves.
    pub(crate) idle: Option<Duration>,
    pub(crate) retry: Option<RetryPolicy>,
}

impl Resilience {
    /// What a route asks for; `None` when it is nothing.
    pub(crate) fn of(config: &RouteConfig) -> Option<Box<Self>> {
        let some = |limit: outrigger_config::Duration| (!limit.is_zero()).then_some(Duration::from(limit));
        let backend_request = some(config.timeouts.backend_request);
        let idle = some(config.timeouts.idle);
        let retry = config.retry.as_ref().map(RetryPolicy::of);
        let any = backend_request.is_some() || idle.is_some() || retry.is_some();
        any.then(|| Box::new(Self { backend_request, idle, retry }))
    }
}
