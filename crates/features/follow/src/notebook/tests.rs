use std::task::{Context, Waker};

use outrigger_traffic::directory::Directory;
use outrigger_traffic::endpoints::Update;
use outrigger_wire::xds::{Assigned, Discovered, write_assignment, write_cluster};
use proptest::prelude::*;

use super::*;

/// A resource of an answer.
type Written = (String, String, &'static str, Vec<u8>);

fn assignment(name: &str, version: &str, ports: &[u16]) -> Written {
    let endpoints = ports.iter().map(|port| {
        let address = SocketAddr::from(([10, 0, 0, 1], *port));
        (Assigned { address, weight: 2, priority: 0, zone: "a", healthy: true, identity: "" }, std::iter::empty())
    });
    let mut value = Vec::new();
    write_assignment(name, endpoints, &mut value);
    (name.to_owned(), version.to_owned(), xds::ASSIGNMENT, value)
}

fn cluster(address: &str, service: &str) -> Written {
    let mut value = Vec::new();
    let spiffe_ids = vec!["spiffe://d/ns/n/sa/s"];
    write_cluster(&Discovered { name: service, assignment: service, spiffe_ids, ..Discovered::default() }, &mut value);
    (address.to_owned(), "1".to_owned(), xds::CLUSTER, value)
}

fn told(notebook: &Notebook, type_url: &str, resources: &[Written], removed: &[&str]) -> Result<(), String> {
    let resources =
        resources.iter().map(|(name, version, type_url, value)| Resource { name, version, type_url, value });
    let response = Response { type_url, nonce: "1", resources: resources.collect(), removed: removed.to_vec() };
    notebook.take(&response, Instant::now())
}

fn section(more: &str) -> DiscoverySource {
    let text = format!(
        "proxy:\n  listeners: [{{ name: out, direction: outbound, address: \"127.0.0.1:1\", redirected: true, protocol: auto }}]\n  \
         discovery: {{ servers: [\"127.0.0.1:2\"]{more} }}\n"
    );
    let parsed = outrigger_config::parse("test.yaml", &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    parsed.config.proxy.unwrap().discovery.unwrap()
}

fn on_demand(more: &str) -> Notebook {
    let notebook = Notebook::default();
    notebook.allow(&section(&format!(", onDemand: {{ {more} }}")));
    notebook.connected(Ok(()));
    notebook
}

fn names(notebook: &Notebook, type_url: &str) -> Vec<String> {
    let mut names: Vec<String> = notebook.names(type_url).into_keys().collect();
    names.sort_unstable();
    names
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, last], 80))
}

#[test]
fn a_service_is_found_by_its_address_once_its_endpoints_are_known() {
    let notebook = on_demand("");
    let now = Instant::now();
    assert_eq!(notebook.ask(address(1), now), Known::Asked);
    assert_eq!(names(&notebook, xds::CLUSTER), ["10.96.0.1:80"]);
    told(&notebook, xds::CLUSTER, &[cluster("10.96.0.1:80", "orders.shop:80")], &[]).unwrap();
    assert_eq!(notebook.ask(address(1), now), Known::Asked, "where it is has not been told");
    assert_eq!(names(&notebook, xds::ASSIGNMENT), ["orders.shop:80"]);
    let before = Directory::found(&notebook);
    assert!(before.1.is_empty());
    told(&notebook, xds::ASSIGNMENT, &[assignment("orders.shop:80", "1", &[1])], &[]).unwrap();
    assert_eq!(notebook.ask(address(1), now), Known::Found);
    let (number, found) = Directory::found(&notebook);
    assert_ne!(number, before.0);
    let spiffe_ids = vec!["spiffe://d/ns/n/sa/s".to_owned()];
    let service =
        FoundService { name: "orders.shop:80".to_owned(), addresses: vec![address(1)], spiffe_ids, http2: false };
    assert_eq!(*found, [service]);
    // The service is gone: so is what stood for it.
    told(&notebook, xds::CLUSTER, &[], &["10.96.0.1:80"]).unwrap();
    assert!(Directory::found(&notebook).1.is_empty());
    assert!(names(&notebook, xds::ASSIGNMENT).is_empty());
}

#[test]
fn addresses_of_no_service_are_remembered_for_a_while() {
    let notebook = on_demand("maxUnknown: 2, unknownTtl: 10s");
    let begun = Instant::now();
    for last in 1..=3 {
        assert_eq!(notebook.ask(address(last), begun), Known::Asked);
        told(&notebook, xds::CLUSTER, &[], &[&address(last).to_string()]).unwrap();
        assert_eq!(notebook.ask(address(last), begun), Known::Not);
    }
    assert_eq!(notebook.sizes().1, 2, "the oldest is forgotten");
    assert!(names(&notebook, xds::CLUSTER).is_empty(), "nobody is asked any more");
    assert_eq!(notebook.ask(address(3), begun + Duration::from_secs(9)), Known::Not);
    assert_eq!(notebook.ask(address(3), begun + Duration::from_secs(60)), Known::Asked);
}

#[test]
fn no_more_is_asked_for_than_may_be_and_nothing_without_a_server() {
    let notebook = on_demand("maxServices: 2");
    let now = Instant::now();
    let asked: Vec<Known> = (1..=3).map(|last| notebook.ask(address(last), now)).collect();
    assert_eq!(asked, [Known::Asked, Known::Asked, Known::Not]);
    notebook.connected(Err("away".to_owned()));
    assert_eq!(notebook.ask(address(1), now), Known::Not);
    assert!(names(&notebook, xds::CLUSTER).is_empty(), "who waited need not wait");
    notebook.connected(Ok(()));
    assert_eq!(notebook.ask(address(1), now), Known::Asked);
    let off = Notebook::default();
    off.allow(&section(""));
    off.connected(Ok(()));
    assert_eq!(off.ask(address(1), now), Known::Not, "not asked for by the config");
}

#[test]
fn nobody_is_told_that_nothing_is_known_before_that_is_so() {
    let (notebook, now) = (Notebook::default(), Instant::now());
    assert_eq!(notebook.ask(address(1), now), Known::Asked, "the config was not heard of");
    let before = on_demand("");
    for last in [1, 2] {
        before.ask(address(last), now);
        let service = format!("s{last}:80");
        told(&before, xds::CLUSTER, &[cluster(&address(last).to_string(), &service)], &[]).unwrap();
        told(&before, xds::ASSIGNMENT, &[assignment(&service, "1", &[1])], &[]).unwrap();
    }
    notebook.remember(&before.written());
    notebook.allow(&section(", onDemand: { }"));
    let known = [1, 2, 3].map(|last| notebook.ask(address(last), now));
    assert_eq!(known, [Known::Found, Known::Found, Known::Asked], "a server is being connected to");
    notebook.connected(Err("away".to_owned()));
    let known = [1, 2, 3].map(|last| notebook.ask(address(last), now));
    assert_eq!(known, [Known::Found, Known::Found, Known::Not]);
    // Asked for before what was kept could be read.
    let late = Notebook::default();
    late.allow(&section(", onDemand: { }"));
    assert_eq!(late.ask(address(1), now), Known::Asked);
    late.remember(&before.written());
    assert_eq!(late.ask(address(1), now), Known::Found);
}

#[test]
fn an_answer_is_taken_whole_or_not_at_all() {
    let notebook = Notebook::default();
    notebook.allow(&section(", maxBytes: 64KiB"));
    let mut followed = notebook.follow("a:1");
    told(&notebook, xds::ASSIGNMENT, &[assignment("a:1", "1", &[1])], &[]).unwrap();
    let many: Vec<u16> = (1..=5000).collect();
    let (a, large) = (assignment("a:1", "2", &[2]), assignment("a:1", "2", &many));
    let mut fixed = cluster("10.96.0.1:80", "a:1");
    fixed.3 = vec![0x0a, 1, b'x'];
    for (name, type_url, resources, why) in [
        ("another type", "type.test/Listener", vec![], "not asked for"),
        ("mixed types", xds::ASSIGNMENT, vec![a.clone(), cluster("10.96.0.1:80", "a:1")], "another type"),
        ("too large", xds::ASSIGNMENT, vec![large], "maxBytes"),
        ("endpoints of another kind", xds::CLUSTER, vec![fixed], "EDS"),
    ] {
        let refused = told(&notebook, type_url, &resources, &["a:1"]).unwrap_err();
        assert!(refused.contains(why), "{name}: {refused}");
        let endpoints = followed.borrow_and_update().endpoints.clone().unwrap();
        assert_eq!(endpoints.iter().map(|one| one.address.port()).collect::<Vec<_>>(), [1], "{name}");
    }
    told(&notebook, xds::ASSIGNMENT, &[a, assignment("b:1", "1", &[1])], &[]).unwrap();
    assert_eq!(followed.borrow().endpoints.as_ref().unwrap()[0].address.port(), 2);
    assert_eq!(names(&notebook, xds::ASSIGNMENT), ["a:1"], "what nobody asked for is not kept");
}

/// What a source tells now; `None` when it has nothing to tell.
fn next(source: &mut dyn outrigger_traffic::endpoints::EndpointSource) -> Option<Result<Vec<u16>, String>> {
    match source.next().as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(Ok(Update::All(all))) => Some(Ok(all.iter().map(|one| one.address.port()).collect())),
        std::task::Poll::Ready(Ok(other)) => panic!("{other:?}"),
        std::task::Poll::Ready(Err(error)) => Some(Err(error)),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_source_tells_what_changes_and_what_is_wrong() {
    let notebook = Notebook::default();
    let mut source = Directory::follow(&notebook, "a:1");
    assert_eq!(next(&mut *source), None);
    notebook.connected(Err("away".to_owned()));
    assert_eq!(next(&mut *source), Some(Err("away".to_owned())));
    assert_eq!(next(&mut *source), None);
    notebook.connected(Ok(()));
    assert_eq!(next(&mut *source), None, "nothing is known yet");
    told(&notebook, xds::ASSIGNMENT, &[assignment("a:1", "1", &[1, 2])], &[]).unwrap();
    assert_eq!(next(&mut *source), Some(Ok(vec![1, 2])));
    assert_eq!(next(&mut *source), None);
    notebook.connected(Err("away".to_owned()));
    assert_eq!(next(&mut *source), Some(Err("away".to_owned())));
    notebook.connected(Ok(()));
    assert_eq!(next(&mut *source), Some(Ok(vec![1, 2])), "all is well again");
    told(&notebook, xds::ASSIGNMENT, &[], &["a:1"]).unwrap();
    assert_eq!(next(&mut *source), Some(Ok(vec![])));
    drop(source);
    assert_eq!(notebook.sizes(), (0, 0, 0), "nothing is left of it");
}

#[test]
fn what_was_told_before_is_there_before_a_server_is() {
    let notebook = on_demand("");
    let _followed = notebook.follow("a:1");
    notebook.ask(address(1), Instant::now());
    told(&notebook, xds::CLUSTER, &[cluster("10.96.0.1:80", "b:1")], &[]).unwrap();
    let both = [assignment("a:1", "7", &[1]), assignment("b:1", "8", &[2])];
    told(&notebook, xds::ASSIGNMENT, &both, &[]).unwrap();
    let written = notebook.written();
    // Before and after those who want it.
    for late in [false, true] {
        let next = Notebook::default();
        let mut followed = (!late).then(|| next.follow("a:1"));
        next.allow(&section(", onDemand: {}"));
        next.remember(&written);
        let followed = followed.take().unwrap_or_else(|| next.follow("a:1"));
        assert_eq!(followed.borrow().endpoints.as_ref().unwrap()[0].address.port(), 1);
        assert_eq!(next.names(xds::ASSIGNMENT), notebook.names(xds::ASSIGNMENT));
        assert_eq!(next.names(xds::CLUSTER), notebook.names(xds::CLUSTER));
        assert_eq!(next.ask(address(1), Instant::now()), Known::Found);
        assert_eq!(Directory::found(&next).1, Directory::found(&notebook).1);
    }
    for cut in 0..written.len() {
        Notebook::default().remember(&written[..cut]);
    }
}

#[test]
fn what_another_version_kept_is_taken_as_far_as_it_is_understood() {
    let before = on_demand("");
    before.ask(address(1), Instant::now());
    told(&before, xds::CLUSTER, &[cluster("10.96.0.1:80", "b:1")], &[]).unwrap();
    told(&before, xds::ASSIGNMENT, &[assignment("b:1", "8", &[2])], &[]).unwrap();
    let resource = |name: &str, type_url: &str, value: &[u8]| {
        let mut out = Vec::new();
        Resource { name, version: "1", type_url, value }.write(&mut out);
        out
    };
    let unknown_field = [0x9a, 0x06, 1, b'x'];
    let unknown_kind = resource("x", "type.googleapis.com/of.the.Future", b"x");
    for (what, kept, expected) in [
        ("more than we know", [&before.written()[..], &unknown_field, &unknown_kind].concat(), Known::Found),
        ("the same name for something else", resource("10.96.0.1:80", xds::CLUSTER, b"\xff{}"), Known::Asked),
        ("something else altogether", b"{ \"version\": 2 }".to_vec(), Known::Asked),
        ("nothing", Vec::new(), Known::Asked),
    ] {
        let next = Notebook::default();
        next.remember(&kept);
        next.allow(&section(", onDemand: {}"));
        assert_eq!(next.ask(address(1), Instant::now()), expected, "{what}");
        // And it goes on from there.
        next.connected(Ok(()));
        told(&next, xds::CLUSTER, &[cluster("10.96.0.1:80", "b:1")], &[]).unwrap();
        told(&next, xds::ASSIGNMENT, &[assignment("b:1", "9", &[2])], &[]).unwrap();
        assert_eq!(next.ask(address(1), Instant::now()), Known::Found, "{what}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Follow(u8),
    Unfollow,
    Ask(u8),
    Cluster(u8, u8),
    Lost(u8),
    Assignment(u8),
    Gone(u8),
    Connected(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u8..4).prop_map(Step::Follow),
        Just(Step::Unfollow),
        (0_u8..4).prop_map(Step::Ask),
        (0_u8..4, 0_u8..4).prop_map(|(address, service)| Step::Cluster(address, service)),
        (0_u8..4).prop_map(Step::Lost),
        (0_u8..4).prop_map(Step::Assignment),
        (0_u8..4).prop_map(Step::Gone),
        any::<bool>().prop_map(Step::Connected),
    ]
}

proptest! {
    /// Whatever happens in whatever order: what is asked for is what is wanted, and in the end nothing is left.
    #[test]
    fn only_what_is_wanted_is_kept(steps in prop::collection::vec(step(), 0..60)) {
        let notebook = on_demand("maxServices: 3, maxUnknown: 2");
        let mut sources: Vec<(String, Box<dyn outrigger_traffic::endpoints::EndpointSource>)> = Vec::new();
        let service = |number: u8| format!("s{number}:80");
        for step in steps {
            match step {
                Step::Follow(number) => sources.push((service(number), Directory::follow(&notebook, &service(number)))),
                Step::Unfollow => drop(sources.pop()),
                Step::Ask(last) => drop(notebook.ask(address(last), Instant::now())),
                Step::Cluster(last, number) => {
                    told(&notebook, xds::CLUSTER, &[cluster(&address(last).to_string(), &service(number))], &[]).unwrap();
                }
                Step::Lost(last) => told(&notebook, xds::CLUSTER, &[], &[&address(last).to_string()]).unwrap(),
                Step::Assignment(number) => {
                    told(&notebook, xds::ASSIGNMENT, &[assignment(&service(number), "1", &[1])], &[]).unwrap();
                }
                Step::Gone(number) => told(&notebook, xds::ASSIGNMENT, &[], &[&service(number)]).unwrap(),
                Step::Connected(yes) => notebook.connected(if yes { Ok(()) } else { Err("away".to_owned()) }),
            }
            let asked = names(&notebook, xds::ASSIGNMENT);
            for (name, _) in &sources {
                prop_assert!(asked.contains(name));
            }
            prop_assert!(names(&notebook, xds::CLUSTER).len() <= 3);
            for found in Directory::found(&notebook).1.iter() {
                prop_assert!(asked.contains(&found.name));
            }
        }
        sources.clear();
        notebook.allow(&section(""));
        prop_assert_eq!(notebook.sizes(), (0, 0, 0));
        prop_assert!(names(&notebook, xds::CLUSTER).is_empty());
    }
}
