//! Rules of the sections `runtime`, `admin`, `telemetry`, `identity` and `metrics`.

use super::Judge;
use crate::units::UNIX_PATH_MAX;
use crate::{ByteSize, Config, ConfigPath, IdentityWorkloadApi, ListenAddress, TrustDomain};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    runtime(config, judge);
    admin(config, judge);
    registry(config, judge);
    tracing(config, judge);
    identity(config, judge);
    statsd(config, judge);
    scrape(config, judge);
}

fn runtime(config: &Config, judge: &mut Judge<'_>) {
    let (runtime, at) = (&config.runtime, ConfigPath::from("runtime"));
    let (shutdown, flush) = (at.key("shutdownBudget"), at.key("flushBudget"));
    judge.not_zero(&shutdown, runtime.shutdown_budget);
    if runtime.flush_budget >= runtime.shutdown_budget && !runtime.shutdown_budget.is_zero() {
        let (flush_shown, shutdown_shown) =
            (judge.shown(&flush, &runtime.flush_budget), judge.shown(&shutdown, &runtime.shutdown_budget));
        let message = format!("`flushBudget` ({flush_shown}) must be shorter than `shutdownBudget` ({shutdown_shown})");
        let place = judge.given_of([&flush, &shutdown]).clone();
        judge.error("conflict", &place, message, "it is the part of the shutdown budget kept back for the last flush");
    }
    let (first, longest) = (at.key("restartBackoff"), at.key("restartBackoffMax"));
    judge.not_zero(&first, runtime.restart_backoff);
    if runtime.restart_backoff > runtime.restart_backoff_max {
        let (first_shown, longest_shown) =
            (judge.shown(&first, &runtime.restart_backoff), judge.shown(&longest, &runtime.restart_backoff_max));
        let message = format!("`restartBackoff` ({first_shown}) is longer than `restartBackoffMax` ({longest_shown})");
        let place = judge.given_of([&first, &longest]).clone();
        judge.error("conflict", &place, message, "the wait begins with the one and grows up to the other");
    }
    if let Some(handover) = &runtime.handover {
        let socket = at.key("handover").key("socket");
        let length = handover.socket.as_os_str().len();
        if !handover.socket.is_absolute() || length > UNIX_PATH_MAX {
            let shown = judge.shown(&socket, &handover.socket.display());
            let message = format!("`{shown}` cannot be the path of the keeper's socket");
            let help = format!(
                "write an absolute path of at most {UNIX_PATH_MAX} bytes, such as `/run/outrigger/keeper.sock`"
            );
            judge.error("value", &socket, message, help);
        }
    }
}

fn admin(config: &Config, judge: &mut Judge<'_>) {
    let at = ConfigPath::from("admin.listen");
    if let ListenAddress::Ip(address) = &config.admin.listen
        && !address.ip().is_loopback()
    {
        let message =
            format!("the admin API may not listen on `{}`: it is for this pod only", judge.shown(&at, address));
        let help = format!("use a loopback address such as `127.0.0.1:{}`, or `unix:/path`", address.port());
        let help = if judge.is_literal(&at) { help } else { "use a loopback address, or `unix:/path`".to_owned() };
        judge.error("value", &at, message, help);
    }
}

fn registry(config: &Config, judge: &mut Judge<'_>) {
    let (registry, at) = (&config.telemetry.registry, ConfigPath::from("telemetry.registry"));
    let (all, family) = (at.key("maxSeries"), at.key("maxSeriesPerFamily"));
    if registry.max_series_per_family > registry.max_series {
        let (family_shown, all_shown) =
            (judge.shown(&family, &registry.max_series_per_family), judge.shown(&all, &registry.max_series));
        let message = format!("`maxSeriesPerFamily` ({family_shown}) is more than `maxSeries` ({all_shown})");
        let place = judge.given_of([&family, &all]).clone();
        judge.error(
            "conflict",
            &place,
            message,
            "one family cannot have more series than all together; lower `maxSeriesPerFamily`",
        );
    }
    judge.not_zero(&at.key("seriesTtl"), registry.series_ttl);
    if registry.max_label_bytes.0 < 16 {
        judge.error(
            "value",
            &at.key("maxLabelBytes"),
            "`maxLabelBytes` is too small to tell values apart",
            "allow at least `16B`",
        );
    }
}

fn identity(config: &Config, judge: &mut Judge<'_>) {
    let Some(identity) = &config.identity else { return };
    let at = ConfigPath::from("identity");
    let sources = [
        ("files", identity.files.is_some()),
        ("authority", identity.authority.is_some()),
        ("ownAuthority", identity.own_authority.is_some()),
        ("workloadApi", identity.workload_api.is_some()),
        ("development", identity.development.is_some()),
    ];
    judge.exactly_one(&at, &sources);
    if let Some(authority) = &identity.authority {
        let at = at.key("authority");
        judge.not_zero(&at.key("ttl"), authority.ttl);
        judge.not_zero(&at.key("timeout"), authority.timeout);
    }
    if identity.own_authority.is_some() {
        let signs_for = config.authority.as_ref().map(|authority| &authority.trust_domain);
        if signs_for.is_none() {
            judge.error(
                "missing",
                &at.key("ownAuthority"),
                "this process is no authority",
                "add the section `authority`, or take the identity from another one (`authority` here)",
            );
        } else if signs_for != Some(&identity.trust_domain) {
            let place = at.key("trustDomain");
            let shown = judge.shown(&place, &identity.trust_domain);
            judge.error(
                "conflict",
                &place,
                format!("`{shown}` is not the trust domain that `authority` signs for"),
                "write the same `trustDomain` in both sections",
            );
        }
    }
    if let Some(agent) = &identity.workload_api {
        workload_api(agent, &identity.trust_domain, &at, judge);
    }
    if let Some(development) = &identity.development {
        judge.not_zero(&at.key("development").key("ttl"), development.ttl);
    }
    if let Some(files) = &identity.files {
        let (at, crl) = (at.key("files"), at.key("files").key("crl"));
        let listed = files.crl.iter().enumerate();
        judge.unique("revocation list", "keep one of them", listed.map(|(i, path)| (crl.index(i), path.clone())));
        if files.crl_required && files.crl.is_empty() && !judge.checked.is_blurred_within(&crl) {
            let message = "`crlRequired` without a list in `crl` would refuse every peer";
            judge.error(
                "conflict",
                &at.key("crlRequired"),
                message,
                "name the lists in `crl`, or remove `crlRequired`",
            );
        }
    }
}

fn workload_api(agent: &IdentityWorkloadApi, trust_domain: &TrustDomain, identity: &ConfigPath, judge: &mut Judge<'_>) {
    let at = identity.key("workloadApi");
    judge.not_zero(&at.key("timeout"), agent.timeout);
    let (id, hint) = (at.key("spiffeId"), at.key("hint"));
    if agent.spiffe_id.is_some() && agent.hint.is_some() {
        judge.error("conflict", &hint, "`spiffeId` and `hint` both say which identity to take", "keep one of them");
    }
    if let Some(wanted) = &agent.spiffe_id
        && wanted.trust_domain() != trust_domain.as_str()
    {
        let domain = judge.shown(&identity.key("trustDomain"), trust_domain);
        let message = format!("`{}` is not of the trust domain `{domain}`", judge.shown(&id, wanted));
        judge.error("conflict", &id, message, "name an identity of that domain, or correct `trustDomain`");
    }
}

fn scrape(config: &Config, judge: &mut Judge<'_>) {
    let at = ConfigPath::from("metrics.scrape");
    let targets = config.metrics.iter().flat_map(|metrics| &metrics.scrape).enumerate();
    judge.unique(
        "scrape target",
        "give each a name of its own",
        targets.clone().map(|(index, target)| (at.index(index).key("name"), &target.name)),
    );
    for (index, target) in targets {
        judge.not_zero(&at.index(index).key("timeout"), target.timeout);
        if target.max_bytes.0 == 0 {
            let message = "`maxBytes` must not be empty";
            judge.error("value", &at.index(index).key("maxBytes"), message, "write a size such as `4MiB`");
        }
    }
}

fn statsd(config: &Config, judge: &mut Judge<'_>) {
    let Some(statsd) = config.metrics.as_ref().and_then(|metrics| metrics.statsd.as_ref()) else { return };
    let at = ConfigPath::from("metrics.statsd");
    let buckets = at.key("buckets");
    if statsd.buckets.is_empty() {
        judge.error("value", &buckets, "`buckets` is empty", "give at least one upper bound, such as `[0.1, 1.0]`");
    }
    for (index, pair) in statsd.buckets.windows(2).enumerate() {
        let (before, here) = (buckets.index(index), buckets.index(index + 1));
        if pair[0] >= pair[1] && !judge.checked.is_blurred(&before) {
            let (before, shown) = (judge.shown(&before, &pair[0]), judge.shown(&here, &pair[1]));
            let message = format!("the bound `{shown}` is not greater than `{before}` before it");
            judge.error("value", &here, message, "order the bounds from small to large, each one once");
        }
    }
    if statsd.receive_buffer.0 == 0 {
        judge.error(
            "value",
            &at.key("receiveBuffer"),
            "`receiveBuffer` must not be empty",
            "write a size such as `1MiB`",
        );
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-');
    if !statsd.prefix.chars().all(allowed) || statsd.prefix.starts_with(|c: char| c.is_ascii_digit()) {
        let prefix = at.key("prefix");
        let message = format!("`{}` cannot begin the name of a metric", judge.shown(&prefix, &statsd.prefix));
        judge.error(
            "value",
            &prefix,
            message,
            "use letters, digits, `_`, `:`, `.` and `-`, beginning with no digit, such as `shop_`",
        );
    }
}

fn tracing(config: &Config, judge: &mut Judge<'_>) {
    let Some(tracing) = &config.telemetry.tracing else { return };
    let at = ConfigPath::from("telemetry.tracing");
    let ratio = at.key("sampling").key("ratio");
    if !(0.0..=1.0).contains(&tracing.sampling.ratio) {
        let message = format!("`{}` is no share: it must be from 0 to 1", judge.shown(&ratio, &tracing.sampling.ratio));
        judge.error("value", &ratio, message, "write `0.01` to keep one trace in a hundred");
    }
    if tracing.buffer < ByteSize::kib(64) {
        let message = "`buffer` is too small for the spans of a busy second";
        judge.error("value", &at.key("buffer"), message, "allow at least `64KiB`");
    }
    judge.not_zero(&at.key("interval"), tracing.interval);
    let propagators = at.key("propagators");
    let named = tracing.propagators.iter().enumerate();
    judge.unique("propagator", "keep one of them", named.map(|(i, one)| (propagators.index(i), format!("{one:?}"))));
    let otlp = at.key("otlp");
    judge.not_zero(&otlp.key("timeout"), tracing.otlp.timeout);
    super::secrets::unused_ca(&tracing.otlp.endpoint, tracing.otlp.ca_file.is_some(), &otlp, judge);
    super::logs::headers_rules(&tracing.otlp.headers, &otlp, judge);
    if config.proxy.is_none() && !judge.checked.is_blurred(&ConfigPath::from("proxy")) {
        let message = "no span is ever made: traces are of requests, and there is no `proxy`";
        judge.warning("unused", &at, message, "add the section `proxy`, or remove `tracing`");
    }
}
