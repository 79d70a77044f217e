//! Rules of time limits, retries and their budget.

use crate::judge::Judge;
use crate::{Cluster, ConfigPath, RateLimit, RateLimitKeyType, Retry, Route};

pub(super) fn route_rules(route: &Route, at: &ConfigPath, judge: &mut Judge<'_>) {
    let timeouts = &route.timeouts;
    if !timeouts.request.is_zero() && timeouts.backend_request > timeouts.request {
        let message = "`backendRequest` is longer than `request`, which ends the last try before";
        let help = "make it at most `request`, or raise that (`0s` turns it off)";
        judge.error("conflict", &at.key("timeouts").key("backendRequest"), message, help);
    }
    if let Some(retry) = &route.retry {
        retry_rules(retry, &at.key("retry"), judge);
    }
    if let Some(hedge) = &route.hedge {
        let at = at.key("hedge");
        judge.exactly_one(&at, &[("after", hedge.after.is_some()), ("percentile", hedge.percentile.is_some())]);
        if let Some(after) = hedge.after {
            judge.not_zero(&at.key("after"), after);
        }
    }
    rate_limit_rules(&route.rate_limits, &at.key("rateLimits"), judge);
}

pub(super) fn rate_limit_rules(limits: &[RateLimit], at: &ConfigPath, judge: &mut Judge<'_>) {
    let named = limits.iter().enumerate();
    judge.unique(
        "limit",
        "give each a name of its own",
        named.map(|(i, limit)| (at.index(i).key("name"), &limit.name)),
    );
    for (index, limit) in limits.iter().enumerate() {
        let at = at.index(index);
        judge.not_zero(&at.key("per"), limit.per);
        for (index, part) in limit.key.iter().enumerate() {
            let at = at.key("key").index(index);
            match (part.kind, &part.header) {
                (RateLimitKeyType::Header, None) => {
                    let message = "`type: Header` needs `header`, to know which one";
                    judge.error("missing", &at, message, "add `header: { name: … }`");
                }
                (RateLimitKeyType::Header, Some(_)) | (_, None) => {}
                (_, Some(_)) => {
                    let message = "`header` is for `type: Header`";
                    judge.error("conflict", &at.key("header"), message, "remove it, or change `type`");
                }
            }
            if part.client_address.is_some() && part.kind != RateLimitKeyType::ClientAddress {
                let message = "`clientAddress` is for `type: ClientAddress`";
                judge.error("conflict", &at.key("clientAddress"), message, "remove it, or change `type`");
            }
        }
    }
}

fn retry_rules(retry: &Retry, at: &ConfigPath, judge: &mut Judge<'_>) {
    let (codes, grpc_codes, on) = (at.key("codes"), at.key("grpcCodes"), at.key("on"));
    for (index, code) in retry.codes.iter().enumerate().filter(|(_, code)| !(400..600).contains(*code)) {
        let message = format!("{code} is no status of a failure");
        judge.error("value", &codes.index(index), message, "write statuses from 400 to 599");
    }
    let listed = retry.codes.iter().enumerate();
    judge.unique("status", "keep one of them", listed.map(|(i, code)| (codes.index(i), *code)));
    let listed = retry.grpc_codes.iter().enumerate();
    judge.unique("status", "keep one of them", listed.map(|(i, code)| (grpc_codes.index(i), *code)));
    let listed = retry.on.iter().enumerate();
    judge.unique("failure", "keep one of them", listed.map(|(i, failure)| (on.index(i), *failure)));
    if retry.on.is_empty() && retry.codes.is_empty() && retry.grpc_codes.is_empty() {
        let message = "nothing is ever sent again: `on`, `codes` and `grpcCodes` are empty";
        judge.error("value", at, message, "name failures in one of them, or remove `retry`");
    }
    judge.not_zero(&at.key("backoff"), retry.backoff);
    if retry.max_backoff < retry.backoff {
        let message = "`maxBackoff` is shorter than `backoff`";
        judge.error("conflict", &at.key("maxBackoff"), message, "make it at least as long");
    }
}

pub(super) fn cluster_rules(cluster: &Cluster, at: &ConfigPath, judge: &mut Judge<'_>) {
    let constraint = at.key("retryConstraint");
    judge.not_zero(&constraint.key("budget").key("interval"), cluster.retry_constraint.budget.interval);
    judge.not_zero(&constraint.key("minRetryRate").key("interval"), cluster.retry_constraint.min_retry_rate.interval);
    if let Some(adaptive) = &cluster.adaptive_concurrency {
        let at = at.key("adaptiveConcurrency");
        judge.not_zero(&at.key("measureInterval"), adaptive.measure_interval);
        if adaptive.max_concurrency < adaptive.min_concurrency {
            let message = "`maxConcurrency` is lower than `minConcurrency`";
            judge.error("conflict", &at.key("maxConcurrency"), message, "make it at least as high");
        }
    }
}
