//! Which endpoint gets a request, and what a reload leaves as it is.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::HashMap;
use std::time::Duration;

use crate::harness::{App, Client, Proxy};

/// An application that names itself, after so long.
fn named(name: &str, delay: Duration) -> App {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    App::new(move |_| {
        std::thread::sleep(delay);
        Some(answer.clone())
    })
}

/// A proxy's config with these endpoints, and more for the cluster and the proxy.
pub(crate) fn config(endpoints: &str, cluster: &str, proxy: &str) -> String {
    format!(
        r#"
proxy:
{proxy}
  listeners:
    - {{ name: in, direction: inbound, address: "127.0.0.1:PORT", routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}
  clusters:
    - name: app
      endpoints: [{endpoints}]
{cluster}
"#
    )
}

/// Who answered how often.
pub(crate) async fn answers(
    port: u16,
    count: usize,
    headers: impl Fn(usize) -> String + Send + 'static,
) -> HashMap<String, usize> {
    let asking = move || {
        let mut client = Client::connect(port);
        let mut answers = HashMap::new();
        for number in 0..count {
            let answer = client.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", headers(number)));
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            *answers.entry(body.to_owned()).or_default() += 1;
        }
        answers
    };
    tokio::task::spawn_blocking(asking).await.unwrap()
}

#[tokio::test]
async fn a_slow_endpoint_gets_a_small_share() {
    let slow = named("slow", Duration::from_millis(60));
    let fast: Vec<_> = ["a", "b"].iter().map(|name| named(name, Duration::ZERO)).collect();
    let endpoints =
        format!("\"127.0.0.1:{}\", \"127.0.0.1:{}\", \"127.0.0.1:{}\"", slow.port, fast[0].port, fast[1].port);
    for (policy, least, most) in [("PeakEwma", 0, 15), ("RoundRobin", 33, 34)] {
        let balancing = format!("      loadBalancing: {{ policy: {policy} }}");
        let proxy = Proxy::start_on(&config(&endpoints, &balancing, ""), 1).await;
        let answers = answers(proxy.port, 100, |_| String::new()).await;
        let share = answers.get("slow").copied().unwrap_or_default();
        assert!((least..=most).contains(&share), "{policy}: {answers:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_key_stays_with_its_endpoint() {
    let apps: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| named(name, Duration::ZERO)).collect();
    let endpoints: Vec<_> = apps.iter().map(|app| format!("\"127.0.0.1:{}\"", app.port)).collect();
    let keys = "hashPolicy: [{ type: Header, header: { name: X-User } }, { type: Cookie, cookie: { name: sid } }, { type: SourceAddress }]";
    for policy in ["RingHash", "Maglev"] {
        let balancing = format!("      loadBalancing: {{ policy: {policy}, {keys} }}");
        let proxy = Proxy::start_on(&config(&endpoints.join(", "), &balancing, ""), 1).await;
        let mut homes = std::collections::HashSet::new();
        for user in 0..24 {
            let by_header = answers(proxy.port, 3, move |_| format!("x-user: {user}\r\n")).await;
            assert_eq!(by_header.len(), 1, "{policy}: {by_header:?}");
            let by_cookie = answers(proxy.port, 3, move |_| format!("Cookie: a=b; sid={user}\r\n")).await;
            assert_eq!(by_cookie, by_header, "{policy}: the same key");
            homes.extend(by_header.into_keys());
        }
        assert!(homes.len() >= 3, "{policy}: {homes:?}");
        assert_eq!(answers(proxy.port, 10, |_| String::new()).await.len(), 1, "{policy}: by the client's address");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn weights_zones_and_labels_are_honoured() {
    let apps: Vec<_> = ["a", "b"].iter().map(|name| named(name, Duration::ZERO)).collect();
    let with = |first: &str, second: &str| {
        let one = |app: &App, more: &str| format!("{{ address: \"127.0.0.1:{}\"{more} }}", app.port);
        format!("{}, {}", one(&apps[0], first), one(&apps[1], second))
    };
    for (what, endpoints, cluster, proxy, expected) in [
        ("weights", with(", weight: 1", ", weight: 4"), "      loadBalancing: { policy: RoundRobin }", "", 10),
        ("weight of zero", with(", weight: 0", ""), "", "", 0),
        ("priorities", with(", priority: 1", ""), "", "", 0),
        (
            "zones",
            with(", zone: eu-1", ", zone: eu-2"),
            "      loadBalancing: { trafficDistribution: PreferSameZone }",
            "  zone: eu-1",
            50,
        ),
        (
            "other zone",
            with(", zone: eu-1", ", zone: eu-2"),
            "      loadBalancing: { trafficDistribution: PreferSameZone }",
            "  zone: eu-2",
            0,
        ),
        (
            "labels",
            with(", labels: { version: v1 }", ", labels: { version: v2, canary: \"yes\" }"),
            "      loadBalancing: { subset: { version: v2 } }",
            "",
            0,
        ),
    ] {
        let proxy = Proxy::start_on(&config(&endpoints, cluster, proxy), 1).await;
        let answers = answers(proxy.port, 50, |_| String::new()).await;
        assert_eq!(answers.get("a").copied().unwrap_or_default(), expected, "{what}: {answers:?}");
        proxy.stop().await;
    }
}

#[tokio::test]
async fn a_dead_first_priority_is_passed_over() {
    let alive = named("alive", Duration::ZERO);
    let dead = crate::harness::free_port();
    let endpoints = format!("\"127.0.0.1:{dead}\", {{ address: \"127.0.0.1:{}\", priority: 1 }}", alive.port);
    let proxy = Proxy::start_on(&config(&endpoints, "", ""), 1).await;
    let answers = answers(proxy.port, 20, |_| String::new()).await;
    assert_eq!(answers.get("alive"), Some(&20), "{answers:?}");
    proxy.stop().await;
}

#[tokio::test]
async fn a_new_list_of_endpoints_keeps_the_connections_to_those_that_stay() {
    let (stays, comes) = (named("stays", Duration::ZERO), named("comes", Duration::ZERO));
    let (first, second) = (stays.port, comes.port);
    let with = |endpoints: &str, more: &str| config(endpoints, more, "");
    let alone = format!("\"127.0.0.1:{first}\"");
    let proxy = Proxy::start_on(&with(&alone, ""), 1).await;
    let made = |proxy: &Proxy| proxy.metric("outrigger_upstream_connections_total{cluster=\"app\",result=\"ok\"}");
    answers(proxy.port, 5, |_| String::new()).await;
    assert!((made(&proxy) - 1.0).abs() < 0.1);
    for (endpoints, more) in [
        (format!("{{ address: \"127.0.0.1:{first}\", weight: 7 }}"), ""),
        (format!("{alone}, {{ address: \"127.0.0.1:{second}\", weight: 0 }}"), ""),
        (alone.clone(), "      loadBalancing: { policy: Random }"),
    ] {
        proxy.reload(&with(&endpoints, more));
        answers(proxy.port, 5, |_| String::new()).await;
    }
    // It did change: each gets its turn, and then the other one is alone.
    proxy.reload(&with(&format!("{alone}, \"127.0.0.1:{second}\""), "      loadBalancing: { policy: RoundRobin }"));
    for expected in [vec!["comes", "stays"], vec!["comes"]] {
        crate::harness::until("the reload is there", || {
            let ask = || Client::connect(proxy.port).ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let seen: std::collections::BTreeSet<_> =
                (0..4).map(|_| ask().split_once("\r\n\r\n").unwrap().1.to_owned()).collect();
            seen.iter().eq(expected.iter())
        })
        .await;
        assert!((made(&proxy) - 2.0).abs() < 0.1, "one connection to each endpoint, whatever was reloaded");
        proxy.reload(&with(&format!("\"127.0.0.1:{second}\""), ""));
    }
    proxy.stop().await;
}
