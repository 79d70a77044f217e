//! Discovery: sidecars and an Envoy that follow services' endpoints at our server, and sidecars that follow them at another's.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use anyhow::{Result, ensure};
use outrigger_e2e::{
    APPLICATION, ApiServer, Application, Authority, Envoy, Node, Outrigger, PROXY, Pod, PodOutrigger, eventually,
    eventually_within, free_port, identity, is_listening, request, run, start_outrigger, start_outrigger_with,
    start_peer, tool,
};
use serde_json::Value;

const CONTROL: &str = "spiffe://shop.example/ns/outrigger-system/sa/controller";
const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";
const BACKEND: &str = "spiffe://shop.example/ns/shop/sa/backend";

/// An authority, and a folder for each process.
struct World {
    folder: tempfile::TempDir,
    authority: Authority,
    /// The section of the servers' identity.
    controller: String,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::of(&folder.path().join("ca"));
        let controller = identity(&authority.issue("controller", CONTROL), &authority);
        Self { folder, authority, controller }
    }

    fn home(&self, name: &str) -> PathBuf {
        let home = self.folder.path().join(name);
        std::fs::create_dir_all(&home).unwrap();
        home
    }

    /// The config of a discovery server that tells of one service.
    fn server_config(&self, port: u16, endpoints: &[&Application]) -> String {
        let endpoints: Vec<String> =
            endpoints.iter().map(|one| format!("{{ address: \"{}\" }}", one.address)).collect();
        format!(
            "{}discovery:\n  listen: \"127.0.0.1:{port}\"\n  services:\n  - {{ name: \"orders.shop:80\", endpoints: [{}] }}\n",
            self.controller,
            endpoints.join(", ")
        )
    }

    /// The config of a sidecar that sends everything to that service.
    fn sidecar_config(&self, name: &str, port: u16, servers: &[u16]) -> String {
        let leaf = self.authority.issue(name, FRONTEND);
        let servers: Vec<String> = servers.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        format!(
            "{}proxy:\n  discovery: {{ servers: [{}], tls: {{ spiffeIds: [\"{CONTROL}\"] }}, maxBackoff: 500ms, stateDirectory: {} }}\n  \
             listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{port}\", routes: [{{ name: all, backendRefs: [{{ name: orders }}] }}] }}\n  \
             clusters:\n  - {{ name: orders, discovery: {{ service: \"orders.shop:80\" }} }}\n",
            identity(&leaf, &self.authority),
            servers.join(", "),
            self.home(name).display(),
        )
    }
}

/// The addresses of a cluster's endpoints, and what is wrong with it.
fn endpoints(outrigger: &Outrigger, cluster: &str) -> Result<(BTreeSet<String>, Value)> {
    let told: Value = serde_json::from_str(&outrigger.get("/clusters")?.ok()?)?;
    let all = told["clusters"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|one| one["name"] == cluster).cloned().unwrap_or_default();
    let addresses = found["endpoints"].as_array().cloned().unwrap_or_default();
    let addresses = addresses.iter().filter_map(|one| one["address"].as_str().map(ToOwned::to_owned)).collect();
    Ok((addresses, found["problem"].clone()))
}

#[track_caller]
fn follows(outrigger: &Outrigger, expected: &[&Application]) {
    let expected: BTreeSet<String> = expected.iter().map(|one| one.address.to_string()).collect();
    eventually("the sidecar to follow", || {
        let (now, problem) = endpoints(outrigger, "orders")?;
        ensure!(now == expected && problem.is_null(), "{now:?} {problem}");
        Ok(())
    });
}

/// Requests without end on some ports, until dropped.
struct Load {
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
    stop: std::sync::Arc<AtomicBool>,
    sent: std::sync::Arc<AtomicU64>,
}

impl Load {
    fn start(ports: &[u16]) -> Self {
        let (stop, sent) = (std::sync::Arc::new(AtomicBool::new(false)), std::sync::Arc::new(AtomicU64::new(0)));
        let threads = ports.iter().map(|&port| {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    let answer = request("GET", &format!("http://127.0.0.1:{port}/orders"), &[], "");
                    match answer.and_then(|answer| answer.ok()) {
                        Ok(_) => {}
                        Err(error) => failures.push(format!("{error:#}")),
                    }
                    sent.fetch_add(1, Relaxed);
                }
                failures
            })
        });
        Self { threads: threads.collect(), stop, sent }
    }

    /// Waits for some more requests.
    #[track_caller]
    fn goes_on(&self) {
        let enough = self.sent.load(Relaxed) + 20;
        eventually("requests to go on", || {
            ensure!(self.sent.load(Relaxed) >= enough);
            Ok(())
        });
    }

    fn end(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

#[test]
fn endpoints_change_under_load_and_servers_come_and_go_without_a_failed_request() {
    let world = World::new();
    let (one, other) = (Application::start(), Application::start());
    let ports = [free_port(), free_port()];
    let mut servers: Vec<Outrigger> = ports
        .iter()
        .map(|port| start_outrigger(&world.home(&port.to_string()), &world.server_config(*port, &[&one])))
        .collect();
    let outs = [free_port(), free_port()];
    let sidecar = |index: usize| {
        let name = format!("sidecar{index}");
        start_outrigger(&world.home(&name), &world.sidecar_config(&name, outs[index], &ports))
    };
    let mut sidecars = [sidecar(0), sidecar(1)];
    let load = Load::start(&outs);
    for told in [&[&one, &other][..], &[&other], &[&one]] {
        for (server, port) in servers.iter().zip(ports) {
            server.write_config(&world.server_config(port, told));
        }
        sidecars.iter().for_each(|sidecar| follows(sidecar, told));
        load.goes_on();
    }

    // One replica is killed; all go to the other one, and hear of changes there.
    servers[0].process.kill();
    servers[1].write_config(&world.server_config(ports[1], &[&one, &other]));
    sidecars.iter().for_each(|sidecar| follows(sidecar, &[&one, &other]));
    // The other one too: what was told holds on, and the sidecars say so, and stay ready.
    servers[1].process.kill();
    for sidecar in &sidecars {
        eventually("the sidecar to say that it is alone", || {
            let (now, problem) = endpoints(sidecar, "orders")?;
            ensure!(
                now.len() == 2 && problem.as_str().is_some_and(|problem| problem.contains("discovery server")),
                "{problem}"
            );
            sidecar.get("/readyz")?.ok()
        });
        sidecar.counts("outrigger_discovery_client_connected", 0.0);
    }
    load.goes_on();
    assert_eq!(load.end(), Vec::<String>::new(), "failed requests");

    // A restart while no server is there begins with what was told before.
    eventually("both endpoints to be kept", || {
        let kept = std::fs::read(world.home("sidecar0").join("endpoints.pb"))?;
        let count = kept.windows(9).filter(|window| window == b"127.0.0.1").count();
        ensure!(count == 2, "{count}");
        Ok(())
    });
    sidecars[0].process.stop();
    sidecars[0] = sidecar(0);
    let (now, _) = endpoints(&sidecars[0], "orders").unwrap();
    assert_eq!(now.len(), 2, "{now:?}");
    request("GET", &format!("http://127.0.0.1:{}/orders", outs[0]), &[], "").unwrap().ok().unwrap();
    servers[0] = start_outrigger(&world.home(&ports[0].to_string()), &world.server_config(ports[0], &[&other]));
    sidecars.iter().for_each(|sidecar| follows(sidecar, &[&other]));

    // The service is gone, and comes back.
    let config = world.server_config(ports[0], &[&other]);
    servers[0].write_config(config.split("  services:").next().unwrap());
    sidecars.iter().for_each(|sidecar| follows(sidecar, &[]));
    servers[0].write_config(&world.server_config(ports[0], &[&one]));
    sidecars.iter().for_each(|sidecar| follows(sidecar, &[&one]));
}

#[test]
fn a_sidecar_without_a_word_is_not_ready_and_says_of_what() {
    let world = World::new();
    let application = Application::start();
    let (port, out) = (free_port(), free_port());
    let mut sidecar = start_outrigger_with(&world.home("sidecar"), &world.sidecar_config("sidecar", out, &[port]), &[]);
    eventually("the reason", || {
        sidecar.process.still_runs()?;
        let told = sidecar.get("/readyz?verbose")?;
        ensure!(
            told.status == 503 && told.body.contains("no word yet of orders.shop:80"),
            "{} {}",
            told.status,
            told.body
        );
        Ok(())
    });
    let _server = start_outrigger(&world.home("server"), &world.server_config(port, &[&application]));
    sidecar.wait_ready();
    follows(&sidecar, &[&application]);
}

#[test]
fn an_envoy_follows_our_server() {
    let world = World::new();
    let (one, other) = (Application::start(), Application::start());
    let (port, out) = (free_port(), free_port());
    let server = start_outrigger(&world.home("server"), &world.server_config(port, &[&one]));
    let leaf = world.authority.issue("envoy", FRONTEND);
    let text = format!(
        "  listeners:\n  - name: out\n    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {out} }} }}\n    filter_chains:\n    \
         - filters:\n      - name: http\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          \
         stat_prefix: out\n          http_filters:\n          \
         - {{ name: router, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}\n          \
         route_config: {{ validate_clusters: false, virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: \"orders.shop:80\" }} }}] }}] }}\n  \
         clusters:\n  - name: ads\n    connect_timeout: 5s\n    load_assignment: {{ cluster_name: ads, endpoints: [{{ lb_endpoints: [{{ \
         endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}\n    \
         typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
         explicit_http_config: {{ http2_protocol_options: {{}} }}\n    transport_socket:\n      name: tls\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n        \
         common_tls_context: {{ alpn_protocols: [h2], tls_certificates: [{{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }}], \
         validation_context: {{ trusted_ca: {{ filename: {} }} }} }}\n\
         node: {{ id: envoy, cluster: envoy }}\n\
         dynamic_resources:\n  ads_config: {{ api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{{ envoy_grpc: {{ cluster_name: ads }} }}] }}\n  \
         cds_config: {{ ads: {{}}, resource_api_version: V3 }}\n",
        leaf.certificate.display(),
        leaf.key.display(),
        world.authority.bundle().display()
    );
    let _envoy = Envoy::start(&world.home("envoy"), out, &text);
    let reaches = |application: &Application| {
        let before = application.seen().len();
        eventually("Envoy to reach the application", || {
            let answer = request("GET", &format!("http://127.0.0.1:{out}/orders"), &[], "")?;
            ensure!(answer.status == 200 && application.seen().len() > before, "{} {}", answer.status, answer.body);
            Ok(())
        });
    };
    reaches(&one);
    server.write_config(&world.server_config(port, &[&other]));
    reaches(&other);
    server.counts_at_least("outrigger_discovery_acknowledgements_total{type=\"endpoints\",result=\"ack\"}", 2.0);
    server.counts("outrigger_discovery_acknowledgements_total{type=\"endpoints\",result=\"nack\"}", 0.0);
    server.counts("outrigger_discovery_acknowledgements_total{type=\"cluster\",result=\"nack\"}", 0.0);
}

#[test]
fn a_sidecar_follows_the_server_of_others() {
    let world = World::new();
    let application = Application::start();
    let (port, out) = (free_port(), free_port());
    let folder = world.home("server");
    let serve = || {
        let ports = [port.to_string(), application.address.port().to_string()];
        let server = start_peer("ads_server.py", &[&ports[0], &ports[1]], &folder);
        eventually("the server to listen", || is_listening(port));
        server
    };
    let mut server = serve();
    let config = format!(
        "proxy:\n  discovery: {{ servers: [\"127.0.0.1:{port}\"], maxBackoff: 500ms }}\n  listeners:\n  \
         - {{ name: out, direction: outbound, address: \"127.0.0.1:{out}\", routes: [{{ name: all, backendRefs: [{{ name: orders }}] }}] }}\n  \
         clusters:\n  - {{ name: orders, discovery: {{ service: \"orders.shop:80\" }} }}\n"
    );
    let sidecar = start_outrigger(&world.home("sidecar"), &config);
    follows(&sidecar, &[&application]);
    request("GET", &format!("http://127.0.0.1:{out}/orders"), &[], "").unwrap().ok().unwrap();
    let lines = |log: &str| -> Vec<Value> { log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect() };
    // Its first answer is of a type that nobody asked for.
    eventually("both answers to be acknowledged or refused", || {
        let seen = lines(&server.log());
        let refused =
            seen.iter().filter(|line| line["error"].as_str().is_some_and(|error| error.contains("not asked for")));
        ensure!(
            refused.count() == 1 && seen.iter().any(|line| line["nonce"] == "2" && line["error"] == ""),
            "{seen:?}"
        );
        Ok(())
    });
    assert_eq!(lines(&server.log())[0]["subscribe"], serde_json::json!(["orders.shop:80"]));
    server.kill();
    sidecar.counts("outrigger_discovery_client_connected", 0.0);
    request("GET", &format!("http://127.0.0.1:{out}/orders"), &[], "").unwrap().ok().unwrap();
    server = serve();
    sidecar.counts("outrigger_discovery_client_connected", 1.0);
    eventually("the versions that it has", || {
        let seen = lines(&server.log());
        ensure!(seen.iter().any(|line| line["versions"]["orders.shop:80"] == "v1"), "{seen:?}");
        Ok(())
    });
}

/// Files of an identity where a user in a pod may read them.
fn place(world: &World, name: &str, id: &str) -> String {
    let (home, leaf) = (world.home(name), world.authority.issue(name, id));
    let copy = |file: &Path| {
        let to = home.join(file.file_name().unwrap());
        std::fs::copy(file, &to).unwrap();
        to
    };
    let (certificate, key, bundle) = (copy(&leaf.certificate), copy(&leaf.key), copy(&world.authority.bundle()));
    format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n",
        certificate.display(),
        key.display(),
        bundle.display()
    )
}

fn get(pod: &Pod, url: &str) -> Result<String> {
    pod.namespace.enter(APPLICATION, || request("GET", url, &[], ""))?.ok()
}

#[track_caller]
fn pod_counts(outrigger: &PodOutrigger<'_>, series: &str, value: f64) {
    eventually(series, || {
        let now = outrigger.metric(series)?;
        ensure!(now == value, "it is {now}, not {value}");
        Ok(())
    });
}

#[test]
fn a_service_that_nobody_configured_is_asked_for_when_it_is_first_called() {
    let world = World::new();
    run(tool("chmod").arg("755").arg(world.folder.path())).unwrap();
    let node = Node::new();
    let (frontend, backend, control) = (node.pod(), node.pod(), node.pod());
    let _application = backend.namespace.enter(APPLICATION, || Application::start_on(([0, 0, 0, 0], 8080).into()));
    let plain = control.namespace.enter(APPLICATION, || Application::start_on(([0, 0, 0, 0], 8080).into()));

    let mut services = format!(
        "  - {{ name: \"orders.shop.svc.cluster.local:80\", virtualAddresses: [\"10.96.0.10:80\"], endpoints: [{{ address: \"{}:8080\", spiffeId: \"{BACKEND}\" }}] }}\n",
        backend.v4
    );
    for number in 0..50 {
        services.push_str(&format!(
            "  - {{ name: \"s{number}.shop.svc.cluster.local:80\", virtualAddresses: [\"10.96.1.{number}:80\"] }}\n"
        ));
    }
    let config = format!("{}discovery:\n  services:\n{services}", place(&world, "control", CONTROL));
    let server = control.start_outrigger(&world.home("control"), PROXY, &config);

    backend.namespace.must_init(&[]);
    let config = format!(
        "{}proxy:\n  listeners:\n  - {{ name: in, direction: inbound, address: \"[::]:15006\", protocol: auto, redirected: true, \
         tls: {{ allowedPeers: [\"{FRONTEND}\"] }} }}\n",
        place(&world, "backend", BACKEND)
    );
    let _backend = backend.start_outrigger(&world.home("backend"), PROXY, &config);
    frontend.namespace.must_init(&[]);
    let config = format!(
        "{}proxy:\n  discovery: {{ servers: [\"{}:15011\"], tls: {{ spiffeIds: [\"{CONTROL}\"] }}, onDemand: {{ wait: 20s }} }}\n  listeners:\n  \
         - {{ name: out, direction: outbound, address: \"[::]:15001\", protocol: auto, redirected: true }}\n",
        place(&world, "frontend", FRONTEND),
        control.v4
    );
    let sidecar = frontend.start_outrigger(&world.home("frontend"), PROXY, &config);
    pod_counts(&sidecar, "outrigger_discovery_client_connected", 1.0);
    pod_counts(&sidecar, "outrigger_discovery_client_services", 0.0);

    // The address is nobody's but the service's, and the backend takes nothing but mTLS: the very first call goes through.
    get(&frontend, "http://10.96.0.10:80/orders").unwrap();
    pod_counts(&sidecar, "outrigger_discovery_client_services", 1.0);
    let clusters: Value = serde_json::from_str(&sidecar.get("/clusters").unwrap().ok().unwrap()).unwrap();
    let names: Vec<&str> =
        clusters["clusters"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["orders.shop.80"]);
    // What is no service's passes through as before, and nobody is asked again.
    for _ in 0..3 {
        get(&frontend, &format!("http://{}:8080/plain", control.v4)).unwrap();
    }
    assert_eq!(plain.seen().len(), 3);
    pod_counts(&sidecar, "outrigger_discovery_client_unknown_destinations", 1.0);
    pod_counts(&server, "outrigger_discovery_subscriptions", 2.0);
}

/// A namespace with a Service of no selector, and an account that may do nothing.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: discovery, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: orders, namespace: shop }
spec: { ports: [{ name: http, port: 80 }] }
";

/// What discovery needs to see.
const RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: discovery }
rules:
  - { apiGroups: [''], resources: [services, pods], verbs: [list, watch] }
  - { apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: discovery }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: discovery }
subjects: [{ kind: ServiceAccount, name: discovery, namespace: shop }]
";

/// An EndpointSlice of that Service.
fn slice(name: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<String> = addresses.iter().map(|one| format!("{{ addresses: ['{one}'] }}")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: {name}, namespace: shop, labels: {{ kubernetes.io/service-name: orders }} }}\n\
         addressType: IPv4\nports: [{{ name: http, port: 8080 }}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

#[test]
fn services_of_a_cluster_are_followed_at_its_api_server() {
    let world = World::new();
    let folder = world.home("cluster");
    let api = ApiServer::start(&folder);
    api.apply(SHOP);
    api.write_access(&folder, "shop", "discovery");
    let kubeconfig = folder.join("discovery.conf");
    let access = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{{ name: it, cluster: {{ server: '{}', certificate-authority: api-ca.pem }} }}]\n\
         users: [{{ name: it, user: {{ tokenFile: api-token }} }}]\n\
         contexts: [{{ name: it, context: {{ cluster: it, user: it }} }}]\n",
        api.server()
    );
    std::fs::write(&kubeconfig, access).unwrap();
    let (port, out) = (free_port(), free_port());
    let config = format!(
        "{}discovery:\n  listen: \"127.0.0.1:{port}\"\n  kubernetes: {{ kubeconfig: {} }}\n",
        world.controller,
        kubeconfig.display()
    );
    let mut server = start_outrigger_with(&world.home("server"), &config, &[]);
    eventually("the right that is missing to be named", || {
        server.process.still_runs()?;
        let told = server.get("/readyz?verbose")?;
        let forbidden = ["services are not known yet", "system:serviceaccount:shop:discovery", "list"];
        ensure!(told.status == 503 && forbidden.iter().all(|part| told.body.contains(part)), "{}", told.body);
        Ok(())
    });
    api.apply(RIGHTS);
    api.apply(&slice("one", &["10.9.0.1", "10.9.0.2"]));
    eventually_within(std::time::Duration::from_secs(60), "the server to be ready", || server.get("/readyz")?.ok());

    let sidecar =
        world.sidecar_config("sidecar", out, &[port]).replace("orders.shop:80", "orders.shop.svc.cluster.local:80");
    let sidecar = start_outrigger(&world.home("sidecar"), &sidecar);
    let told = |expected: &[&str]| {
        eventually("the sidecar to follow the cluster", || {
            let (now, _) = endpoints(&sidecar, "orders")?;
            let expected: BTreeSet<String> = expected.iter().map(|one| format!("{one}:8080")).collect();
            ensure!(now == expected, "{now:?}");
            Ok(())
        });
    };
    told(&["10.9.0.1", "10.9.0.2"]);
    api.apply(&slice("two", &["10.9.0.3"]));
    told(&["10.9.0.1", "10.9.0.2", "10.9.0.3"]);

    // While the API server is away what was told holds, and the server says so; what changed meanwhile is not missed.
    api.kubectl(&["delete", "endpointslice", "one", "--namespace=shop"]).unwrap();
    told(&["10.9.0.3"]);
    api.stop_api();
    eventually_within(std::time::Duration::from_secs(60), "the server to say that it serves what is known", || {
        let told = server.get("/readyz?verbose")?;
        ensure!(told.status == 200 && told.body.contains("serving what is known"), "{} {}", told.status, told.body);
        Ok(())
    });
    told(&["10.9.0.3"]);
    api.start_api();
    api.apply(&slice("two", &["10.9.0.4"]));
    eventually_within(std::time::Duration::from_secs(90), "the sidecar to hear of it", || {
        let (now, _) = endpoints(&sidecar, "orders")?;
        ensure!(now == BTreeSet::from(["10.9.0.4:8080".to_owned()]), "{now:?}");
        Ok(())
    });
    api.kubectl(&["delete", "service", "orders", "--namespace=shop"]).unwrap();
    eventually_within(std::time::Duration::from_secs(60), "the service to be gone", || {
        let (now, _) = endpoints(&sidecar, "orders")?;
        ensure!(now.is_empty(), "{now:?}");
        Ok(())
    });
}
