//! Sessions over real sockets: a client stays with its endpoint, and goes on with another when that is gone.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use crate::harness::{App, Client, Proxy};
use crate::routing::named;

fn config(session: &str, clusters: &[(&str, &[&App])]) -> String {
    let backends: Vec<_> = clusters.iter().map(|(name, _)| format!("{{ name: {name} }}")).collect();
    let clusters: String = clusters
        .iter()
        .map(|(name, apps)| {
            let endpoints: Vec<_> = apps.iter().map(|app| format!("\"127.0.0.1:{}\"", app.port)).collect();
            format!(
                "    - {{ name: {name}, endpoints: [{}], loadBalancing: {{ policy: RoundRobin }} }}\n",
                endpoints.join(", ")
            )
        })
        .collect();
    format!(
        "proxy:\n  sessionKeys: [\"a secret of the tests\"]\n  listeners:\n    - name: in\n      direction: inbound\n      \
         address: 127.0.0.1:PORT\n      routes:\n        - name: cart\n          matches: [{{ path: {{ value: /cart }} }}]\n          \
         sessionPersistence: {session}\n          retry: {{ codes: [503], backoff: 1ms, maxBackoff: 2ms }}\n          \
         backendRefs: [{}]\n        - name: other\n          sessionPersistence: {session}\n          backendRefs: [{}]\n  \
         clusters:\n{clusters}",
        backends.join(", "),
        backends.join(", "),
    )
}

/// Asks with a field, and tells which application answered, and what the answer sets.
fn ask(port: u16, path: &str, field: &str) -> (String, Option<String>) {
    let answer = Client::connect(port).ask(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n{field}\r\n"));
    let find = |name: &str| {
        let line = answer.lines().find(|line| line.to_lowercase().starts_with(name));
        line.map(|line| line[name.len()..].trim().to_owned())
    };
    let app = find("x-app:").unwrap_or_else(|| panic!("{answer}"));
    (app, find("set-cookie:").or_else(|| find("x-session:")))
}

fn cookie(set: &str) -> String {
    format!("Cookie: theme=dark; {}\r\n", set.split(';').next().unwrap())
}

#[tokio::test]
async fn a_client_stays_with_its_endpoint_and_cluster() {
    let (a, b, c, d) = (named("a"), named("b"), named("c"), named("d"));
    let proxy = Proxy::start(&config("{}", &[("one", &[&a, &b]), ("two", &[&c, &d])])).await;
    let mut met = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let (app, set) = ask(proxy.port, "/cart", "");
        let set = set.expect("a new client gets a session");
        assert!(set.starts_with("outrigger-cart=") && set.ends_with("; Path=/cart; HttpOnly"), "{set}");
        for port in [a.port, b.port, c.port, d.port] {
            assert!(!set.contains(&port.to_string()), "it tells no address: {set}");
        }
        for _ in 0..3 {
            assert_eq!(ask(proxy.port, "/cart/7", &cookie(&set)), (app.clone(), None));
        }
        met.insert(app);
    }
    assert_eq!(met.len(), 4, "clients are spread: {met:?}");
    // What is of another route, changed or made up is no session.
    let set = ask(proxy.port, "/cart", "").1.unwrap();
    let moved = set.replace("outrigger-cart", "outrigger-other");
    let mut changed = set.clone().into_bytes();
    changed[30] ^= 1;
    let changed = String::from_utf8(changed).unwrap();
    for (path, set) in [("/", moved.as_str()), ("/cart", &changed), ("/cart", "outrigger-cart=MTI3LjAuMC4xOjgw")] {
        assert!(ask(proxy.port, path, &cookie(set)).1.is_some(), "{set} is not taken");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn what_is_gone_or_fails_is_left_for_another() {
    let failing = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&failing);
    let a = App::new(move |_| {
        let status = if flag.load(std::sync::atomic::Ordering::SeqCst) { "503 No" } else { "200 OK" };
        Some(format!("HTTP/1.1 {status}\r\nX-App: a\r\nContent-Length: 0\r\n\r\n"))
    });
    let b = named("b");
    let session = "{ type: Header, sessionName: x-session, idleTimeout: 1h }";
    let proxy = Proxy::start(&config(session, &[("one", &[&a, &b])])).await;
    let new = |wanted: &str| {
        let found = (0..20).map(|_| ask(proxy.port, "/cart", "")).find(|(app, _)| app == wanted);
        format!("X-Session: {}\r\n", found.expect("both are asked in turn").1.unwrap())
    };
    let of_a = new("a");
    assert_eq!(ask(proxy.port, "/cart", &of_a), ("a".to_owned(), None));
    // A try that fails is made again elsewhere, and the session goes along.
    failing.store(true, std::sync::atomic::Ordering::SeqCst);
    let (app, moved) = ask(proxy.port, "/cart", &of_a);
    let moved = format!("X-Session: {}\r\n", moved.expect("it has moved"));
    assert_eq!(app, "b");
    failing.store(false, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..4 {
        assert_eq!(ask(proxy.port, "/cart", &moved), ("b".to_owned(), None));
    }
    // An endpoint that is no longer in the config gets nothing, whatever a client brings.
    let before = a.seen().len();
    proxy.reload(&config(session, &[("one", &[&b])]));
    crate::harness::until("the reload is there", || ask(proxy.port, "/cart", &of_a).0 == "b").await;
    let before = before.max(a.seen().len());
    let (app, again) = ask(proxy.port, "/cart", &of_a);
    assert!(app == "b" && again.is_some());
    assert_eq!(a.seen().len(), before);
    // With the other back, who moved stays where it is.
    proxy.reload(&config(session, &[("one", &[&a, &b])]));
    let again = format!("X-Session: {}\r\n", again.unwrap());
    crate::harness::until("both are there", || ask(proxy.port, "/cart", "").0 == "a").await;
    for _ in 0..4 {
        assert_eq!(ask(proxy.port, "/cart", &again).0, "b");
    }
    proxy.stop().await;
}
