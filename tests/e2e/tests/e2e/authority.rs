//! The certificate authority, whose callers a real API server attests; sidecars that take their
//! identity from it; a change of its root under traffic.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outrigger_e2e::{
    ApiServer, Application, Bao, Envoy, Leaf, Outrigger, eventually, eventually_within, free_port, request, run,
    run_peer, start_outrigger, start_outrigger_with, tool,
};
use serde_json::{Value, json};

use crate::envoy::{assignment, context_of, listener};

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: outrigger-system }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: authority, namespace: outrigger-system }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: authority }
rules:
  - { apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }
  - { apiGroups: [''], resources: [pods], verbs: [get] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: authority }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: authority }
subjects: [{ kind: ServiceAccount, name: authority, namespace: outrigger-system }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: authority, namespace: outrigger-system }
rules:
  - { apiGroups: [''], resources: [secrets], verbs: [create] }
  - { apiGroups: [''], resources: [secrets], resourceNames: [roots], verbs: [get, update] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: authority, namespace: outrigger-system }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: authority }
subjects: [{ kind: ServiceAccount, name: authority, namespace: outrigger-system }]
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: frontend, namespace: shop }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: backend, namespace: shop }
---
apiVersion: v1
kind: Node
metadata: { name: n1 }
";

/// An API server with the objects above, and what an authority needs to ask it.
struct Kubernetes {
    api: ApiServer,
    folder: PathBuf,
    server: String,
}

impl Kubernetes {
    fn start(folder: &Path) -> Self {
        let api = ApiServer::start(folder);
        let server = api.server();
        let this = Self { api, folder: folder.to_path_buf(), server };
        this.api.apply(OBJECTS);
        this.api.write_access(folder, "outrigger-system", "authority");
        this
    }

    fn pod(&self, name: &str, account: &str) {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  nodeName: n1\n  serviceAccountName: {account}\n  terminationGracePeriodSeconds: 0\n  \
             containers: [{{ name: app, image: none }}]\n"
        );
        self.api.apply(&manifest);
    }

    /// A token of a service account, bound to a pod unless that is empty.
    fn token(&self, account: &str, pod: &str, audience: &str) -> String {
        let audience = format!("--audience={audience}");
        let mut arguments = vec!["create", "token", account, "-n", "shop", "--duration=10m", &audience];
        let name = format!("--bound-object-name={pod}");
        if !pod.is_empty() {
            arguments.extend(["--bound-object-kind=Pod", &name]);
        }
        eventually("a token", || self.api.kubectl(&arguments)).trim().to_owned()
    }

    /// An authority with roots in a Secret, and where it is asked.
    fn authority(&self, name: &str, lifetimes: &str, roots: &str) -> (Outrigger, u16) {
        let source = format!("roots: {{ secret: {{ namespace: outrigger-system, name: roots }}{roots} }}");
        let (home, config, port) = self.authority_config(name, &format!("{lifetimes}\n  {source}"));
        (start_outrigger(&home, &config), port)
    }

    /// The folder and config of an authority, and its port.
    fn authority_config(&self, name: &str, settings: &str) -> (PathBuf, String, u16) {
        let (home, port) = (self.folder.join(name), free_port());
        fs::create_dir_all(&home).unwrap();
        let config = format!(
            "authority:\n  trustDomain: shop.example\n  listen: \"127.0.0.1:{port}\"\n  names: [127.0.0.1, localhost]\n  \
             {settings}\n  auditLog: {0}/audit\n  rateLimit: {{ requests: 1000 }}\n  kubernetes: {{ server: \"{1}\", caFile: {2}/api-ca.pem, \
             tokenFile: {2}/api-token, timeout: 20s }}\n",
            home.display(),
            self.server,
            self.folder.display(),
        );
        (home, config, port)
    }

    /// The bundle that the authority published, in a file.
    fn bundle(&self) -> PathBuf {
        let encoded = self.folder.join("bundle.b64");
        let path = "jsonpath={.data.ca\\.crt}";
        let text = eventually("the bundle", || {
            let text = self.api.kubectl(&["get", "secret", "roots", "-n", "outrigger-system", "--output", path])?;
            ensure!(!text.is_empty(), "there is none yet");
            Ok(text)
        });
        fs::write(&encoded, text).unwrap();
        let file = self.folder.join("bundle.pem");
        fs::write(&file, run(tool("base64").arg("--decode").arg(&encoded)).unwrap()).unwrap();
        file
    }
}

fn csr(folder: &Path, name: &str, id: &str) -> String {
    let path = folder.join(format!("{name}.csr"));
    run(tool("openssl")
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/O=any"])
        .args(["-addext", &format!("subjectAltName=URI:{id}"), "-keyout"])
        .arg(folder.join(format!("{name}.key")))
        .arg("-out")
        .arg(&path))
    .unwrap();
    path.display().to_string()
}

#[test]
fn only_pods_that_the_api_server_attests_get_their_own_identity() {
    let folder = tempfile::tempdir().unwrap();
    let kubernetes = Kubernetes::start(folder.path());
    let folder = folder.path();
    kubernetes.pod("web-1", "frontend");
    kubernetes.pod("web-2", "frontend");
    let (authority, port) = kubernetes.authority("authority", "ttl: 1h", "");
    let roots = kubernetes.bundle();
    let roots = roots.to_str().unwrap();
    let address = format!("127.0.0.1:{port}");
    let own = csr(folder, "own", "spiffe://shop.example/ns/shop/sa/frontend");
    let admin = csr(folder, "admin", "spiffe://shop.example/ns/shop/sa/admin");
    let ask = |token: &str, csr: &str| run_peer("create_certificate.py", &[&address, roots, token, csr, "600"]);
    let audit = || {
        let text = fs::read_to_string(folder.join("authority/audit")).unwrap();
        text.lines().last().unwrap_or_default().to_owned()
    };

    let good = kubernetes.token("frontend", "web-1", "outrigger");
    let answer = ask(&good, &own).unwrap();
    let mut texts = answer.split("%%%\n");
    fs::write(folder.join("leaf.pem"), texts.next().unwrap()).unwrap();
    for purpose in ["sslclient", "sslserver"] {
        run(tool("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile", roots])
            .arg(folder.join("leaf.pem")))
        .unwrap();
    }
    let text = run(tool("openssl").args(["x509", "-noout", "-text", "-in"]).arg(folder.join("leaf.pem"))).unwrap();
    assert!(text.contains("URI:spiffe://shop.example/ns/shop/sa/frontend"), "{text}");
    let record = audit();
    for part in ["certificate_issued", "\"pod\":\"web-1\"", "\"node\":\"n1\"", "sa/frontend", "\"serial\":"] {
        assert!(record.contains(part), "{part} in {record}");
    }

    let gone = kubernetes.token("frontend", "web-2", "outrigger");
    ask(&gone, &own).unwrap();
    kubernetes.api.kubectl(&["delete", "pod", "web-2", "-n", "shop", "--force", "--grace-period=0"]).unwrap();
    // Another pod of that name is another pod.
    kubernetes.pod("web-2", "frontend");
    // What the next version of a sidecar may send beside what we know is no reason to refuse it.
    run_peer("create_certificate.py", &[&address, roots, &good, &own, "600", "newer"]).unwrap();
    let key = folder.join("cluster/pki/accounts.key").display().to_string();
    let resigned = |seconds: &str| run_peer("resign_token.py", &[&key, &good, seconds]).unwrap().trim().to_owned();
    ask(&resigned("600"), &own).unwrap();
    let mut broken = good.clone();
    broken.replace_range(good.len() - 8.., "AAAAAAAA");
    let rows = [
        ("of another audience", kubernetes.token("frontend", "web-1", "vault"), &own, "UNAUTHENTICATED", "token"),
        ("bound to no pod", kubernetes.token("frontend", "", "outrigger"), &own, "UNAUTHENTICATED", "unbound"),
        ("of a pod that is gone", gone, &own, "UNAUTHENTICATED", ""),
        ("with another signature", broken, &own, "UNAUTHENTICATED", "token"),
        ("that has expired", resigned("-60"), &own, "UNAUTHENTICATED", "token"),
        ("that is none", "nonsense".to_owned(), &own, "UNAUTHENTICATED", "token"),
        ("for another identity", good.clone(), &admin, "PERMISSION_DENIED", "other_identity"),
    ];
    for (name, token, csr, status, reason) in rows {
        let error = format!("{:#}", ask(&token, csr).unwrap_err());
        assert!(error.contains(status), "a token {name}: {error}");
        let record = audit();
        assert!(record.contains("certificate_refused") && record.contains(reason), "a token {name}: {record}");
        assert!(!record.contains(token.split('.').nth(2).unwrap_or("\n")), "a token {name} is in the log");
    }
    let issued = authority.metric("outrigger_authority_certificates_total{result=\"issued\"}").unwrap();
    let refused = authority.metric("outrigger_authority_certificates_total{result=\"refused\"}").unwrap();
    assert_eq!((issued, refused), (4.0, 7.0));

    // What it may not do is named, as the API server names it.
    kubernetes.api.kubectl(&["delete", "clusterrolebinding", "authority"]).unwrap();
    eventually("the missing right to be told", || {
        let error = format!("{:#}", ask(&good, &own).err().ok_or_else(|| anyhow::anyhow!("it may still"))?);
        ensure!(error.contains("UNAVAILABLE") && error.contains("tokenreviews"), "{error}");
        let status = authority.get("/readyz?verbose")?.body;
        ensure!(status.contains("tokenreviews"), "{status}");
        Ok(())
    });
}

/// A sidecar whose identity comes from an authority.
fn sidecar(kubernetes: &Kubernetes, name: &str, authority: u16, roots: &Path, proxy: &str) -> Outrigger {
    let home = kubernetes.folder.join(name);
    fs::create_dir_all(&home).unwrap();
    kubernetes.pod(name, name);
    fs::write(home.join("token"), kubernetes.token(name, name, "outrigger")).unwrap();
    let config = format!(
        "identity:\n  trustDomain: shop.example\n  authority: {{ address: \"127.0.0.1:{authority}\", caFile: {}, \
         tokenFile: {}/token, timeout: 20s }}\n{proxy}",
        roots.display(),
        home.display()
    );
    start_outrigger(&home, &config)
}

/// Whose root signed a sidecar's certificate, as its peers see it.
fn root_of(port: u16, folder: &Path, name: &str) -> Result<String> {
    let shown = folder.join(format!("{name}.shown"));
    let output = tool("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-showcerts"])
        .stdin(std::process::Stdio::null())
        .output()?;
    fs::write(&shown, output.stdout)?;
    run(tool("openssl").args(["x509", "-noout", "-issuer", "-in"]).arg(&shown))
}

#[test]
fn the_root_changes_under_traffic_and_no_connection_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kubernetes = Kubernetes::start(folder.path());
    // Two authorities share the roots, and one of them is killed in the middle of it all.
    let lifetimes = "ttl: 8s\n  maxTtl: 8s";
    let roots = ", lifetime: 40s, propagation: 12s";
    let (mut first, _) = kubernetes.authority("first", lifetimes, roots);
    let (_second, authority) = kubernetes.authority("second", lifetimes, roots);
    let bundle = kubernetes.bundle();
    let (begun, first_root) = (Instant::now(), fs::read_to_string(&bundle).unwrap());
    assert_eq!(first_root.matches("BEGIN").count(), 1, "{first_root}");
    let application = Application::start();
    let (inbound, outbound) = (free_port(), free_port());
    let proxy = format!(
        "proxy:\n  listeners:\n  - {{ name: in, direction: inbound, address: \"127.0.0.1:{inbound}\", tls: {{ mode: strict, \
         allowedPeers: [\"spiffe://shop.example/ns/shop/sa/frontend\"] }}, routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}\n  clusters: [{{ name: app, endpoints: [\"{}\"] }}]\n",
        application.address
    );
    let backend = sidecar(&kubernetes, "backend", authority, &bundle, &proxy);
    let proxy = format!(
        "proxy:\n  listeners:\n  - {{ name: out, direction: outbound, address: \"127.0.0.1:{outbound}\", routes: [{{ name: all, backendRefs: [{{ name: backend }}] }}] }}\n  clusters: [{{ name: backend, endpoints: \
         [\"127.0.0.1:{inbound}\"], protocol: http1, pool: {{ maxRequests: 1 }}, tls: {{ spiffeIds: \
         [\"spiffe://shop.example/ns/shop/sa/backend\"] }} }}]\n"
    );
    let frontend = sidecar(&kubernetes, "frontend", authority, &bundle, &proxy);

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let traffic = std::thread::spawn({
        let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
        move || {
            let url = format!("http://127.0.0.1:{outbound}/");
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                // Each request makes a connection of its own, with a handshake.
                match request("GET", &url, &[], "").and_then(|response| response.ok()) {
                    Ok(_) => {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => failed.push(format!("{:?}: {error:#}", begun.elapsed())),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            failed
        }
    });
    let before = eventually("the first root", || root_of(inbound, folder.path(), "before"));
    eventually_within(Duration::from_secs(60), "both roots in the bundle", || {
        let text = fs::read_to_string(kubernetes.bundle())?;
        ensure!(text.matches("BEGIN").count() == 2, "{text}");
        Ok(())
    });
    first.process.kill();
    eventually_within(Duration::from_secs(60), "the second root to sign", || {
        let now = root_of(inbound, folder.path(), "now")?;
        ensure!(now != before, "it is still {now}");
        // The other one follows with its next certificate.
        let rotations = "outrigger_identity_rotations_total{result=\"ok\"}";
        ensure!(frontend.metric(rotations)? >= 4.0 && backend.metric(rotations)? >= 4.0, "too few rotations");
        Ok(())
    });
    eventually_within(Duration::from_secs(60), "the first root to leave the bundle", || {
        let text = fs::read_to_string(kubernetes.bundle())?;
        ensure!(!text.contains(&first_root), "{text}");
        Ok(())
    });
    stop.store(true, Ordering::Relaxed);
    let failed = traffic.join().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), sent.load(Ordering::Relaxed));
    assert!(sent.load(Ordering::Relaxed) > 100, "{} requests", sent.load(Ordering::Relaxed));
    for outrigger in [&frontend, &backend] {
        let failures = outrigger.metric("outrigger_identity_rotations_total{result=\"error\"}").unwrap();
        assert_eq!(failures, 0.0);
    }
}

#[test]
fn a_sidecar_without_its_authority_says_why_and_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let roots = outrigger_e2e::Authority::new(&folder.path().join("ca")).bundle();
    fs::write(folder.path().join("token"), "none").unwrap();
    let port = free_port();
    let config = format!(
        "identity:\n  trustDomain: shop.example\n  authority: {{ address: \"127.0.0.1:{port}\", caFile: {}, tokenFile: {}/token }}\n",
        roots.display(),
        folder.path().display()
    );
    let outrigger = start_outrigger_with(folder.path(), &config, &[]);
    eventually("the reason", || {
        let text = outrigger.get("/readyz?verbose")?.body;
        ensure!(text.contains(&format!("the authority 127.0.0.1:{port}")) && text.contains("refused"), "{text}");
        Ok(())
    });
}

/// OpenBao with a root in its PKI engine, where the authority may log in by its service account and do one thing.
fn openbao(kubernetes: &Kubernetes) -> Bao {
    let bao = Bao::start(&kubernetes.folder);
    let call = |path: &str, body: &Value| bao.call("POST", path, body).unwrap();
    call("sys/mounts/pki", &json!({ "type": "pki", "config": { "max_lease_ttl": "87600h" } }));
    call("pki/root/generate/internal", &json!({ "common_name": "first root", "ttl": "87600h", "key_type": "ec" }));
    let policy = "path \"pki/root/sign-intermediate\" { capabilities = [\"update\"] }";
    call("sys/policies/acl/authority", &json!({ "policy": policy }));
    call("sys/auth/kubernetes", &json!({ "type": "kubernetes" }));
    let ca = fs::read_to_string(kubernetes.folder.join("api-ca.pem")).unwrap();
    let config =
        json!({ "kubernetes_host": kubernetes.server, "kubernetes_ca_cert": ca, "disable_local_ca_jwt": true });
    call("auth/kubernetes/config", &config);
    let role = json!({
        "bound_service_account_names": "authority", "bound_service_account_namespaces": "outrigger-system",
        "token_policies": "authority",
    });
    call("auth/kubernetes/role/authority", &role);
    bao
}

/// An authority's settings for an intermediate below OpenBao's root.
fn below(kubernetes: &Kubernetes, bao: &Bao, lifetimes: &str, lifetime: &str) -> String {
    format!(
        "{lifetimes}\n  vault: {{ address: \"{}\", lifetime: {lifetime}, timeout: 20s, auth: {{ kubernetes: {{ role: authority, tokenFile: {}/api-token }} }} }}",
        bao.address,
        kubernetes.folder.display()
    )
}

/// What an authority gave: a certificate with what is between it and the roots, and the roots.
struct Given {
    leaf: Leaf,
    intermediate: String,
    bundle: PathBuf,
}

/// Asks an authority for a certificate as any program may, and writes what it gives into files.
fn ask_into_files(
    kubernetes: &Kubernetes,
    account: &str,
    authority: u16,
    trusted: &Path,
    seconds: &str,
) -> Result<Given> {
    let folder = &kubernetes.folder;
    let csr = csr(folder, account, &format!("spiffe://shop.example/ns/shop/sa/{account}"));
    let token = kubernetes.token(account, account, "outrigger");
    let address = format!("127.0.0.1:{authority}");
    let answer = run_peer("create_certificate.py", &[&address, &trusted.display().to_string(), &token, &csr, seconds])?;
    let texts: Vec<_> = answer.split("%%%\n").filter(|text| !text.trim().is_empty()).collect();
    ensure!(texts.len() == 3, "no leaf, intermediate and roots: {answer}");
    let path = |suffix: &str| folder.join(format!("{account}{suffix}"));
    let given = Given {
        leaf: Leaf { certificate: path(".pem"), key: path(".key") },
        intermediate: texts[1].to_owned(),
        bundle: path(".roots"),
    };
    fs::write(&given.leaf.certificate, format!("{}{}", texts[0], texts[1]))?;
    fs::write(&given.bundle, texts[2])?;
    Ok(given)
}

#[test]
fn envoy_takes_what_is_signed_below_openbao_and_openbao_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let kubernetes = Kubernetes::start(folder.path());
    let bao = openbao(&kubernetes);
    let below_settings = below(&kubernetes, &bao, "ttl: 1h", "720h");
    let (home, config, authority) = kubernetes.authority_config("authority", &below_settings);
    let _authority = start_outrigger(&home, &config);
    let trusted = folder.path().join("openbao.pem");
    fs::write(&trusted, request("GET", &format!("{}/v1/pki/ca/pem", bao.address), &[], "").unwrap().body).unwrap();
    kubernetes.pod("frontend", "frontend");
    let ask = |account: &str| ask_into_files(&kubernetes, account, authority, &trusted, "3600").unwrap();
    let frontend = ask("frontend");
    let intermediate = folder.path().join("intermediate.pem");
    fs::write(&intermediate, &frontend.intermediate).unwrap();
    run(tool("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
        .arg(&trusted)
        .arg("-untrusted")
        .arg(&intermediate)
        .arg(&frontend.leaf.certificate))
    .unwrap();

    // OpenBao is gone: the intermediate goes on, and who has none says why.
    drop(bao);
    let again = ask("frontend");
    assert_eq!(again.intermediate, frontend.intermediate);
    let (home, config, _) = kubernetes.authority_config("late", &below_settings);
    let late = start_outrigger_with(&home, &config, &[]);
    eventually("the reason", || {
        let text = late.get("/readyz?verbose")?.body;
        ensure!(text.contains("vault http://127.0.0.1") && text.contains("refused the connection"), "{text}");
        Ok(())
    });
    drop(late);

    // Envoy and Outrigger, both ways, each with what the authority gave it.
    let id = |account: &str| format!("spiffe://shop.example/ns/shop/sa/{account}");
    let application = Application::start();
    let (inbound, outbound, envoy_in, envoy_out) = (free_port(), free_port(), free_port(), free_port());
    let proxy = format!(
        "proxy:\n  listeners:\n  - {{ name: in, direction: inbound, address: \"127.0.0.1:{inbound}\", tls: {{ mode: strict, \
         allowedPeers: [\"{}\"] }}, routes: [{{ name: all, backendRefs: [{{ name: app }}] }}] }}\n  \
         - {{ name: out, direction: outbound, address: \"127.0.0.1:{outbound}\", routes: [{{ name: all, backendRefs: [{{ name: envoy }}] }}] }}\n  \
         clusters:\n  - {{ name: app, endpoints: [\"{}\"] }}\n  \
         - {{ name: envoy, endpoints: [\"127.0.0.1:{envoy_in}\"], tls: {{ spiffeIds: [\"{}\"] }} }}\n",
        id("frontend"),
        application.address,
        id("frontend"),
    );
    let _sidecar = sidecar(&kubernetes, "backend", authority, &trusted, &proxy);
    let envoy = |name: &str, port: u16, resources: &str| {
        let home = folder.path().join(name);
        fs::create_dir(&home).unwrap();
        Envoy::start(&home, port, resources)
    };
    let upstream = context_of(&frontend.leaf, &frontend.bundle, &id("backend"), "h2");
    let resources = format!(
        "{}\n  clusters:\n  - name: server\n    connect_timeout: 5s\n    load_assignment: {}\n    \
         typed_extension_protocol_options:\n      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n        \
         explicit_http_config: {{ http2_protocol_options: {{}} }}\n    \
         transport_socket:\n      name: tls\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\n        \
         common_tls_context: {upstream}\n",
        listener(envoy_out, "", ""),
        assignment("server", inbound),
    );
    let _client = envoy("envoy-client", envoy_out, &resources);
    let downstream = context_of(&frontend.leaf, &frontend.bundle, &id("backend"), "h2, http/1.1");
    let socket = format!(
        "    transport_socket:\n      name: tls\n      typed_config:\n        \
         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n        \
         require_client_certificate: true\n        common_tls_context: {downstream}\n"
    );
    let told = "forward_client_cert_details: SANITIZE_SET\n          set_current_client_cert_details: { uri: true }";
    let resources = format!(
        "{}\n  clusters:\n  - name: server\n    connect_timeout: 5s\n    load_assignment: {}\n",
        listener(envoy_in, &socket, told),
        assignment("server", application.address.port())
    );
    let _server = envoy("envoy-server", envoy_in, &resources);
    for (way, port, client) in [("from Envoy", envoy_out, "frontend"), ("to Envoy", outbound, "backend")] {
        let response = request("GET", &format!("http://127.0.0.1:{port}/orders"), &[], "").unwrap();
        assert_eq!(response.status, 200, "{way}: {}", response.body);
        assert!(response.body.contains(&format!("URI={}", id(client))), "{way}: {}", response.body);
    }
}

#[test]
fn an_intermediate_is_renewed_and_a_new_root_at_openbao_is_told_before_it_signs() {
    let folder = tempfile::tempdir().unwrap();
    let kubernetes = Kubernetes::start(folder.path());
    let bao = openbao(&kubernetes);
    let settings = below(&kubernetes, &bao, "ttl: 4s\n  maxTtl: 4s", "12s");
    let (home, config, authority) = kubernetes.authority_config("authority", &settings);
    let outrigger = start_outrigger(&home, &config);
    let trusted = folder.path().join("openbao.pem");
    fs::write(&trusted, request("GET", &format!("{}/v1/pki/ca/pem", bao.address), &[], "").unwrap().body).unwrap();
    kubernetes.pod("frontend", "frontend");
    let first = ask_into_files(&kubernetes, "frontend", authority, &trusted, "4").unwrap();
    assert_eq!(fs::read_to_string(&first.bundle).unwrap().matches("BEGIN").count(), 1);

    bao.call(
        "POST",
        "pki/root/rotate/internal",
        &json!({ "common_name": "second root", "ttl": "87600h", "key_type": "ec" }),
    )
    .unwrap();
    eventually_within(Duration::from_secs(60), "another intermediate, and both roots", || {
        let next = ask_into_files(&kubernetes, "frontend", authority, &trusted, "4")?;
        let roots = fs::read_to_string(&next.bundle)?;
        ensure!(next.intermediate != first.intermediate && roots.matches("BEGIN").count() == 2, "{roots}");
        let (pem, roots) = (folder.path().join("next.pem"), &next.bundle);
        fs::write(&pem, &next.intermediate)?;
        // The engine's default issuer still signs.
        run(tool("openssl").args(["verify", "-CAfile"]).arg(&trusted).arg(&pem))?;
        run(tool("openssl").args(["verify", "-CAfile"]).arg(roots).arg(&pem))?;
        Ok(())
    });
    // Each time it logged in for one signature, and gave the token back.
    let asked = |operation: &str| {
        let series =
            format!("outrigger_vault_requests_total{{provider=\"authority\",operation=\"{operation}\",result=");
        outrigger.metric(&format!("{series}\"200\"}}")).or_else(|_| outrigger.metric(&format!("{series}\"204\"}}")))
    };
    eventually("the tokens to be given back", || {
        let (logins, signed, back) = (asked("login")?, asked("sign_intermediate")?, asked("revoke_self")?);
        ensure!(logins >= 2.0 && logins == signed && logins == back, "{logins} {signed} {back}");
        Ok(())
    });

    // A right that is missing is named.
    bao.call("POST", "sys/policies/acl/authority", &json!({ "policy": "path \"x\" { capabilities = [\"read\"] }" }))
        .unwrap();
    eventually_within(Duration::from_secs(60), "the missing right to be told", || {
        let text = outrigger.get("/readyz?verbose")?.body;
        ensure!(text.contains("denies `pki/root/sign-intermediate` (403)") && text.contains("`update`"), "{text}");
        Ok(())
    });
}
