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
    ApiServer, Application, Outrigger, eventually, eventually_within, free_port, request, run, run_peer,
    start_outrigger, start_outrigger_with, tool,
};

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

    /// An authority, and where it is asked.
    fn authority(&self, name: &str, lifetimes: &str, roots: &str) -> (Outrigger, u16) {
        let (home, port) = (self.folder.join(name), free_port());
        fs::create_dir_all(&home).unwrap();
        let config = format!(
            "authority:\n  trustDomain: shop.example\n  listen: \"127.0.0.1:{port}\"\n  names: [127.0.0.1, localhost]\n  \
             {lifetimes}\n  roots: {{ secret: {{ namespace: outrigger-system, name: roots }}{roots} }}\n  \
             auditLog: {0}/audit\n  rateLimit: {{ requests: 1000 }}\n  kubernetes: {{ server: \"{1}\", caFile: {2}/api-ca.pem, \
             tokenFile: {2}/api-token, timeout: 20s }}\n",
            home.display(),
            self.server,
            self.folder.display(),
        );
        (start_outrigger(&home, &config), port)
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
    let mut broken = good.clone();
    broken.replace_range(good.len() - 8.., "AAAAAAAA");
    let rows = [
        ("of another audience", kubernetes.token("frontend", "web-1", "vault"), &own, "UNAUTHENTICATED", "token"),
        ("bound to no pod", kubernetes.token("frontend", "", "outrigger"), &own, "UNAUTHENTICATED", "unbound"),
        ("of a pod that is gone", gone, &own, "UNAUTHENTICATED", ""),
        ("with another signature", broken, &own, "UNAUTHENTICATED", "token"),
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
    assert_eq!((issued, refused), (2.0, 6.0));

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
