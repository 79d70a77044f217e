//! What operators may ask of the data plane as it is: what becomes of a request, and tables of
//! listeners and routes.
//!
//! In: `GET /explain`, `/listeners`, `/routes` of the admin API. Out: JSON. Promise: the answer
//! is worked out beside the traffic, from the config that runs, and holds no secret.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use outrigger_config::{BackendRef, Config};
use outrigger_runtime::{AdminRequest, AdminResponse, AdminRoutes, Context};
use outrigger_telemetry::{Format, Registry};
use outrigger_traffic::explain::{EndpointTold, Explanation, Question, explain, filter_in_words, match_in_words};
use outrigger_traffic::session::Persistence;
use outrigger_wire::head::Head;
use serde_json::{Value, json};

use crate::cluster::Clusters;
use crate::snapshot::Listener;

/// `GET /explain`: what becomes of a request.
pub(crate) fn explained(
    request: &AdminRequest,
    config: &Config,
    clusters: &Clusters,
    listeners: &[Weak<Listener>],
) -> AdminResponse {
    let question = match question(&request.query) {
        Ok(question) => question,
        Err(why) => return AdminRoutes::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    match explain(config, &question) {
        Ok(mut told) => {
            as_it_is(&mut told, clusters);
            session_as_it_is(&mut told, config, &question, listeners);
            match serde_json::to_value(&told) {
                Ok(value) => AdminRoutes::json(&value),
                Err(error) => AdminRoutes::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        Err(why) => AdminRoutes::text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

/// Reads a question from a query; `header` may be there several times, as `name: value`.
fn question(query: &str) -> Result<Question, String> {
    let mut question = Question::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = unescaped(value);
        match name {
            "method" => question.method = value,
            "url" => question.url = value,
            "peer" => question.peer = Some(value),
            "listener" => question.listener = Some(value),
            "destination" => {
                let address = value.parse().map_err(|_| format!("`destination` is no IP:PORT: {value}"))?;
                question.destination = Some(address);
            }
            "header" => {
                let (name, value) = value.split_once(':').ok_or("write `header` as `name: value`")?;
                question.headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            _ => {
                return Err(format!(
                    "unknown parameter `{name}`; known are method, url, header, peer, listener, destination"
                ));
            }
        }
    }
    Ok(question)
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    while let [first, behind @ ..] = rest {
        rest = behind;
        match (first, behind) {
            (b'%', [high, low, more @ ..]) => match digit(*high).zip(digit(*low)) {
                Some((high, low)) => {
                    bytes.push(high << 4 | low);
                    rest = more;
                }
                None => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Puts the endpoints in as they are now.
fn as_it_is(told: &mut Explanation, clusters: &Clusters) {
    told.live = true;
    for backend in told.backends.iter_mut().filter(|backend| !backend.original_destination) {
        let Some(cluster) = clusters.find(&backend.cluster) else {
            told.notes.push(format!("the cluster `{}` does not run yet", backend.cluster));
            continue;
        };
        let members = cluster.members();
        let only = backend.endpoints.clone();
        backend.endpoints = members.peers.iter().map(|peer| peer.told()).collect();
        if told.route.as_ref().is_some_and(|route| route.kind == outrigger_traffic::explain::RouteKind::Endpoint) {
            backend.endpoints.retain(|one| only.iter().any(|wanted| wanted.address == one.address));
        }
        if let Some(Err(error)) = &*cluster.resolution().borrow() {
            told.notes.push(format!("cluster `{}`: {error}", backend.cluster));
        }
    }
}

/// Says which endpoint a session names that the request brings.
fn session_as_it_is(told: &mut Explanation, config: &Config, question: &Question, listeners: &[Weak<Listener>]) {
    let (Some(session), Some(route)) = (&mut told.session, &told.route) else { return };
    let Some(listener) = listeners.iter().filter_map(Weak::upgrade).find(|one| one.name == told.listener.name) else {
        return;
    };
    let configs =
        config.proxy.iter().flat_map(|proxy| &proxy.listeners).filter(|one| one.name.as_str() == listener.name);
    let calls = configs.clone().flat_map(|one| &one.grpc_routes).map(|route| route.as_route());
    let routes = configs.flat_map(|one| &one.routes).cloned().chain(calls);
    let Some(persistence) =
        routes.into_iter().find(|one| one.name.as_str() == route.name).and_then(|one| Persistence::of(&one))
    else {
        return;
    };
    let mut head = Head::default();
    question.headers.iter().for_each(|(name, value)| head.push(name, value.as_bytes()));
    let snapshot = listener.current.load();
    let keys = snapshot.session_keys.as_ref();
    let found =
        keys.zip(persistence.brought(&head)).and_then(|(keys, brought)| keys.open(brought, persistence.context()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    session.endpoint =
        found.filter(|session| persistence.counts(session, now)).map(|session| session.endpoint.to_string());
}

impl crate::members::Peer {
    /// The endpoint as it is now.
    fn told(&self) -> EndpointTold {
        let (unhealthy, ejection) = (self.unhealthy.load(), self.ejection.load());
        let state = match (&*unhealthy, ejection.as_ref()) {
            (Some(reason), _) => format!("unhealthy: {reason}"),
            (None, Some(ejection)) => format!("ejected: {}", ejection.cause.as_str()),
            (None, None) if self.is_told_unhealthy() => "unhealthy: its source says so".to_owned(),
            (None, None) if !self.is_usable() => "unhealthy".to_owned(),
            (None, None) => "healthy".to_owned(),
        };
        EndpointTold {
            address: self.address.to_string(),
            weight: self.weight(),
            priority: self.priority(),
            zone: self.zone(),
            state: Some(state),
        }
    }
}

/// `GET /listeners`.
pub(crate) fn listeners(listeners: &[Weak<Listener>]) -> AdminResponse {
    let mut rows: Vec<_> = listeners.iter().filter_map(Weak::upgrade).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let row = |listener: &Arc<Listener>| {
        let snapshot = listener.current.load();
        let tls = match (&snapshot.tls, &snapshot.simple_tls, snapshot.permissive) {
            (Some(_), _, true) => "permissive",
            (Some(_), _, false) => "strict",
            (None, Some(_), _) => "simple",
            (None, None, _) => "off",
        };
        json!({
            "name": listener.name,
            "direction": listener.direction,
            "address": listener.address.to_string(),
            "protocol": format!("{:?}", snapshot.protocol).to_lowercase(),
            "tls": tls,
            "redirected": snapshot.redirected,
            "draining": listener.drain.is_cancelled(),
            "connections": listener.open(),
            "maxConnections": snapshot.limits.max_connections,
        })
    };
    AdminRoutes::json(&Value::Array(rows.iter().map(row).collect()))
}

/// `GET /routes`.
pub(crate) fn routes(config: &Config, registry: &Registry) -> AdminResponse {
    let mut metrics = Vec::new();
    registry.encode(Format::Text, &mut metrics);
    let hits = hits(&String::from_utf8_lossy(&metrics));
    let mut rows = Vec::new();
    for listener in config.proxy.iter().flat_map(|proxy| &proxy.listeners) {
        let mut row = |kind: &str,
                       name: &str,
                       hosts: Value,
                       matches: Vec<String>,
                       filters: Vec<String>,
                       to: &[BackendRef]| {
            rows.push(json!({
                "listener": listener.name.as_str(), "route": name, "kind": kind,
                "hostnames": hosts, "matches": matches, "filters": filters,
                "backends": to.iter().map(|one| json!({ "cluster": one.name.as_str(), "weight": one.weight })).collect::<Value>(),
                "requests": hits.get(&(listener.name.to_string(), name.to_owned())).copied().unwrap_or_default(),
            }));
        };
        for route in &listener.routes {
            let matches = route.matches.iter().map(match_in_words).collect();
            let filters = route.filters.iter().map(filter_in_words).collect();
            row("http", &route.name, json!(route.hostnames), matches, filters, &route.backend_refs);
        }
        for route in &listener.grpc_routes {
            let matches = route.matches.iter().map(outrigger_traffic::explain::call_in_words).collect();
            let filters = route.filters.iter().map(filter_in_words).collect();
            row("grpc", &route.name, json!(route.hostnames), matches, filters, &route.backend_refs);
        }
        if let Some(route) = &listener.tcp_route {
            row("tcp", &route.name, json!([]), vec![], vec![], &route.backend_refs);
        }
        for route in &listener.tls_routes {
            row("tls", &route.name, json!(route.hostnames), vec![], vec![], &route.backend_refs);
        }
        for route in &listener.connect_routes {
            let ports = route.ports.iter().map(|port| format!("port {port}")).collect();
            row("connect", &route.name, json!(route.hostnames), ports, vec![], &route.backend_refs);
        }
    }
    AdminRoutes::json(&Value::Array(rows))
}

/// Requests, or connections that were carried, since the start, by listener and route.
fn hits(metrics: &str) -> HashMap<(String, String), u64> {
    let mut hits = HashMap::new();
    for line in metrics.lines() {
        if line.starts_with("outrigger_http_requests_total{")
            || line.starts_with("outrigger_tcp_connections_closed_total{")
        {
            // Names of listeners and routes hold nothing that would be escaped.
            let label = |name: &str| line.split(name).nth(1)?.split('"').next();
            let count = line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok());
            if let (Some(listener), Some(route), Some(count)) = (label("listener=\""), label("route=\""), count) {
                *hits.entry((listener.to_owned(), route.to_owned())).or_default() += count as u64;
            }
        }
    }
    hits
}

/// Adds the endpoints; they go with what is given back.
pub(crate) fn register(
    ctx: &Context,
    clusters: impl Fn() -> Arc<Clusters> + Clone + Send + Sync + 'static,
    known: impl Fn() -> Vec<Weak<Listener>> + Clone + Send + Sync + 'static,
) -> Vec<outrigger_runtime::AdminRoute> {
    let (config, registry) = (ctx.config.clone(), ctx.registry.clone());
    let (for_routes, listening) = (config.clone(), known.clone());
    let now = |answer: AdminResponse| -> outrigger_runtime::BoxFuture<'static, AdminResponse> {
        Box::pin(std::future::ready(answer))
    };
    let about =
        "what becomes of a request; ?method=&url=&header=&peer=&listener=&destination=, see `outrigger explain`";
    vec![
        ctx.admin.register("/explain", about, move |request| {
            let config = Arc::clone(&config.borrow());
            now(explained(&request, &config, &clusters(), &listening()))
        }),
        ctx.admin.register("/listeners", "listeners and their connections, as JSON", move |_| now(listeners(&known()))),
        ctx.admin.register("/routes", "routes and how often each was taken, as JSON", move |_| {
            let config = Arc::clone(&for_routes.borrow());
            now(routes(&config, &registry))
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_from_queries() {
        let read = question(
            "method=PUT&url=http%3A%2F%2Fh%2Fa%3Fb&header=x-a%3A%201&header=b:%20%zz&destination=10.0.0.1%3A80",
        )
        .unwrap();
        assert_eq!((read.method.as_str(), read.url.as_str()), ("PUT", "http://h/a?b"));
        let headers = [("x-a", "1"), ("b", "%zz")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!((read.headers.as_slice(), read.destination), (&headers[..], Some("10.0.0.1:80".parse().unwrap())));
        for query in ["other=1", "header=x", "destination=h"] {
            assert!(question(query).is_err(), "{query}");
        }
    }

    #[test]
    fn requests_of_a_route_are_added_up() {
        let metrics = "# TYPE x counter\n\
            outrigger_http_requests_total{direction=\"inbound\",listener=\"in\",route=\"a\",code=\"200\"} 3\n\
            outrigger_http_requests_total{direction=\"inbound\",listener=\"in\",route=\"a\",code=\"503\"} 1\n\
            outrigger_http_requests_total{direction=\"inbound\",listener=\"in\",route=\"ab\",code=\"200\"} 5\n\
            outrigger_tcp_connections_closed_total{direction=\"inbound\",listener=\"in\",route=\"t\"} 2\n";
        let hits = hits(metrics);
        let of = |route: &str| hits.get(&("in".to_owned(), route.to_owned())).copied();
        assert_eq!(["a", "ab", "t", "none"].map(of), [Some(4), Some(5), Some(2), None]);
    }
}
