//! Rules of the section `authority`.

use super::Judge;
use super::secrets::login_to_vault;
use crate::units::is_host;
use crate::{AuthorityVault, Config, ConfigPath, Duration};

pub(super) fn rules(config: &Config, judge: &mut Judge<'_>) {
    let Some(authority) = &config.authority else { return };
    let at = ConfigPath::from("authority");
    let kinds = [
        ("roots", authority.roots.is_some()),
        ("issuer", authority.issuer.is_some()),
        ("vault", authority.vault.is_some()),
    ];
    judge.exactly_one(&at, &kinds);
    let (ttl, max_ttl) = (at.key("ttl"), at.key("maxTtl"));
    judge.not_zero(&ttl, authority.ttl);
    judge.not_zero(&max_ttl, authority.max_ttl);
    if authority.ttl > authority.max_ttl {
        let (ttl_shown, most) = (judge.shown(&ttl, &authority.ttl), judge.shown(&max_ttl, &authority.max_ttl));
        let place = judge.given_of([&ttl, &max_ttl]).clone();
        judge.error(
            "conflict",
            &place,
            format!("`ttl` ({ttl_shown}) is longer than `maxTtl` ({most})"),
            "shorten `ttl`, or raise `maxTtl`",
        );
    }
    let names = at.key("names");
    if authority.names.is_empty() && !judge.checked.is_blurred(&names) {
        let help = "name the service, such as `outrigger.outrigger-system.svc`";
        judge.error("value", &names, "`names` is empty, so no client would accept its certificate", help);
    }
    for (index, name) in authority.names.iter().enumerate() {
        if !is_host(name) && name.parse::<std::net::Ipv6Addr>().is_err() {
            let place = names.index(index);
            let message = format!("`{}` is neither a DNS name nor an IP address", judge.shown(&place, name));
            judge.error("value", &place, message, "write it as clients dial it, without a port");
        }
    }
    roots(config, &at, judge);
    if let Some(vault) = &authority.vault {
        below_vault(vault, authority.max_ttl, &at, judge);
    }
    let kubernetes = at.key("kubernetes");
    if !authority.kubernetes.server.starts_with("https://") {
        let place = kubernetes.key("server");
        let message = format!("`{}` is not an https URL", judge.shown(&place, &authority.kubernetes.server));
        judge.error("value", &place, message, "write `https://HOST:PORT`; tokens are not sent in clear text");
    }
    if authority.kubernetes.audience.is_empty() {
        let help = "name the audience of the projected tokens, such as `outrigger`";
        judge.error("value", &kubernetes.key("audience"), "`audience` is empty", help);
    }
    judge.not_zero(&kubernetes.key("timeout"), authority.kubernetes.timeout);
    judge.not_zero(&at.key("rateLimit").key("per"), authority.rate_limit.per);
    if authority.trust_bundles.is_some() && config.controller.is_none() {
        judge.error(
            "missing",
            &at.key("trustBundles"),
            "only the controller that leads writes trust bundles, and there is no section `controller`",
            "add the section `controller`, or remove `trustBundles`",
        );
    }
}

fn below_vault(vault: &AuthorityVault, max_ttl: Duration, authority: &ConfigPath, judge: &mut Judge<'_>) {
    let at = authority.key("vault");
    login_to_vault(&vault.address, &vault.auth, vault.ca_file.is_some(), &at, judge);
    judge.not_zero(&at.key("timeout"), vault.timeout);
    for (key, value) in [("mount", Some(&vault.mount)), ("issuer", vault.issuer.as_ref())] {
        let place = at.key(key);
        let given = value.map(|value| value.trim_matches('/').trim());
        if given == Some("") {
            judge.error("value", &place, format!("`{key}` is empty"), "give it a value, or remove it");
        }
    }
    if vault.lifetime.0 < max_ttl.0 * 2 {
        let lifetime = at.key("lifetime");
        let (shown, most) = (judge.shown(&lifetime, &vault.lifetime), judge.shown(&authority.key("maxTtl"), &max_ttl));
        let message = format!("`lifetime` ({shown}) is shorter than twice `maxTtl` ({most})");
        let help = "workloads' certificates end with the intermediate that signed them; write a longer time";
        judge.error("conflict", &lifetime, message, help);
    }
}

fn roots(config: &Config, at: &ConfigPath, judge: &mut Judge<'_>) {
    let Some((authority, roots)) = config.authority.as_ref().and_then(|all| Some((all, all.roots.as_ref()?))) else {
        return;
    };
    let place = at.key("roots");
    judge.exactly_one(&place, &[("directory", roots.directory.is_some()), ("secret", roots.secret.is_some())]);
    let (lifetime, propagation) = (place.key("lifetime"), place.key("propagation"));
    let most = judge.shown(&at.key("maxTtl"), &authority.max_ttl);
    if authority.propagation() < authority.max_ttl.0 + std::time::Duration::from_secs(1) {
        let shown = judge.shown(&propagation, &Duration(authority.propagation()));
        let message = format!("`propagation` ({shown}) is not longer than `maxTtl` ({most})");
        let help =
            "a workload with a certificate of that age must have the new root before it meets it; write a longer time";
        judge.error("conflict", &propagation, message, help);
    }
    if roots.lifetime.0 < (authority.propagation() + authority.max_ttl.0) * 2 {
        let shown = judge.shown(&lifetime, &roots.lifetime);
        let message =
            format!("`lifetime` ({shown}) is too short for a root: a change takes `propagation` and `maxTtl` ({most})");
        judge.error("conflict", &lifetime, message, "write at least twice the sum of those two, such as `8760h`");
    }
}
