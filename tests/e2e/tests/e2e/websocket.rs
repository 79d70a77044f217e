//! WebSocket between Python's `websockets` on both sides, by Upgrade and by HTTP/2's extended CONNECT.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use anyhow::ensure;
use outrigger_e2e::{Place, Spoken, eventually, free_port, peer_server, run_peer};

#[test]
fn sockets_pass() {
    sockets(&Place::Here, Spoken::HTTP);
}

#[test]
fn sockets_are_found_where_anything_may_be_spoken() {
    sockets(&Place::Here, Spoken::ANYTHING);
}

#[test]
fn sockets_pass_between_pods() {
    sockets(&Place::pods(), Spoken::ANYTHING);
}

#[track_caller]
fn sockets(place: &Place, spoken: Spoken) {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = place.at_server(|| peer_server("websocket_server.py", port, folder.path()));
    for (ways, way) in (1..).zip(place.ways(folder.path(), spoken, port)) {
        for test in ["messages", "fragments", "pings", "closing", "large"] {
            let call = || run_peer("websocket_client.py", &[&way.at.to_string(), test]);
            way.at_client(call).unwrap_or_else(|error| panic!("{test}: {error:#}"));
        }
        // How each side ended it, as the other one saw it.
        for end in ["ended /close 4001", "ended /echo?mine 4002", "ended /abort 1006", "ended /echo?abrupt 1006"] {
            eventually(end, || {
                ensure!(server.log().lines().filter(|line| *line == end).count() == ways, "{}", server.log());
                Ok(())
            });
        }
    }
}

#[test]
fn sockets_share_an_http2_connection() {
    for place in [Place::Here, Place::pods()] {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let _server = place.at_server(|| peer_server("websocket_server.py", port, folder.path()));
        for way in place.ways(folder.path(), Spoken::HTTP, port) {
            way.at_client(|| run_peer("http2_websocket.py", &[&way.at.to_string()])).unwrap();
        }
    }
}
