use std::net::SocketAddr;

use super::*;

/// Fields that nobody knows, of every wire type.
fn with_unknown(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 900, 5);
    put_bytes(&mut out, 901, b"later");
    out.extend([0xf5, 0x38, 1, 2, 3, 4]);
    out.extend(message);
    put_bytes(&mut out, 902, &[0xff; 9]);
    out
}

#[test]
fn a_request_is_read_as_it_was_written() {
    let request = Request {
        node: "shop/frontend-1",
        type_url: ASSIGNMENT,
        subscribe: vec!["a", "b"],
        unsubscribe: vec!["c"],
        versions: vec![("a", "7"), ("b", "8")],
        nonce: "n1",
        error: Some("no such thing"),
    };
    let mut message = Vec::new();
    request.write(&mut message);
    assert_eq!(Request::read(&message), request);
    assert_eq!(Request::read(&with_unknown(&message)), request, "another version's");
    for cut in 0..message.len() {
        let _ = Request::read(&message[..cut]);
    }
}

#[test]
fn an_answer_is_read_as_it_was_written() {
    let resource = Resource { name: "a", version: "7", type_url: CLUSTER, value: b"xyz" };
    let response = Response { type_url: CLUSTER, nonce: "n", resources: vec![resource], removed: vec!["b"] };
    let mut message = Vec::new();
    resource.write(&mut message);
    response.write_rest(&mut message);
    assert_eq!(Response::read(&message), response);
    assert_eq!(Response::read(&with_unknown(&message)), response, "another version's");
    for cut in 0..message.len() {
        let _ = Response::read(&message[..cut]);
    }
}

#[test]
fn endpoints_are_read_as_they_were_written_by_zone_and_priority() {
    let one = |last: u8| Assigned {
        address: SocketAddr::from(([10, 0, 0, last], 80)),
        weight: 1,
        priority: 0,
        zone: "",
        healthy: true,
        identity: "",
    };
    let written = [
        (one(1), vec![]),
        (Assigned { weight: 7, zone: "b", identity: "spiffe://d/ns/n/sa/s", ..one(2) }, vec![("version", "2")]),
        (Assigned { healthy: false, zone: "b", ..one(3) }, vec![("version", "1"), ("app", "x")]),
        (Assigned { priority: 3, address: "[fd00::1]:8080".parse().unwrap(), ..one(4) }, vec![]),
    ];
    let mut message = Vec::new();
    write_assignment("orders", written.iter().map(|(one, labels)| (*one, labels.iter().copied())), &mut message);
    let mut read = Vec::new();
    let name = read_assignment(&message, |one, labels| read.push((one, labels.collect::<Vec<_>>())));
    assert_eq!((name, &*read), ("orders", &written[..]));
    for cut in 0..message.len() {
        read_assignment(&message[..cut], |_, labels| assert!(labels.count() < 3));
    }
}

#[test]
fn endpoints_that_cannot_be_used_are_left_out() {
    let endpoint = |ip: &str, port: u64| {
        let (mut socket, mut address, mut place, mut one) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        put_bytes(&mut socket, 2, ip.as_bytes());
        put_number(&mut socket, 3, port);
        put_bytes(&mut address, 1, &socket);
        put_bytes(&mut place, 1, &address);
        put_bytes(&mut one, 1, &place);
        let (mut locality, mut message) = (Vec::new(), Vec::new());
        put_bytes(&mut locality, 2, &one);
        put_bytes(&mut message, 2, &locality);
        message
    };
    for (name, message, expected) in [
        ("good", endpoint("10.0.0.1", 80), 1),
        ("a name", endpoint("orders.shop", 80), 0),
        ("no port", endpoint("10.0.0.1", 0), 0),
        ("a large port", endpoint("10.0.0.1", 65_536), 0),
        ("nothing", vec![0x12, 0], 0),
    ] {
        let mut count = 0;
        read_assignment(&message, |_, _| count += 1);
        assert_eq!(count, expected, "{name}");
    }
}

#[test]
fn a_cluster_is_read_as_it_was_written() {
    let plain = Discovered { name: "orders:80", assignment: "orders:80", ..Discovered::default() };
    let full = Discovered {
        spiffe_ids: vec!["spiffe://d/ns/n/sa/s", "spiffe://d/ns/n/sa/t"],
        virtual_addresses: vec!["10.96.0.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()],
        http2: true,
        ..plain.clone()
    };
    for cluster in [plain, full] {
        let mut message = Vec::new();
        write_cluster(&cluster, &mut message);
        assert_eq!(read_cluster(&message), Some(cluster.clone()));
        assert_eq!(read_cluster(&with_unknown(&message)), Some(cluster), "another version's");
        for cut in 0..message.len() {
            let _ = read_cluster(&message[..cut]);
        }
    }
    assert_eq!(read_cluster(&[0x0a, 1, b'x', 0x10, 1]), None, "one by DNS");
    assert_eq!(read_cluster(&[]), None);
}
