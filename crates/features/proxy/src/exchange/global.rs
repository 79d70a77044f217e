//! Asks the rate limit service about a request, where its listener or route wants that.
//!
//! In: a request that nothing of our own limits, and that goes to a cluster or is answered by a filter. Out: leave to go on, or the reason to refuse it. Promise: a service that
//! fails is counted, and decides nothing unless the config says so; a request without descriptors asks nobody.

use std::pin::pin;
use std::rc::Rc;

use outrigger_traffic::{Subject, descriptors, x_ratelimit_headers};
use outrigger_wire::head::Head;
use outrigger_wire::rate_limit_service::Code;

use super::Exchange;
use crate::error::Reason;
use crate::global_limit::{GlobalLimit, allowed};

impl Exchange {
    /// Whether the service lets a request go to a cluster, or to the filter that answers it.
    pub(super) async fn ask_service(
        &mut self,
        limit: &GlobalLimit,
        cluster: Option<&str>,
        request: &mut Head,
    ) -> Result<(), Reason> {
        let downstream = Rc::clone(&self.downstream);
        let answer = {
            let subject = Subject {
                request,
                client: Some(downstream.remote.ip()),
                peer: downstream.peer.as_ref().map(|peer| peer.id.as_str()),
                route: &limit.route,
                cluster,
            };
            let descriptors = descriptors(&limit.limits, &subject);
            if descriptors.is_empty() {
                return Ok(());
            }
            let service = downstream.local.worker.pool(&limit.cluster);
            self.in_time(pin!(limit.ask(&service, downstream.ends, &descriptors))).await?
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                limit.error.inc();
                let (route, cluster, denied) = (&limit.route, &limit.cluster.name, limit.deny);
                tracing::debug!(component = "proxy", route, cluster, denied, %error, "rate limit service failed");
                return if limit.deny { Err(Reason::RateLimitService) } else { Ok(()) };
            }
        };
        let over = answer.code == Code::OverLimit;
        if over {
            limit.over_limit.inc()
        } else {
            limit.ok.inc()
        }
        if let Some(tries) = &mut self.tries {
            let told = x_ratelimit_headers(&answer.statuses).filter(|_| limit.tells);
            tries.fields.extend(told.into_iter().flatten().map(|(name, value)| (name.into(), value.into())));
            if over {
                tries.fields.push(("x-envoy-ratelimited".into(), b"true".to_vec()));
                tries.body = answer.body;
            }
            tries.fields.extend(allowed(answer.response_headers).map(|(name, value)| (name.into(), value)));
        }
        if over {
            return Err(Reason::OverGlobalLimit);
        }
        allowed(answer.request_headers).for_each(|(name, value)| request.push(&name, &value));
        Ok(())
    }
}
