//! Messages of delta ADS: whatever comes, from proxies and from servers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_discovery::{Catalogue, Kind, Service, ServiceEndpoint, Subscriber};
use outrigger_wire::xds::{Request, Response, read_assignment, read_cluster};

fuzz_target!(|message: &[u8]| {
    let response = Response::read(message);
    for resource in response.resources.iter().map(|one| one.value).chain([message]) {
        if let Some(cluster) = read_cluster(resource) {
            assert!(!cluster.name.is_empty() && !cluster.assignment.is_empty());
        }
        read_assignment(resource, |endpoint, labels| {
            assert!(endpoint.weight > 0 && endpoint.address.port() > 0);
            labels.for_each(drop);
        });
    }
    // A stream answers whatever it is asked, and comes to rest.
    let catalogue = Catalogue::default();
    let endpoints = vec![ServiceEndpoint::new(([10, 0, 0, 1], 80).into())];
    catalogue.apply(&[Service { name: "a:1".to_owned(), endpoints, ..Service::default() }], &[]);
    let mut stream = Subscriber::new(&catalogue, 64);
    let asked = Request { type_url: Kind::Assignment.type_url(), subscribe: vec!["*"], ..Request::default() };
    stream.take(&asked).expect("a plain request is taken");
    let _ = stream.take(&Request::read(message));
    let mut answers = 0;
    while let Some(parts) = stream.answer() {
        Response::read(&parts.concat());
        answers += 1;
        assert!(answers < 100);
    }
});
