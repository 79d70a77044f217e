//! Session persistence ([GEP-1619]): a client stays with the endpoint that answered it first.
//!
//! In: what a request brings of an earlier answer, and what time it is. Out: whether that still counts, and the field by
//! which the answer tells the client of it. Promise: what a session holds is bytes that somebody else seals, so
//! that no client reads or makes one; one that is too old, or of another route, is none.
//!
//! [GEP-1619]: https://gateway-api.sigs.k8s.io/geps/gep-1619/

use std::net::{IpAddr, SocketAddr};

use outrigger_config::{CookieLifetime, PathMatchType, Route, SessionPersistenceType};
use outrigger_wire::head::{FieldId, Head};

/// An idle session is told anew when so much of its `idleTimeout` has passed, not with each answer.
const RENEWED_AFTER: u64 = 10;
const VERSION: u8 = 1;

/// A route's `sessionPersistence`.
#[derive(Debug)]
pub struct Persistence {
    cookie: bool,
    name: String,
    /// What a session is bound to beside its name.
    route: String,
    /// `; Path=…; HttpOnly` and what else stays the same.
    attributes: String,
    permanent: bool,
    absolute: Option<u64>,
    idle: Option<u64>,
}

/// What is remembered of a client. Times are Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// When it began.
    pub began: u64,
    /// When its client was told of it last.
    pub told: u64,
    /// A number for the cluster, by its name.
    pub cluster: u64,
    /// Who answered.
    pub endpoint: SocketAddr,
}

impl Persistence {
    /// Compiles a route's.
    pub fn of(route: &Route) -> Option<Box<Self>> {
        let config = route.session_persistence.as_ref()?;
        let seconds =
            |time: Option<outrigger_config::Duration>| time.map(|time| std::time::Duration::from(time).as_secs());
        let lifetime = config.cookie_config.as_ref().map(|cookie| cookie.lifetime_type).unwrap_or_default();
        Some(Box::new(Self {
            cookie: config.kind == SessionPersistenceType::Cookie,
            name: config.name_for(route.name.as_str()),
            route: route.name.to_string(),
            attributes: format!("; Path={}; HttpOnly", common_path(route)),
            permanent: lifetime == CookieLifetime::Permanent,
            absolute: seconds(config.absolute_timeout),
            idle: seconds(config.idle_timeout),
        }))
    }

    /// What a session is sealed together with, so that it is of no use anywhere else.
    pub fn context(&self) -> impl AsRef<[u8]> {
        format!("{}\n{}", self.route, self.name)
    }

    /// What a request brings along.
    pub fn brought<'a>(&self, request: &'a Head) -> Option<&'a [u8]> {
        if self.cookie { cookie(request, &self.name) } else { request.get_named(&self.name) }
    }

    /// Whether a session still counts.
    pub fn counts(&self, session: &Session, now: u64) -> bool {
        let within = |limit: Option<u64>, since: u64| limit.is_none_or(|limit| now.saturating_sub(since) < limit);
        within(self.absolute, session.began) && within(self.idle, session.told)
    }

    /// Whether a session's client must be told of it again, although nothing changed.
    pub fn is_due(&self, session: &Session, now: u64) -> bool {
        self.idle.is_some_and(|idle| now.saturating_sub(session.told) * RENEWED_AFTER >= idle)
    }

    /// Tells a client of its session, which is sealed as `sealed`.
    pub fn tell(&self, sealed: &str, session: &Session, secure: bool, response: &mut Head) {
        if !self.cookie {
            return response.set(&self.name, sealed.as_bytes());
        }
        let mut field = format!("{}={sealed}{}", self.name, self.attributes);
        if secure {
            field.push_str("; Secure");
        }
        if let Some(absolute) = self.absolute.filter(|_| self.permanent) {
            let left = (session.began + absolute).saturating_sub(session.told);
            field.push_str(&format!("; Max-Age={left}"));
        }
        response.push("Set-Cookie", field.as_bytes());
    }
}

impl Session {
    /// As bytes, to be sealed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        for number in [self.began, self.told, self.cluster] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.endpoint.port().to_be_bytes());
        match self.endpoint.ip() {
            IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
        }
        bytes
    }

    /// From bytes that were unsealed.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (began, rest) = rest.split_first_chunk()?;
        let (told, rest) = rest.split_first_chunk()?;
        let (cluster, rest) = rest.split_first_chunk()?;
        let (port, address) = rest.split_first_chunk()?;
        let address = match address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
            _ => return None,
        };
        let [began, told, cluster] = [began, told, cluster].map(|number| u64::from_be_bytes(*number));
        let endpoint = SocketAddr::new(address, u16::from_be_bytes(*port));
        (*version == VERSION).then_some(Self { began, told, cluster, endpoint })
    }
}

/// The value of a cookie.
pub fn cookie<'a>(request: &'a Head, name: &str) -> Option<&'a [u8]> {
    let fields = request.get_all(FieldId::Cookie).flat_map(|field| field.split(|byte| *byte == b';'));
    fields.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The path that all of a route's requests are below, so that a cookie is sent with each of them and, as far as can be,
/// with no others.
fn common_path(route: &Route) -> String {
    let mut paths = route.matches.iter().map(|one| match one.path.kind {
        PathMatchType::Exact | PathMatchType::PathPrefix => one.path.value.trim_end_matches('/'),
        PathMatchType::RegularExpression => "",
    });
    let mut common = paths.next().unwrap_or_default();
    for path in paths {
        while !(path == common || path.strip_prefix(common).is_some_and(|rest| rest.starts_with('/'))) {
            common = &common[..common.rfind('/').unwrap_or(0)];
        }
    }
    // A semicolon would end the attribute.
    if common.is_empty() || common.contains(';') { "/".to_owned() } else { common.to_owned() }
}

#[cfg(test)]
mod tests {
    use outrigger_config::RouteMatch;
    use proptest::prelude::*;

    use super::*;

    fn route(session: serde_json::Value, paths: &[&str]) -> Route {
        let mut route = Route::new("cart".parse().unwrap());
        route.session_persistence = Some(serde_json::from_value(session).unwrap());
        route.matches = paths
            .iter()
            .map(|path| {
                let (kind, value) = path.split_once(' ').unwrap();
                let path = serde_json::json!({ "type": kind, "value": value });
                RouteMatch { path: serde_json::from_value(path).unwrap(), ..RouteMatch::default() }
            })
            .collect();
        route
    }

    fn session(began: u64, told: u64) -> Session {
        Session { began, told, cluster: 7, endpoint: "192.0.2.1:80".parse().unwrap() }
    }

    #[test]
    fn cookies_are_for_the_routes_requests() {
        for (paths, expected) in [
            (&[][..], "/"),
            (&["PathPrefix /cart/"], "/cart"),
            (&["Exact /cart/a", "PathPrefix /cart/b"], "/cart"),
            (&["PathPrefix /cart", "PathPrefix /cartoon"], "/"),
            (&["PathPrefix /cart", "PathPrefix /cart/b/c"], "/cart"),
            (&["PathPrefix /cart", "RegularExpression /cart/[0-9]+"], "/"),
            (&["PathPrefix /"], "/"),
            (&["PathPrefix /a;b"], "/"),
        ] {
            assert_eq!(common_path(&route(serde_json::json!({}), paths)), expected, "{paths:?}");
        }
    }

    #[test]
    fn sessions_end_and_are_told_again() {
        let of = |config| Persistence::of(&route(config, &[])).unwrap();
        let both = of(serde_json::json!({ "absoluteTimeout": "1h", "idleTimeout": "100s" }));
        for (began, told, now, counts, due) in [
            (0, 0, 0, true, false),
            (0, 0, 9, true, false),
            (0, 0, 10, true, true),
            (0, 0, 99, true, true),
            (0, 0, 100, false, true),
            (0, 3550, 3599, true, true),
            (0, 3550, 3600, false, true),
            // Another replica's clock is ahead.
            (50, 50, 0, true, false),
        ] {
            let session = session(began, told);
            assert_eq!((both.counts(&session, now), both.is_due(&session, now)), (counts, due), "{began} {told} {now}");
        }
        let none = of(serde_json::json!({}));
        assert!(none.counts(&session(0, 0), u64::MAX) && !none.is_due(&session(0, 0), u64::MAX));
    }

    #[test]
    fn clients_are_told_in_their_field() {
        let mut request = Head::default();
        request.push("Cookie", b"a=1; outrigger-cart=x; b=2");
        request.push("X-Session", b"y");
        for (config, secure, brought, expected) in [
            (serde_json::json!({}), false, "x", "Set-Cookie: outrigger-cart=S; Path=/shop; HttpOnly"),
            (
                serde_json::json!({ "sessionName": "a", "absoluteTimeout": "1h", "cookieConfig": { "lifetimeType": "Permanent" } }),
                true,
                "1",
                "Set-Cookie: a=S; Path=/shop; HttpOnly; Secure; Max-Age=3500",
            ),
            (
                serde_json::json!({ "sessionName": "b", "absoluteTimeout": "1h" }),
                false,
                "2",
                "Set-Cookie: b=S; Path=/shop; HttpOnly",
            ),
            (serde_json::json!({ "type": "Header", "sessionName": "x-session" }), true, "y", "x-session: S"),
        ] {
            let persistence = Persistence::of(&route(config, &["PathPrefix /shop"])).unwrap();
            assert_eq!(persistence.brought(&request), Some(brought.as_bytes()));
            let mut response = Head::default();
            persistence.tell("S", &session(100, 200), secure, &mut response);
            let told: Vec<_> = response
                .fields()
                .map(|field| format!("{}: {}", field.name, String::from_utf8_lossy(field.value)))
                .collect();
            assert_eq!(told, [expected]);
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back(began: u64, told: u64, cluster: u64, port: u16, address: std::net::IpAddr) {
            let session = Session { began, told, cluster, endpoint: SocketAddr::new(address, port) };
            let bytes = session.to_bytes();
            prop_assert_eq!(Session::of_bytes(&bytes), Some(session));
            prop_assert_eq!(Session::of_bytes(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Session::of_bytes(&bytes);
        }
    }
}
