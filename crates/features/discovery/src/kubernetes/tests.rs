//! The same objects make the same services.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Index, KeptPod, KeptService, KeptSlice, ObjectName};
use crate::feed::{Change, Service};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Service,
    Slice,
    Pod,
}

fn name(name: &str) -> ObjectName {
    ("shop".to_owned(), name.to_owned())
}

fn take(index: &mut Index, of: Of, at: &ObjectName, object: Option<&Value>) {
    match of {
        Of::Service => index.service(at, object.and_then(KeptService::of).map(Arc::new)),
        Of::Slice => index.slice(at, object.and_then(KeptSlice::of).map(Arc::new)),
        Of::Pod => index.pod(at, object.and_then(KeptPod::of).map(Arc::new), Instant::now()),
    }
}

fn follow(services: &mut BTreeMap<String, Service>, index: &mut Index) {
    for change in index.changes() {
        match change {
            Change::Set(service) => drop(services.insert(service.name.clone(), service)),
            Change::Removed(name) => assert!(services.remove(&name).is_some(), "{name} was not there"),
            Change::Complete => unreachable!("an index tells no such thing"),
        }
    }
}

/// The services that objects make.
fn made(objects: &[(Of, &str, Value)]) -> BTreeMap<String, Service> {
    let (mut index, mut services) = (Index::new("cluster.local", "d.test"), BTreeMap::new());
    for (of, at, object) in objects {
        take(&mut index, *of, &name(at), Some(object));
    }
    follow(&mut services, &mut index);
    services
}

fn slice(service: &str, ports: Value, endpoints: Value) -> Value {
    json!({ "metadata": { "labels": { "kubernetes.io/service-name": service } }, "addressType": "IPv4",
            "ports": ports, "endpoints": endpoints })
}

#[test]
fn a_service_has_the_endpoints_of_its_slices_by_port() {
    let service = json!({ "spec": { "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": [
        { "name": "http", "port": 80, "targetPort": 8080 }, { "name": "grpc-api", "port": 81 }, { "name": "dns", "port": 53, "protocol": "UDP" } ] } });
    let ports = json!([{ "name": "http", "port": 8080, "protocol": "TCP" }, { "name": "grpc-api", "port": 9090 }]);
    let endpoints = json!([
        { "addresses": ["10.0.0.1"], "conditions": { "ready": true }, "zone": "a", "targetRef": { "kind": "Pod", "name": "p1" } },
        { "addresses": ["10.0.0.2"], "conditions": { "ready": false, "serving": true, "terminating": true } },
        { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": false } },
        { "addresses": ["orders.example"] }, {} ]);
    let pod = json!({ "metadata": { "annotations": { "outrigger.dev/mtls": "permissive" } }, "spec": { "serviceAccountName": "orders", "initContainers": [{ "name": "outrigger" }], "containers": [{ "name": "app" }] } });
    let services = made(&[
        (Of::Slice, "orders-x", slice("orders", ports, endpoints)),
        (Of::Service, "orders", service),
        (Of::Pod, "p1", pod),
    ]);
    assert_eq!(
        services.keys().collect::<Vec<_>>(),
        ["orders.shop.svc.cluster.local:80", "orders.shop.svc.cluster.local:81"]
    );
    let http = &services["orders.shop.svc.cluster.local:80"];
    let told: Vec<_> = http
        .endpoints
        .iter()
        .map(|one| (one.address.to_string(), one.healthy, one.zone.as_str(), one.identity.as_str()))
        .collect();
    let one = ("10.0.0.1:8080".to_owned(), true, "a", "spiffe://d.test/ns/shop/sa/orders");
    assert_eq!(
        told,
        [one, ("10.0.0.2:8080".to_owned(), false, "", "")],
        "one that ends serves only when too few others are left"
    );
    assert_eq!(http.virtual_addresses, ["10.96.0.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()]);
    let grpc = &services["orders.shop.svc.cluster.local:81"];
    assert!(grpc.http2 && !http.http2);
    assert_eq!(grpc.endpoints[0].address.to_string(), "10.0.0.1:9090");
}

#[test]
fn a_pod_has_an_identity_where_its_sidecar_takes_mtls() {
    let service = json!({ "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] } });
    let endpoints = json!([{ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "p" } }]);
    let slice = slice("x", json!([{ "port": 8080 }]), endpoints);
    let pod = |container: &str, annotations: Value| json!({ "metadata": { "annotations": annotations }, "spec": { "initContainers": [{ "name": container }] } });
    for (what, pod, expected) in [
        ("permissive", pod("outrigger", json!({ "outrigger.dev/mtls": "permissive" })), true),
        ("strict", pod("outrigger", json!({ "outrigger.dev/mtls": "strict" })), true),
        ("a sidecar that takes plain text alone", pod("outrigger", json!({})), false),
        ("turned off", pod("outrigger", json!({ "outrigger.dev/mtls": "disabled" })), false),
        ("no sidecar", pod("other", json!({ "outrigger.dev/mtls": "strict" })), false),
        (
            "a port that passes the sidecar by",
            pod(
                "outrigger",
                json!({ "outrigger.dev/mtls": "strict", "outrigger.dev/exclude-inbound-ports": "9,8000-8100" }),
            ),
            false,
        ),
        (
            "a port that is not among those it sees",
            pod("outrigger", json!({ "outrigger.dev/mtls": "strict", "outrigger.dev/include-inbound-ports": "8081" })),
            false,
        ),
        (
            "a port among those that it sees",
            pod(
                "outrigger",
                json!({ "outrigger.dev/mtls": "strict", "outrigger.dev/include-inbound-ports": "x, 8080,1-" }),
            ),
            true,
        ),
    ] {
        let services =
            made(&[(Of::Service, "x", service.clone()), (Of::Slice, "x-1", slice.clone()), (Of::Pod, "p", pod)]);
        let identity = &services["x.shop.svc.cluster.local:80"].endpoints[0].identity;
        assert_eq!(identity == "spiffe://d.test/ns/shop/sa/default", expected, "{what}: {identity}");
    }
}

#[test]
fn what_is_no_service_for_proxies_is_none() {
    for (what, object) in [
        (
            "another name for a host",
            json!({ "spec": { "type": "ExternalName", "externalName": "x.test", "ports": [{ "port": 80 }] } }),
        ),
        ("no ports", json!({ "spec": { "clusterIP": "10.96.0.1" } })),
        ("UDP alone", json!({ "spec": { "ports": [{ "port": 53, "protocol": "UDP" }] } })),
        ("nothing", json!({})),
        ("nonsense", json!({ "spec": { "ports": "many", "clusterIPs": 7 } })),
    ] {
        assert!(made(&[(Of::Service, "x", object)]).is_empty(), "{what}");
    }
    // Headless: no address stands for it.
    let services = made(&[(Of::Service, "x", json!({ "spec": { "clusterIP": "None", "ports": [{ "port": 80 }] } }))]);
    assert!(services["x.shop.svc.cluster.local:80"].virtual_addresses.is_empty());
}

#[test]
fn pods_of_headless_services_are_found_by_their_own_address() {
    let headless = |port: &str| json!({ "spec": { "clusterIP": "None", "ports": [{ "name": port, "port": 5432 }] } });
    let endpoints = json!([
        { "addresses": ["10.0.0.7"], "targetRef": { "kind": "Pod", "name": "db-0" } },
        { "addresses": ["10.0.0.8"], "targetRef": { "kind": "Pod", "name": "db-1" } } ]);
    let slice = |of: &str, port: &str| slice(of, json!([{ "name": port, "port": 5432 }]), endpoints.clone());
    let pod = json!({ "metadata": { "annotations": { "outrigger.dev/mtls": "strict" } }, "spec": { "serviceAccountName": "db", "initContainers": [{ "name": "outrigger" }] } });
    let (mut index, mut services) = (Index::new("cluster.local", "d.test"), BTreeMap::new());
    let all = [
        (Of::Service, "db", headless("tcp")),
        (Of::Slice, "db-x", slice("db", "tcp")),
        // Another one of the same pods, and a pod without a sidecar.
        (Of::Service, "replicas", headless("grpc")),
        (Of::Slice, "replicas-x", slice("replicas", "grpc")),
        (Of::Pod, "db-0", pod),
    ];
    for (of, at, object) in &all {
        take(&mut index, *of, &name(at), Some(object));
    }
    follow(&mut services, &mut index);
    let alone = "10-0-0-7.shop.pod.cluster.local:5432";
    let names = ["db.shop.svc.cluster.local:5432", "replicas.shop.svc.cluster.local:5432"];
    assert_eq!(services.keys().map(String::as_str).collect::<Vec<_>>(), [alone, names[0], names[1]]);
    let one = services[alone].clone();
    assert_eq!(one.virtual_addresses, ["10.0.0.7:5432".parse().unwrap()]);
    assert_eq!((one.endpoints.len(), one.endpoints[0].identity.as_str()), (1, "spiffe://d.test/ns/shop/sa/db"));
    assert!(!one.http2, "the first Service by its name says");
    // It stays as long as one has it, and is gone with the sidecar's word.
    take(&mut index, Of::Service, &name("db"), None);
    follow(&mut services, &mut index);
    assert!(services[alone].http2);
    take(&mut index, Of::Pod, &name("db-0"), None);
    follow(&mut services, &mut index);
    assert!(!services.contains_key(alone), "{services:?}");
}

fn object() -> impl Strategy<Value = (Of, String, Value)> {
    let service = (0_u8..3, 1_u16..4, any::<bool>()).prop_map(|(at, port, two)| {
        let mut ports = vec![json!({ "name": "a", "port": port })];
        if two {
            ports.push(json!({ "name": "b", "port": 100 + port }));
        }
        // One of them stands for its own address, the others are headless.
        let address = if at == 0 { "10.96.0.1" } else { "None" };
        (Of::Service, format!("s{at}"), json!({ "spec": { "clusterIP": address, "ports": ports } }))
    });
    let slice = (0_u8..4, 0_u8..3, prop::collection::vec((0_u8..5, 0_u8..4, any::<bool>()), 0..4)).prop_map(
        |(at, of, endpoints)| {
            let endpoints: Vec<Value> = endpoints
                .iter()
                .map(|(ip, pod, ready)| {
                    json!({ "addresses": [format!("10.0.0.{ip}")], "conditions": { "ready": ready },
                        "targetRef": { "kind": "Pod", "name": format!("p{pod}") } })
                })
                .collect();
            (
                Of::Slice,
                format!("e{at}"),
                slice(&format!("s{of}"), json!([{ "name": "a", "port": 8080 }]), endpoints.into()),
            )
        },
    );
    let pod = (0_u8..4, 0_u8..2, any::<bool>()).prop_map(|(at, account, ours)| {
        let container = if ours { "outrigger" } else { "app" };
        (
            Of::Pod,
            format!("p{at}"),
            json!({
                "metadata": { "annotations": { "outrigger.dev/mtls": "permissive" } },
                "spec": { "serviceAccountName": format!("a{account}"), "containers": [{ "name": container }] },
            }),
        )
    });
    prop_oneof![service, slice, pod]
}

proptest! {
    /// Against making them anew from what is there in the end.
    #[test]
    fn whatever_order_objects_come_in_they_make_the_same_services(
        steps in prop::collection::vec((object(), prop::bool::weighted(0.8), any::<bool>()), 0..60)
    ) {
        let (mut index, mut services) = (Index::new("cluster.local", "d.test"), BTreeMap::new());
        let mut there: BTreeMap<(Of, String), Value> = BTreeMap::new();
        for ((of, at, object), set, look) in steps {
            take(&mut index, of, &name(&at), set.then_some(&object));
            match set {
                true => drop(there.insert((of, at), object)),
                false => drop(there.remove(&(of, at))),
            }
            if look {
                follow(&mut services, &mut index);
            }
        }
        follow(&mut services, &mut index);
        let objects: Vec<(Of, &str, Value)> = there.iter().map(|((of, at), object)| (*of, at.as_str(), object.clone())).collect();
        prop_assert_eq!(services, made(&objects));
        // Nothing is left when all is gone.
        for (of, at) in there.keys() {
            take(&mut index, *of, &name(at), None);
        }
        let mut rest = made(&objects);
        follow(&mut rest, &mut index);
        prop_assert!(rest.is_empty());
    }
}

/// A pod with a keeper that is so, a sidecar and an application.
fn rolled(keeper: &str, sidecar: bool, application: &str) -> Value {
    let state = match keeper {
        "none" => Value::Null,
        "kept" => json!([{ "name": "outrigger-keeper-1", "state": { "running": {} } }]),
        "taken" => json!([{ "name": "outrigger-keeper-1", "state": { "terminated": { "exitCode": 0 } } }]),
        _ => json!([{ "name": "outrigger-keeper-1", "state": { "terminated": { "exitCode": 3 } } }]),
    };
    let of_application = match application {
        "ended" => json!({ "terminated": { "exitCode": 1 } }),
        _ => json!({ "running": {} }),
    };
    json!({
        "metadata": { "annotations": { "outrigger.dev/mtls": "strict" } },
        "spec": { "initContainers": [{ "name": "outrigger" }], "containers": [{ "name": "app" }] },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [{ "name": "outrigger", "ready": sidecar, "state": { "running": {} } }],
            "containerStatuses": [{ "name": "app", "ready": application == "ready", "state": of_application }],
            "ephemeralContainerStatuses": state,
        },
    })
}

fn of_one(ready: bool) -> Value {
    let endpoint = json!({ "addresses": ["10.0.0.1"], "conditions": { "ready": ready },
        "targetRef": { "kind": "Pod", "name": "p" } });
    slice("x", json!([{ "port": 8080 }]), json!([endpoint]))
}

/// The only endpoint, and whether it is told as healthy.
fn told(index: &mut Index, services: &mut BTreeMap<String, Service>) -> Option<bool> {
    follow(services, index);
    let endpoints = &services["x.shop.svc.cluster.local:80"].endpoints;
    assert!(endpoints.iter().all(|one| one.identity == "spiffe://d.test/ns/shop/sa/default"), "{endpoints:?}");
    endpoints.first().map(|one| one.healthy)
}

fn with_service() -> (Index, BTreeMap<String, Service>) {
    let mut index = Index::new("cluster.local", "d.test");
    let service = json!({ "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] } });
    take(&mut index, Of::Service, &name("x"), Some(&service));
    (index, BTreeMap::new())
}

#[test]
fn an_endpoint_stays_while_its_sidecar_is_replaced() {
    let (mut index, mut services) = with_service();
    let begun = Instant::now();
    for (what, after, keeper, sidecar, application, ready, expected) in [
        ("it serves", 0, "none", true, "ready", true, Some(true)),
        ("its turn has come: others are called, if there are any", 1, "kept", true, "ready", true, Some(false)),
        ("its sidecar has ended", 2, "kept", false, "ready", false, Some(false)),
        ("so its application's probes fail", 3, "kept", false, "unready", false, Some(false)),
        ("the next one is there", 4, "taken", false, "unready", false, Some(false)),
        ("and ready", 5, "taken", true, "ready", false, Some(false)),
        ("as is the pod", 6, "taken", true, "ready", true, Some(true)),
        ("later it is unready again", 60, "taken", true, "ready", false, None),
    ] {
        let now = begun + Duration::from_secs(after);
        take(&mut index, Of::Slice, &name("x-1"), Some(&of_one(ready)));
        index.pod(&name("p"), KeptPod::of(&rolled(keeper, sidecar, application)).map(Arc::new), now);
        index.expire(now);
        assert_eq!(told(&mut index, &mut services), expected, "{what}");
    }
}

proptest! {
    /// An endpoint that Kubernetes calls unready is told of for a time that has a bound, and only while its application runs.
    #[test]
    fn a_hand_over_is_believed_for_a_while_and_never_without_its_application(
        steps in prop::collection::vec(
            (prop::sample::select(vec!["none", "kept", "kept", "taken", "lost"]), any::<bool>(),
             prop::sample::select(vec!["ready", "ready", "unready", "ended"]), any::<bool>(), 0_u64..200),
            1..30,
        )
    ) {
        let (mut index, mut services) = with_service();
        let mut now = Instant::now();
        // Since when the keeper is as it is.
        let mut since = (now, "none");
        for (keeper, sidecar, application, ready, passed) in steps {
            now += Duration::from_secs(passed);
            if keeper != since.1 {
                since = (now, keeper);
            }
            take(&mut index, Of::Slice, &name("x-1"), Some(&of_one(ready)));
            index.pod(&name("p"), KeptPod::of(&rolled(keeper, sidecar, application)).map(Arc::new), now);
            index.expire(now);
            let (told, age) = (told(&mut index, &mut services), now.duration_since(since.0).as_secs());
            let most = match keeper { "kept" => 270, "taken" => 30, _ => 0 };
            if ready {
                prop_assert!(told.is_some(), "{keeper}");
                prop_assert!(told == Some(true) || keeper == "kept" && age < most, "{keeper} for {age} s");
            } else {
                prop_assert_ne!(told, Some(true));
                prop_assert!(told.is_none() || (application != "ended" && age < most), "{keeper} for {age} s, {application}");
            }
        }
        // Nobody says anything any more, as of a node that is gone.
        index.expire(now + Duration::from_secs(270));
        take(&mut index, Of::Slice, &name("x-1"), Some(&of_one(false)));
        prop_assert_eq!(told(&mut index, &mut services), None);
    }
}
