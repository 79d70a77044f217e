//! Fields on their way, as RFC 9110 to 9113 want them: a table, each row a request and an answer
//! as they are sent, and what must and must not be in them on the other side.

use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;

use crate::OK;
use crate::harness::{App, Client, Proxy};
use crate::http2::{END_HEADERS, END_STREAM, Frames, HEADERS};

/// A name, what the client sends, what the application answers, and two lists: what the application must see of the
/// request, and the client of the answer. A text with `!` before it must not be there.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const ROWS: &[Row] = &[
    (
        "fields of the connection stay on it",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Own, close\r\nX-Own: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nX-End: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: 5\r\nX-Stay: 1\r\nContent-Length: 0\r\n\r\n",
        &["X-End: 1\r\n", "!X-Own", "!Keep-Alive", "!Proxy-Connection", "!Connection"],
        &["X-Stay: 1\r\n", "!X-Theirs", "!Keep-Alive", "Connection: close\r\n"],
    ),
    (
        "what says where a message ends or goes cannot be named away",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Host, Content-Length\r\nContent-Length: 2\r\n\r\nhi",
        OK,
        &["Host: a\r\n", "Content-Length: 2\r\n", "\r\n\r\nhi"],
        &["HTTP/1.1 200"],
    ),
    (
        "of TE trailers passes, told as the next one's own",
        "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip;q=0.5, trailers\r\nConnection: TE\r\n\r\n",
        OK,
        &["te: trailers\r\n", "Connection: TE\r\n", "!gzip"],
        &["HTTP/1.1 200"],
    ),
    (
        "other codings of transfer are not ours to promise",
        "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip\r\nConnection: TE\r\n\r\n",
        OK,
        &["!gzip", "!te:", "!Connection"],
        &["HTTP/1.1 200"],
    ),
    (
        "trailers pass both ways, but none that frames, routes or tells who called",
        "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 3\r\nContent-Length: 9\r\nX-Forwarded-Client-Cert: URI=spiffe://a/b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 4\r\nTransfer-Encoding: gzip\r\n\r\n",
        &["Trailer: X-Sum\r\n", "0\r\nX-Sum: 3\r\n\r\n", "!Content-Length", "!spiffe"],
        &["Trailer: X-Sum\r\n", "0\r\nX-Sum: 4\r\n\r\n", "!gzip"],
    ),
    (
        "an expectation passes, and so does its refusal",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n",
        &["Expect: 100-continue\r\n"],
        &["HTTP/1.1 417 Expectation Failed\r\n"],
    ),
    (
        "an old client expects nothing and gets no interim answer",
        "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        &["HTTP/1.1\r\n", "!Expect"],
        &["HTTP/1.1 200", "!103", "!Link", "\r\n\r\nok"],
    ),
    (
        "interim answers pass with their fields",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        &[],
        &["HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "\r\n\r\nok"],
    ),
    (
        "who called and what passed is left as it is, unless the config says otherwise",
        "GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 old\r\nX-Forwarded-For: 192.0.2.1\r\nForwarded: for=x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nVia: 1.1 theirs\r\nContent-Length: 0\r\n\r\n",
        &["Via: 1.0 old\r\n", "X-Forwarded-For: 192.0.2.1\r\n", "Forwarded: for=x\r\n", "!x-forwarded-proto"],
        &["Via: 1.1 theirs\r\n"],
    ),
    (
        "a URI's authority is the host, whatever Host says",
        "GET http://real:81/x?y HTTP/1.1\r\nHost: other\r\n\r\n",
        OK,
        &["GET /x?y HTTP/1.1\r\n", "Host: real:81\r\n", "!other"],
        &["HTTP/1.1 200"],
    ),
    (
        "an old client needs no host, we do",
        "GET /x HTTP/1.0\r\n\r\n",
        OK,
        &["GET /x HTTP/1.1\r\n", "Host: 127.0.0.1:"],
        &["HTTP/1.1 200", "Connection: close\r\n"],
    ),
    (
        "HEAD has no body, however long it would be",
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        &["HEAD / "],
        &["Content-Length: 999\r\n", "!Transfer-Encoding"],
    ),
    (
        "HEAD of what comes in chunks",
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        &[],
        &["HTTP/1.1 200", "!chunked", "!0\r\n\r\n"],
    ),
    (
        "204 tells of no body",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX-A: 1\r\n\r\n",
        &[],
        &["HTTP/1.1 204 No Content\r\n", "X-A: 1\r\n", "!Content-Length", "!Transfer-Encoding"],
    ),
    (
        "304 tells of the body it does not have",
        "GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 999\r\nETag: \"x\"\r\n\r\n",
        &[],
        &["HTTP/1.1 304 Not Modified\r\n", "Content-Length: 999\r\n", "ETag: \"x\"\r\n"],
    ),
    (
        "names keep their case, fields their order, values their bytes",
        "GET / HTTP/1.1\r\nhOsT: a\r\nX-CaSe:  a \t b  \r\nx-case: c\r\nX-Empty:\r\n\r\n",
        "HTTP/1.1 200 Fine by me\r\nSet-cookie: a\r\nx-UPPER: B\r\nSET-COOKIE: b\r\nContent-Length: 0\r\n\r\n",
        &["hOsT: a\r\nX-CaSe: a \t b\r\nx-case: c\r\nX-Empty: \r\n"],
        &["HTTP/1.1 200 Fine by me\r\n", "Set-cookie: a\r\nx-UPPER: B\r\nSET-COOKIE: b\r\n"],
    ),
    ("an answer without a date gets one", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", OK, &["!Date"], &["Date: "]),
    (
        "an answer's own date stays",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n",
        &[],
        &["Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"],
    ),
    (
        "forwards are counted down for OPTIONS",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 3\r\n\r\n",
        OK,
        &["OPTIONS * ", "Max-Forwards: 2\r\n"],
        &["HTTP/1.1 200"],
    ),
    (
        "and mean nothing for other methods",
        "GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
        OK,
        &["Max-Forwards: 0\r\n"],
        &["HTTP/1.1 200"],
    ),
    (
        "an upgrade that Connection does not name is none",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        OK,
        &["!Upgrade"],
        &["HTTP/1.1 200"],
    ),
    (
        "an offer of HTTP/2 is not passed on",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
        OK,
        &["!Upgrade", "!HTTP2-Settings"],
        &["HTTP/1.1 200"],
    ),
    (
        "an upgrade with a body is a plain request",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi",
        OK,
        &["!Upgrade", "\r\n\r\nhi"],
        &["HTTP/1.1 200"],
    ),
    (
        "what must be upgraded to is told",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        &[],
        &["HTTP/1.1 426", "Upgrade: websocket\r\n", "Connection: Upgrade\r\n"],
    ),
    (
        "an offer in an answer is not ours to make",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n",
        &[],
        &["HTTP/1.1 200", "!Upgrade"],
    ),
];

const END: &str = "HTTP/1.1 299 End\r\nContent-Length: 0\r\n\r\n";

/// Checks a message against what must and must not be in it; the case of what must not does not matter.
fn check(name: &str, message: &str, wanted: &[&str]) {
    for wanted in wanted {
        match wanted.strip_prefix('!') {
            Some(unwanted) => {
                assert!(
                    !message.to_lowercase().contains(&unwanted.to_lowercase()),
                    "{name}: {unwanted} is in\n{message}"
                );
            }
            None => assert!(message.contains(wanted), "{name}: {wanted} is not in\n{message}"),
        }
    }
}

#[tokio::test]
async fn fields_pass_as_the_standards_say() {
    let answer = Arc::new(Mutex::new(String::new()));
    let given = Arc::clone(&answer);
    let app = App::new(move |request| {
        let is_end = request.starts_with("GET /end");
        Some(if is_end { END.to_owned() } else { given.lock().unwrap().clone() })
    });
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    for (name, request, answered, forwarded, received) in ROWS {
        (*answered).clone_into(&mut answer.lock().unwrap());
        let before = app.seen().len();
        let mut client = Client::connect(proxy.port);
        // A second request, where it is still answered, ends the connection.
        client.send(&format!("{request}GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        let all = client.read_to_end();
        let first = all.split("HTTP/1.1 299").next().unwrap();
        let seen = app.seen();
        let seen = seen.get(before).unwrap_or_else(|| panic!("{name}: it was not forwarded: {all}"));
        check(name, seen, forwarded);
        check(name, first, received);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn at_the_last_forward_the_answer_is_ours() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    for (method, status) in [("OPTIONS", "200"), ("TRACE", "501")] {
        let answer =
            Client::connect(proxy.port).ask(&format!("{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method}: {answer}");
    }
    assert!(app.seen().is_empty());
    proxy.stop().await;
}

#[tokio::test]
async fn the_config_says_who_is_told_of() {
    let app = App::answering("HTTP/1.1 200 OK\r\nVia: 1.1 theirs\r\nContent-Length: 0\r\n\r\n");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 old\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    for (policy, forwarded, received) in [
        ("via: us", &["Via: 1.0 old\r\n", "via: 1.1 us\r\n"][..], &["Via: 1.1 theirs\r\n", "via: 1.1 us\r\n"][..]),
        ("xForwardedFor: append", &["192.0.2.1, 127.0.0.1\r\n", "x-forwarded-proto: http\r\n"], &[]),
        ("xForwardedFor: set", &["-For: 127.0.0.1\r\n", "!192.0.2.1"], &[]),
        ("xForwardedFor: remove", &["!X-Forwarded"], &[]),
    ] {
        let proxy = Proxy::start_on(&app.plain_config(&format!("      forwarded: {{ {policy} }}\n")), 1).await;
        let answer = Client::connect(proxy.port).ask(request);
        check(policy, &app.seen().pop().unwrap(), forwarded);
        check(policy, &answer, received);
        proxy.stop().await;
    }
}

/// A field of a head without compression.
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

#[tokio::test]
async fn heads_of_http2_that_break_its_rules_reach_nobody() {
    let app = App::answering(OK);
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let good = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
    let with = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    let rows = [
        ("a pseudo-field behind a field", vec![good[0], good[1], good[2], ("x", "1"), good[3]]),
        ("a pseudo-field twice", with(&[(":path", "/b")])),
        ("a pseudo-field that is none", with(&[(":colour", "red")])),
        ("one of an answer", with(&[(":status", "200")])),
        ("no path", vec![good[0], good[1], good[3]]),
        ("an empty path", vec![good[0], good[1], (":path", ""), good[3]]),
        ("no method", good[1..].to_vec()),
        ("a name in capitals", with(&[("X-A", "1")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("proxy-connection", with(&[("proxy-connection", "x")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te that is not trailers", with(&[("te", "gzip")])),
        ("two hosts", with(&[("host", "b")])),
        ("a line feed in a value", with(&[("x", "a\nb")])),
    ];
    let port = proxy.port;
    let talk = tokio::task::spawn_blocking(move || {
        for (name, fields) in rows {
            let mut client = Frames::connect(port);
            let head: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
            client.send(HEADERS, END_STREAM | END_HEADERS, 1, &head);
            // Refused by a reset, a GOAWAY or an answer of 400; never by silence.
            let refused = std::iter::from_fn(|| client.receive()).find_map(|(kind, _, stream, payload)| match kind {
                3 | 7 => Some(true),
                HEADERS if stream == 1 => Some(payload.windows(3).any(|text| text == b"400") || payload[0] == 0x8c),
                _ => None,
            });
            assert_ne!(refused, Some(false), "{name}");
        }
        let mut client = Frames::connect(port);
        let head: Vec<u8> = good.iter().flat_map(|(name, value)| field(name, value)).collect();
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &head);
        while client.receive().expect("an answer").0 != HEADERS {}
    });
    talk.await.unwrap();
    assert_eq!(app.seen().len(), 1, "only the last, which is good: {:?}", app.seen());
    proxy.stop().await;
}

#[tokio::test]
async fn heads_of_http2_become_those_of_http1() {
    let app = App::answering(
        "HTTP/1.1 200 OK\r\nConnection: x-own\r\nX-Own: 1\r\nKeep-Alive: 5\r\nX-CaSe: 1\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::start_on(&app.plain_config(""), 1).await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let mut driving = JoinSet::new();
    driving.spawn(async move { drop(connection.await) });
    let mut client = client.ready().await.unwrap();
    let request = http::Request::builder().method("POST").uri("http://shop:8080/x?y").version(http::Version::HTTP_2);
    let request = request.header("cookie", "a=b").header("cookie", "c=d").header("te", "trailers").header("x-a", "1");
    let (response, mut send) = client.send_request(request.body(()).unwrap(), false).unwrap();
    send.send_data("hi".into(), false).unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "3".parse().unwrap());
    trailers.insert("x-forwarded-client-cert", "URI=spiffe://a/b".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    let response = response.await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-case"]), (200, &"1".parse().unwrap()));
    for gone in ["x-own", "keep-alive", "connection"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }
    check(
        "request",
        &app.seen().pop().unwrap(),
        &[
            "POST /x?y HTTP/1.1\r\n",
            "host: shop:8080\r\n",
            "cookie: a=b; c=d\r\n",
            "te: trailers\r\n",
            "Connection: TE\r\n",
            "Transfer-Encoding: chunked\r\n",
            "2\r\nhi\r\n0\r\nx-sum: 3\r\n\r\n",
            "!spiffe",
        ],
    );
    proxy.stop().await;
}
