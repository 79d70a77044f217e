//! WebSocket between Python's `websockets` on both sides, by Upgrade and by HTTP/2's extended CONNECT.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use anyhow::ensure;
use outrigger_e2e::{Sidecars, Spoken, Way, eventually, free_port, peer_server, run_peer};

#[test]
fn sockets_pass_one_proxy() {
    sockets(Way::Plain, Spoken::HTTP);
}

#[test]
fn sockets_pass_two_sidecars() {
    sockets(Way::Chain, Spoken::HTTP);
}

#[test]
fn sockets_are_found_where_anything_may_be_spoken() {
    sockets(Way::Plain, Spoken::ANYTHING);
}

#[track_caller]
fn sockets(way: Way, spoken: Spoken) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = peer_server("websocket_server.py", port, folder.path());
    let way = Sidecars::start(folder.path(), way, spoken, port);
    for test in ["messages", "fragments", "pings", "closing", "large"] {
        run_peer("websocket_client.py", &[&way.port.to_string(), test]).unwrap_or_else(|e| panic!("{test}: {e:#}"));
    }
    // How each side ended it, as the other one saw it.
    for end in ["ended /close 4001", "ended /echo?mine 4002", "ended /abort 1006", "ended /echo?abrupt 1006"] {
        eventually(end, || {
            ensure!(server.log().lines().any(|line| line == end), "{}", server.log());
            Ok(())
        });
    }
}

#[test]
fn sockets_share_an_http2_connection() {
    for way in [Way::Plain, Way::Chain] {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let _server = peer_server("websocket_server.py", port, folder.path());
        let way = Sidecars::start(folder.path(), way, Spoken::HTTP, port);
        run_peer("http2_websocket.py", &[&way.port.to_string()]).unwrap();
    }
}
