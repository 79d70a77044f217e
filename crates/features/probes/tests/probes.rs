//! Probes against applications that really listen: HTTP, HTTPS with a certificate of its own, TCP, gRPC.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use outrigger_config::Config;
use outrigger_http::Resolver;
use outrigger_probes::{Plan, ProbesComponent};
use outrigger_runtime::{AdminRequest, Component, Context, Standalone};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Asks an endpoint as the kubelet would; the status.
async fn ask(outside: &Standalone, path: &str) -> u16 {
    let headers = HeaderMap::from_iter([(http::header::USER_AGENT, HeaderValue::from_static("kube-probe/1.34"))]);
    let handler = outside.admin.handler(path).unwrap_or_else(|| panic!("{path} is there"));
    handler(AdminRequest { query: String::new(), headers }).await.status().as_u16()
}

async fn running(plan: String) -> (Standalone, tokio::task::JoinHandle<()>) {
    let (context, mut outside) = Context::standalone(Config::default(), 0);
    let component = ProbesComponent::new(Plan::parse(&plan), LOCAL, Resolver::from_system());
    assert!(component.enabled(&Config::default()));
    component.check(None, &Config::default()).unwrap();
    let task = tokio::task::spawn_local(async move { component.run(context).await.unwrap() });
    outside.ready().await;
    (outside, task)
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers one request by its head.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = match head.split(' ').nth(1).unwrap() {
        "/live" if head.contains("x-probe: yes\r\n") && head.contains("user-agent: kube-probe/1.34\r\n") => {
            "204 No Content"
        }
        "/moved" => "302 Found\r\nlocation: /elsewhere",
        "/broken" => "500 Internal Server Error",
        "/named" if head.contains("host: shop.example\r\n") => "200 OK",
        "/silent" => return std::future::pending().await,
        _ => "404 Not Found",
    };
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
}

#[tokio::test]
async fn the_answers_are_the_applications() {
    LocalSet::new()
        .run_until(async {
            let (plain, port) = listener().await;
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = plain.accept().await {
                    tokio::task::spawn_local(serve(stream));
                }
            });
            let (secure, tls_port) = listener().await;
            let key = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let der = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
            let tls = tls.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], der).unwrap();
            tokio::task::spawn_local(async move {
                let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
                while let Ok((stream, _)) = secure.accept().await {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        tokio::task::spawn_local(serve(stream));
                    }
                }
            });
            let (closed, closed_port) = listener().await;
            drop(closed);
            let plan = format!(
                r#"{{
                "/app-health/a/livez": {{"httpGet": {{"path": "/live", "port": {port}, "httpHeaders": [{{"name": "X-Probe", "value": "yes"}}]}}, "timeoutSeconds": 20}},
                "/app-health/a/readyz": {{"httpGet": {{"path": "/broken", "port": {port}}}, "timeoutSeconds": 20}},
                "/app-health/a/startupz": {{"httpGet": {{"path": "/moved", "port": {port}}}, "timeoutSeconds": 20}},
                "/app-health/b/livez": {{"httpGet": {{"path": "/live", "port": {tls_port}, "scheme": "HTTPS", "httpHeaders": [{{"name": "X-Probe", "value": "yes"}}]}}, "timeoutSeconds": 20}},
                "/app-health/b/readyz": {{"httpGet": {{"path": "/named", "port": {port}, "httpHeaders": [{{"name": "Host", "value": "shop.example"}}]}}, "timeoutSeconds": 20}},
                "/app-health/b/startupz": {{"httpGet": {{"path": "/silent", "port": {port}}}}},
                "/app-health/c/livez": {{"tcpSocket": {{"port": {port}}}, "timeoutSeconds": 20}},
                "/app-health/c/readyz": {{"tcpSocket": {{"port": {closed_port}}}, "timeoutSeconds": 20}},
                "/app-health/c/startupz": {{"httpGet": {{"port": {closed_port}}}, "timeoutSeconds": 20}}
            }}"#
            );
            let (outside, task) = running(plan).await;
            for (path, expected) in [
                ("a/livez", 204),
                ("a/readyz", 500),
                ("a/startupz", 200),
                ("b/livez", 204),
                ("b/readyz", 200),
                ("b/startupz", 503),
                ("c/livez", 200),
                ("c/readyz", 503),
                ("c/startupz", 503),
            ] {
                assert_eq!(ask(&outside, &format!("/app-health/{path}")).await, expected, "{path}");
            }
            outside.stop.request(tokio::time::Instant::now() + std::time::Duration::from_secs(1));
            task.await.unwrap();
            assert!(outside.admin.handler("/app-health/a/livez").is_none(), "gone with the component");
        })
        .await;
}

#[tokio::test]
async fn grpc_health_is_asked() {
    LocalSet::new()
        .run_until(async {
            let (listener, port) = listener().await;
            tokio::task::spawn_local(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::task::spawn_local(async move {
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        while let Some(Ok((request, mut respond))) = connection.accept().await {
                            tokio::task::spawn_local(async move {
                                let mut body = request.into_body();
                                let mut message = Vec::new();
                                while let Some(Ok(data)) = body.data().await {
                                    message.extend_from_slice(&data);
                                }
                                // `shop` is serving, everything else is not.
                                let serving = message == b"\0\0\0\0\x06\x0a\x04shop";
                                let response =
                                    Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                                let mut stream = respond.send_response(response, false).unwrap();
                                let answer = [0, 0, 0, 0, 2, 8, if serving { 1 } else { 2 }];
                                stream.send_data(Bytes::copy_from_slice(&answer), false).unwrap();
                                let status = HeaderMap::from_iter([(
                                    "grpc-status".parse().unwrap(),
                                    HeaderValue::from_static("0"),
                                )]);
                                stream.send_trailers(status).unwrap();
                            });
                        }
                    });
                }
            });
            let plan = format!(
                r#"{{
                "/app-health/a/livez": {{"grpc": {{"port": {port}, "service": "shop"}}, "timeoutSeconds": 10}},
                "/app-health/a/readyz": {{"grpc": {{"port": {port}}}, "timeoutSeconds": 10}}
            }}"#
            );
            let (outside, _task) = running(plan).await;
            assert_eq!(ask(&outside, "/app-health/a/livez").await, 200);
            assert_eq!(ask(&outside, "/app-health/a/readyz").await, 503);
        })
        .await;
}
