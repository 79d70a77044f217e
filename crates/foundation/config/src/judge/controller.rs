//! Rules of the section `controller`.

use std::path::PathBuf;

use super::Judge;
use crate::units::is_host;
use crate::{Config, ConfigPath, Duration};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let Some(controller) = &config.controller else { return };
    let at = ConfigPath::from("controller");
    let kubernetes = at.key("kubernetes");
    judge.not_zero(&kubernetes.key("timeout"), controller.kubernetes.timeout);
    context_of_kubeconfig(&kubernetes, &controller.kubernetes.kubeconfig, &controller.kubernetes.context, judge);
    if controller.identity.as_ref().is_some_and(String::is_empty) {
        let help = "leave it out, or write a name that no other replica has";
        judge.error("value", &at.key("identity"), "`identity` is empty", help);
    }
    election(config, &at.key("election"), judge);
    webhook(config, &at.key("webhook"), judge);
    if controller.profiles.is_some() && controller.webhook.is_none() {
        let help = "add `webhook: {}`, or leave `profiles` out";
        judge.error(
            "conflict",
            &at.key("profiles"),
            "`profiles` are applied and judged by the webhook, which is off",
            help,
        );
    }
    let repair = at.key("repair");
    judge.not_zero(&repair.key("pace"), controller.repair.pace);
}

/// A context is one of a kubeconfig.
pub(super) fn context_of_kubeconfig(
    at: &ConfigPath,
    kubeconfig: &Option<PathBuf>,
    context: &Option<String>,
    judge: &mut Judge<'_>,
) {
    if context.is_some() && kubeconfig.is_none() {
        let message = "`context` names a context of no kubeconfig";
        judge.error("conflict", &at.key("context"), message, "set `kubeconfig`, too");
    }
}

fn election(config: &Config, at: &ConfigPath, judge: &mut Judge<'_>) {
    let Some(election) = config.controller.as_ref().map(|controller| &controller.election) else { return };
    judge.not_zero(&at.key("retry"), election.retry);
    // In this order each must be longer than the one before, or nobody leads for long, or two do.
    let steps = [
        ("renewDeadline", election.renew_deadline, "retry", election.retry),
        ("duration", election.duration, "renewDeadline", election.renew_deadline),
    ];
    for (longer, long, shorter, short) in steps {
        if long <= short {
            let (longer, shorter) = (at.key(longer), at.key(shorter));
            let (shown, other) = (judge.shown(&longer, &long), judge.shown(&shorter, &short));
            let place = judge.given_of([&longer, &shorter]).clone();
            let message = format!("`{longer}` ({shown}) is not longer than `{shorter}` ({other})");
            judge.error(
                "conflict",
                &place,
                message,
                "the usual times are `retry: 2s`, `renewDeadline: 10s`, `duration: 15s`",
            );
        }
    }
    if election.duration < Duration::from_secs(1) {
        let message = "`duration` is below a second, the least that a Lease can say";
        judge.error("value", &at.key("duration"), message, "write `15s`, as is usual");
    }
}

fn webhook(config: &Config, at: &ConfigPath, judge: &mut Judge<'_>) {
    let Some(webhook) = config.controller.as_ref().and_then(|controller| controller.webhook.as_ref()) else { return };
    for (index, name) in webhook.names.iter().enumerate() {
        if !is_host(name) && name.parse::<std::net::Ipv6Addr>().is_err() {
            let place = at.key("names").index(index);
            let message = format!("`{}` is neither a DNS name nor an IP address", judge.shown(&place, name));
            judge.error("value", &place, message, "write it as the API server dials it, without a port");
        }
    }
    let certificate = at.key("certificate");
    let (lifetime, propagation) = (certificate.key("lifetime"), certificate.key("propagation"));
    judge.not_zero(&propagation, webhook.certificate.propagation);
    if webhook.certificate.lifetime.0 < webhook.certificate.propagation.0 * 6 {
        let shown = judge.shown(&lifetime, &webhook.certificate.lifetime);
        let most = judge.shown(&propagation, &webhook.certificate.propagation);
        let place = judge.given_of([&lifetime, &propagation]).clone();
        let message = format!("`lifetime` ({shown}) is less than six times `propagation` ({most})");
        judge.error("conflict", &place, message, "an authority's last third must have room for the change to the next");
    }
    if webhook.max_body.0 < 64 << 10 {
        let message = "`maxBody` is below 64KiB, which many pods are larger than";
        judge.error("value", &at.key("maxBody"), message, "write `8MiB`, which holds whatever the API server takes");
    }
}
