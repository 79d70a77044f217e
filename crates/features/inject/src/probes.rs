//! Probes and hooks that go through the sidecar.
//!
//! In: a container whose probes ask its ports. Out: probes that ask our health port, and what we
//! are to ask in their place. Promise: timing and thresholds stay; exec probes, probes of other
//! hosts and ports that nobody declares are left as they are; it can be undone.

use serde_json::{Map, Value, json};

use crate::json;

/// The health port.
pub(crate) const PORT: u16 = 15021;
const PATH: &str = "/app-health/";

/// Where probes and hooks stand in a container, and the last step of their path on our port.
const PLACES: &[(&[&str], &str)] = &[
    (&["livenessProbe"], "livez"),
    (&["readinessProbe"], "readyz"),
    (&["startupProbe"], "startupz"),
    (&["lifecycle", "postStart"], "poststart"),
    (&["lifecycle", "preStop"], "prestop"),
];

const HANDLERS: &[&str] = &["httpGet", "tcpSocket", "grpc"];

/// What was rewritten in a pod.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    /// By path on our port, what we are to ask: as Kubernetes writes it, ports as numbers.
    pub(crate) asks: Map<String, Value>,
    /// By container and place, the handler as it was.
    pub(crate) originals: Map<String, Value>,
    pub(crate) warnings: Vec<String>,
}

/// Rewrites a container's probes; hooks too, if the sidecar outlives the application.
pub(crate) fn rewrite(container: &mut Value, hooks: bool, done: &mut Rewritten) {
    let name = json::name(container).to_owned();
    let ports = json::items(container, "ports").to_vec();
    let mut originals = Map::new();
    for (place, step) in PLACES.iter().filter(|(place, _)| hooks || place.len() == 1) {
        let Some(probe) = at_mut(container, place) else { continue };
        let Some(handler) = HANDLERS.iter().find(|handler| probe.get(**handler).is_some_and(Value::is_object)) else {
            continue;
        };
        // The kubelet has never done TCP hooks.
        if place.len() > 1 && *handler != "httpGet" {
            continue;
        }
        let original = probe[*handler].clone();
        let place = place.join(".");
        let ask = match ask(handler, &original, &ports, probe.get("timeoutSeconds")) {
            Ok(ask) => ask,
            Err(None) => continue,
            Err(Some(why)) => {
                done.warnings.push(format!("{place} of container `{name}` stays as it is: {why}"));
                continue;
            }
        };
        let path = format!("{PATH}{name}/{step}");
        done.asks.insert(path.clone(), ask);
        originals.insert(place, json!({ *handler: original }));
        if let Some(probe) = probe.as_object_mut() {
            probe.shift_remove(*handler);
            probe.insert("httpGet".to_owned(), json!({ "path": path, "port": PORT }));
        }
    }
    if !originals.is_empty() {
        done.originals.insert(name, Value::Object(originals));
    }
}

/// What we ask instead of the kubelet; `None` as error: nothing to be said about it.
fn ask(handler: &str, original: &Value, ports: &[Value], timeout: Option<&Value>) -> Result<Value, Option<String>> {
    if let Some(host) = original.get("host").and_then(Value::as_str).filter(|host| !host.is_empty()) {
        return Err(Some(format!("it asks the host `{host}`, not the pod")));
    }
    let port = match &original["port"] {
        Value::Number(port) => port.as_u64(),
        Value::String(word) => word.parse().ok().or_else(|| {
            let port = ports.iter().find(|port| json::name(port) == word)?;
            port["containerPort"].as_u64()
        }),
        _ => None,
    };
    let Some(port) = port.filter(|port| (1..=65535).contains(port)) else {
        return Err(Some(format!(
            "its port {} is no number from 1 to 65535 and no name of a port of the container",
            original["port"]
        )));
    };
    // It asks us already.
    if port == u64::from(PORT) {
        return Err(None);
    }
    let mut ask = original.clone();
    ask["port"] = json!(port);
    let mut ask = json!({ handler: ask });
    if let Some(timeout) = timeout.filter(|timeout| timeout.is_number()) {
        ask["timeoutSeconds"] = timeout.clone();
    }
    Ok(ask)
}

/// Puts back what [`rewrite`] took, where it still stands.
pub(crate) fn restore(container: &mut Value, originals: &Map<String, Value>) {
    for (place, original) in originals {
        let place: Vec<&str> = place.split('.').collect();
        let Some(probe) = at_mut(container, &place).and_then(Value::as_object_mut) else { continue };
        let ours = probe.get("httpGet").is_some_and(|get| json::text(get, "path").starts_with(PATH));
        if let Some(original) = original.as_object().filter(|_| ours) {
            probe.shift_remove("httpGet");
            probe.extend(original.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
}

fn at_mut<'a>(container: &'a mut Value, place: &[&str]) -> Option<&'a mut Value> {
    place.iter().try_fold(container, |value, step| value.get_mut(*step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_go_through_our_port_and_come_back() {
        let before = json!({
            "name": "app",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "livenessProbe": { "httpGet": { "path": "/live", "port": "http", "scheme": "HTTPS", "httpHeaders": [{"name": "a", "value": "b"}] }, "timeoutSeconds": 3, "periodSeconds": 7 },
            "readinessProbe": { "tcpSocket": { "port": 5432 } },
            "startupProbe": { "grpc": { "port": 9000, "service": "s" } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/stop", "port": "8080" } }, "postStart": { "exec": { "command": ["x"] } } },
        });
        let (mut container, mut done) = (before.clone(), Rewritten::default());
        rewrite(&mut container, true, &mut done);
        assert_eq!(
            container["livenessProbe"],
            json!({ "timeoutSeconds": 3, "periodSeconds": 7, "httpGet": { "path": "/app-health/app/livez", "port": 15021 } })
        );
        assert_eq!(
            container["startupProbe"],
            json!({ "httpGet": { "path": "/app-health/app/startupz", "port": 15021 } })
        );
        assert_eq!(container["lifecycle"]["postStart"], before["lifecycle"]["postStart"]);
        assert_eq!(
            done.asks["/app-health/app/livez"],
            json!({ "httpGet": { "path": "/live", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "a", "value": "b"}] }, "timeoutSeconds": 3 })
        );
        assert_eq!(done.asks["/app-health/app/readyz"], json!({ "tcpSocket": { "port": 5432 } }));
        assert_eq!(done.asks["/app-health/app/prestop"], json!({ "httpGet": { "path": "/stop", "port": 8080 } }));
        assert_eq!(done.asks.len(), 4);
        restore(&mut container, done.originals["app"].as_object().unwrap());
        assert_eq!(container, before);
    }

    #[test]
    fn what_cannot_be_asked_from_here_stays() {
        for (probe, warned) in [
            (json!({ "exec": { "command": ["true"] } }), false),
            (json!({ "httpGet": { "port": "nobody" } }), true),
            (json!({ "httpGet": { "port": 80, "host": "example.com" } }), true),
            (json!({ "httpGet": { "port": 0 } }), true),
            (json!({ "httpGet": { "port": 15021 } }), false),
            (json!({}), false),
            (json!("text"), false),
        ] {
            let before = json!({ "name": "app", "livenessProbe": probe });
            let (mut container, mut done) = (before.clone(), Rewritten::default());
            rewrite(&mut container, true, &mut done);
            assert_eq!(container, before);
            assert_eq!(!done.warnings.is_empty(), warned, "{before}: {:?}", done.warnings);
        }
    }
}
