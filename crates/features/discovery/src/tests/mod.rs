//! A stream against a proxy that keeps what it is told.

mod streams;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use outrigger_wire::xds::{self, Request, Response};
use proptest::prelude::*;

use crate::{Catalogue, Kind, Service, ServiceEndpoint, Subscriber};

/// What a proxy asked for, and what it was told.
#[derive(Default)]
struct Proxy {
    asked: BTreeSet<String>,
    all: bool,
    told: BTreeMap<String, String>,
    begun: bool,
}

fn service(name: &str, ports: &[u16]) -> Service {
    let endpoints = ports.iter().map(|port| ServiceEndpoint::new(([10, 0, 0, 1], *port).into())).collect();
    Service { name: name.to_owned(), endpoints, ..Service::default() }
}

fn whole(parts: Vec<Bytes>) -> Vec<u8> {
    parts.concat()
}

impl Proxy {
    fn ask(&mut self, stream: &mut Subscriber, kind: Kind, subscribe: &[&str], unsubscribe: &[&str]) {
        let versions =
            if self.begun { Vec::new() } else { self.told.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect() };
        let request = Request {
            type_url: kind.type_url(),
            subscribe: subscribe.to_vec(),
            unsubscribe: unsubscribe.to_vec(),
            versions,
            ..Request::default()
        };
        let mut message = Vec::new();
        request.write(&mut message);
        stream.take(&Request::read(&message)).unwrap();
        self.begun = true;
        for name in unsubscribe {
            match *name {
                "*" => self.all = false,
                name => drop(self.asked.remove(name)),
            }
        }
        for name in subscribe {
            match *name {
                "*" => self.all = true,
                name => drop(self.asked.insert(name.to_owned())),
            }
        }
        let (asked, all) = (&self.asked, self.all);
        self.told.retain(|name, _| all || asked.contains(name));
    }

    /// Takes one answer; whether there was one.
    fn hear(&mut self, stream: &mut Subscriber, kind: Kind) -> bool {
        let Some(parts) = stream.answer() else { return false };
        let message = whole(parts);
        let response = Response::read(&message);
        assert_eq!(response.type_url, kind.type_url());
        for resource in &response.resources {
            assert!(self.all || self.asked.contains(resource.name), "{} was not asked for", resource.name);
            let before = self.told.insert(resource.name.to_owned(), resource.version.to_owned());
            assert_ne!(before.as_deref(), Some(resource.version), "{} is told twice", resource.name);
        }
        for name in &response.removed {
            self.told.remove(*name);
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Step {
    Set(u8, Vec<u16>),
    Remove(u8),
    Ask(u8),
    Drop(u8),
    AskAll,
    DropAll,
    Hear,
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..6, prop::collection::vec(1_u16..5, 0..3)).prop_map(|(name, ports)| Step::Set(name, ports)),
        2 => (0_u8..6).prop_map(Step::Remove),
        3 => (0_u8..8).prop_map(Step::Ask),
        1 => (0_u8..8).prop_map(Step::Drop),
        1 => Just(Step::AskAll),
        1 => Just(Step::DropAll),
        3 => Just(Step::Hear),
        1 => Just(Step::Again),
    ]
}

proptest! {
    /// Whatever happens, who has heard all knows what there is of what it asked for, and has heard nothing twice.
    #[test]
    fn a_proxy_knows_what_there_is_of_what_it_asked_for(steps in prop::collection::vec(step(), 0..60)) {
        let catalogue = Catalogue::default();
        let kind = Kind::Assignment;
        let mut stream = Subscriber::new(&catalogue, 100);
        let mut proxy = Proxy::default();
        let name = |number: u8| format!("s{number}:80");
        for step in steps {
            match step {
                Step::Set(number, ports) => catalogue.apply(&[service(&name(number), &ports)], &[]),
                Step::Remove(number) => catalogue.apply(&[], &[name(number)]),
                // Asked for again, a name is told again; that is no mistake, and not what is looked for here.
                Step::Ask(number) if !proxy.asked.contains(&name(number)) && !proxy.all => {
                    proxy.ask(&mut stream, kind, &[&name(number)], &[]);
                }
                Step::Ask(_) => {}
                Step::Drop(number) => proxy.ask(&mut stream, kind, &[], &[&name(number)]),
                Step::AskAll if !proxy.all => proxy.ask(&mut stream, kind, &["*"], &[]),
                Step::AskAll => {}
                Step::DropAll => proxy.ask(&mut stream, kind, &[], &["*"]),
                Step::Hear => drop(proxy.hear(&mut stream, kind)),
                Step::Again => {
                    stream = Subscriber::new(&catalogue, 100);
                    let mut names: Vec<String> = proxy.asked.iter().cloned().collect();
                    names.extend(proxy.all.then(|| "*".to_owned()));
                    proxy.begun = false;
                    proxy.ask(&mut stream, kind, &names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
                }
            }
        }
        while proxy.hear(&mut stream, kind) {}
        let there = catalogue.services();
        let wanted = there.iter().filter(|name| proxy.all || proxy.asked.contains(*name)).cloned().collect::<BTreeSet<_>>();
        prop_assert_eq!(proxy.told.keys().cloned().collect::<BTreeSet<_>>(), wanted);
        for (name, version) in &proxy.told {
            let now = catalogue.find(kind, name).unwrap();
            prop_assert_eq!(version, &format!("{:016x}", now.version));
        }
        prop_assert!(stream.answer().is_none());
    }
}

fn asked(stream: &mut Subscriber, kind: Kind, subscribe: &[&str]) {
    let request = Request { type_url: kind.type_url(), subscribe: subscribe.to_vec(), ..Request::default() };
    stream.take(&request).unwrap();
}

/// The next answer: names told of, and names removed.
fn heard(stream: &mut Subscriber) -> Option<(Vec<String>, Vec<String>)> {
    let message = whole(stream.answer()?);
    let response = Response::read(&message);
    let mut names: Vec<String> = response.resources.iter().map(|one| one.name.to_owned()).collect();
    let mut removed: Vec<String> = response.removed.iter().map(ToString::to_string).collect();
    names.sort_unstable();
    removed.sort_unstable();
    Some((names, removed))
}

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn what_does_not_exist_is_told_when_it_comes_and_when_it_goes() {
    let catalogue = Catalogue::default();
    let mut stream = Subscriber::new(&catalogue, 10);
    asked(&mut stream, Kind::Assignment, &["a:1"]);
    assert_eq!(heard(&mut stream), Some((vec![], names(&["a:1"]))), "it is said that it is not there");
    assert_eq!(heard(&mut stream), None);
    catalogue.apply(&[service("b:1", &[1])], &[]);
    assert_eq!(heard(&mut stream), None, "of no interest");
    catalogue.apply(&[service("a:1", &[1])], &[]);
    assert_eq!(heard(&mut stream), Some((names(&["a:1"]), vec![])));
    catalogue.apply(&[service("a:1", &[1])], &[]);
    assert_eq!(heard(&mut stream), None, "nothing changed");
    catalogue.apply(&[], &names(&["a:1"]));
    catalogue.apply(&[service("a:1", &[2])], &[]);
    assert_eq!(heard(&mut stream), Some((names(&["a:1"]), vec![])), "removed and back in between");
    catalogue.apply(&[], &names(&["a:1"]));
    assert_eq!(heard(&mut stream), Some((vec![], names(&["a:1"]))));
}

#[test]
fn who_names_nothing_at_first_wants_all_clusters_and_no_endpoints() {
    let catalogue = Catalogue::default();
    let mut stream = Subscriber::new(&catalogue, 10);
    asked(&mut stream, Kind::Cluster, &[]);
    asked(&mut stream, Kind::Assignment, &[]);
    assert_eq!(heard(&mut stream), Some((vec![], vec![])), "an empty answer to start with");
    assert_eq!(heard(&mut stream), None);
    let virtual_addresses = vec!["10.96.0.1:80".parse().unwrap()];
    catalogue.apply(&[Service { virtual_addresses, ..service("a:1", &[1]) }], &[]);
    assert_eq!(heard(&mut stream), Some((names(&["a:1"]), vec![])), "without the address that stands for it");
    assert_eq!(heard(&mut stream), None);
}

#[test]
fn an_address_stands_for_the_service_that_has_it_now() {
    let with = |name: &str, address: &str| Service {
        virtual_addresses: vec![address.parse().unwrap()],
        ..service(name, &[1])
    };
    let cluster = |catalogue: &Catalogue| {
        let resource = catalogue.find(Kind::Cluster, "10.96.0.1:80")?;
        let response = Response::read(&resource.encoded);
        assert_eq!(response.resources[0].name, "10.96.0.1:80");
        Some(xds::read_cluster(response.resources[0].value)?.name.to_owned())
    };
    let catalogue = Catalogue::default();
    catalogue.apply(&[with("a:1", "10.96.0.1:80")], &[]);
    assert_eq!(cluster(&catalogue).as_deref(), Some("a:1"));
    // Another one takes it over, whichever word comes first.
    catalogue.apply(&[with("b:1", "10.96.0.1:80")], &[]);
    catalogue.apply(&[with("a:1", "10.96.0.2:80")], &[]);
    assert_eq!(cluster(&catalogue).as_deref(), Some("b:1"));
    catalogue.apply(&[], &names(&["a:1"]));
    assert_eq!(cluster(&catalogue).as_deref(), Some("b:1"));
    catalogue.apply(&[], &names(&["b:1"]));
    assert_eq!(cluster(&catalogue), None);
    assert_eq!((catalogue.len(Kind::Cluster), catalogue.len(Kind::Assignment)), (0, 0));
}

#[test]
fn identities_are_told_of_a_service_all_of_whose_endpoints_have_one() {
    let told = |identities: &[&str]| {
        let mut service = service("a:1", &[1, 2]);
        for (endpoint, identity) in service.endpoints.iter_mut().zip(identities) {
            endpoint.identity = (*identity).to_owned();
        }
        let catalogue = Catalogue::default();
        catalogue.apply(&[service], &[]);
        let resource = catalogue.find(Kind::Cluster, "a:1").unwrap();
        let response = Response::read(&resource.encoded);
        let cluster = xds::read_cluster(response.resources[0].value).unwrap();
        cluster.spiffe_ids.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told(&["spiffe://d/b", "spiffe://d/a"]), names(&["spiffe://d/a", "spiffe://d/b"]));
    assert_eq!(told(&["spiffe://d/a", "spiffe://d/a"]), names(&["spiffe://d/a"]));
    assert_eq!(told(&["spiffe://d/a", ""]), names(&[]), "one takes plain text");
}

#[test]
fn answers_are_bounded_and_the_rest_follows() {
    let catalogue = Catalogue::default();
    let ports: Vec<u16> = (1..=2000).collect();
    let services: Vec<Service> = (0..20).map(|number| service(&format!("s{number}:80"), &ports)).collect();
    catalogue.apply(&services, &[]);
    let mut stream = Subscriber::new(&catalogue, 100);
    asked(&mut stream, Kind::Assignment, &["*"]);
    let (mut answers, mut seen) = (0, BTreeSet::new());
    while let Some((names, removed)) = heard(&mut stream) {
        assert!(removed.is_empty() && !names.is_empty());
        for name in names {
            assert!(seen.insert(name.clone()), "{name} is told twice");
        }
        answers += 1;
    }
    assert_eq!(seen.len(), 20);
    assert!((2..=20).contains(&answers), "{answers}");
}

#[test]
fn who_asks_for_too_much_is_refused_and_leaves_nothing() {
    let catalogue = Catalogue::default();
    let mut stream = Subscriber::new(&catalogue, 3);
    let many = ["a:1", "b:1", "c:1", "d:1"];
    let request = Request { type_url: xds::ASSIGNMENT, subscribe: many.to_vec(), ..Request::default() };
    assert!(stream.take(&request).unwrap_err().message.contains("more than 3 names"));
    let long = "x".repeat(400);
    let request = Request { type_url: xds::ASSIGNMENT, subscribe: vec![&long], ..Request::default() };
    assert!(stream.take(&request).is_err());
    drop(stream);
    for name in many {
        assert!(catalogue.find(Kind::Assignment, name).is_none());
    }
    assert_eq!(catalogue.names_known(), 0);
}

#[test]
fn of_other_types_there_is_nothing_and_refused_answers_are_not_repeated() {
    let catalogue = Catalogue::default();
    catalogue.apply(&[service("a:1", &[1])], &[]);
    let mut stream = Subscriber::new(&catalogue, 10);
    let listeners = "type.googleapis.com/envoy.config.listener.v3.Listener";
    let request = Request { type_url: listeners, subscribe: vec!["in"], ..Request::default() };
    stream.take(&request).unwrap();
    let message = whole(stream.answer().unwrap());
    let response = Response::read(&message);
    assert_eq!((response.type_url, response.removed), (listeners, vec!["in"]));
    let request = Request { type_url: listeners, nonce: response.nonce, ..Request::default() };
    stream.take(&request).unwrap();
    assert!(stream.answer().is_none(), "an acknowledgement is not answered");

    asked(&mut stream, Kind::Assignment, &["a:1"]);
    assert!(heard(&mut stream).is_some());
    let refusal = Request { type_url: xds::ASSIGNMENT, nonce: "2", error: Some("not\nmine"), ..Request::default() };
    stream.take(&refusal).unwrap();
    assert_eq!(heard(&mut stream), None);
    catalogue.apply(&[service("a:1", &[2])], &[]);
    assert_eq!(heard(&mut stream), Some((names(&["a:1"]), vec![])), "but what is new is told");
}
