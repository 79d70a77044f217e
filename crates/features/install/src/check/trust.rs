//! Whether pods find whom to trust.
//!
//! In: namespaces, the ConfigMaps of the trust bundle, the authority's roots. Out: a finding. Promise: each namespace that opted in
//! and lacks the bundle of now is named.

use outrigger_kubernetes::names;
use serde_json::Value;

use super::facts::{After, base64, name, opted_in, text};
use super::finding::{Finding, some_of};

pub(super) fn bundles(facts: &After) -> Finding {
    const WHAT: &str = "trust bundles";
    let (namespaces, maps) = match (&facts.namespaces, &facts.bundles) {
        (Ok(namespaces), Ok(maps)) => (namespaces, maps),
        (Err(why), _) | (_, Err(why)) => return Finding::unknown(WHAT, why),
    };
    let bundle = |map: &Value| map["data"]["ca.crt"].as_str().unwrap_or_default().to_owned();
    // Without the authority's word they are held against one another.
    let right =
        facts.roots.as_ref().ok().and_then(Option::as_ref).and_then(|secret| base64(text(secret, "/data/ca.crt")));
    let right = right.and_then(|bytes| String::from_utf8(bytes).ok()).or_else(|| maps.first().map(bundle));
    let asks = |one: &&Value| {
        opted_in(one) == Some(true)
            && !names::SYSTEM_NAMESPACES.contains(&name(one))
            && one["metadata"]["deletionTimestamp"].is_null()
    };
    let asking: Vec<&str> = namespaces.iter().filter(asks).map(name).collect();
    let has = |namespace: &&&str| {
        let map = maps.iter().find(|map| text(map, "/metadata/namespace") == **namespace);
        map.is_some_and(|map| Some(bundle(map)) == right && !bundle(map).is_empty())
    };
    let lacking: Vec<&&str> = asking.iter().filter(|namespace| !has(namespace)).collect();
    match lacking.as_slice() {
        [] => Finding::ok(WHAT, format!("in all {} namespaces that opted in", asking.len())),
        lacking => Finding::failed(
            WHAT,
            format!("the ConfigMap `{}` is missing or old in {}", names::TRUST_BUNDLE, some_of(lacking)),
            "the controller that leads writes it within moments: `leader` above says whether one does, its status what keeps it",
        ),
    }
}
