//! What lies between a client and a server: one Outrigger, or two with mTLS between them, perhaps in pods.
//!
//! In: a server's port and what is spoken. Out: the address that stands for it. Promise: the
//! same test runs through all; the second one is told the first one's identity and lets in
//! nobody else.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::certificates::{Authority, Leaf};
use crate::free_port;
use crate::outrigger::{Outrigger, start_outrigger};
use crate::pods::{Inside, PROXY, Pod};
use crate::process::{run, tool};

/// The client's sidecar.
pub const CLIENT_ID: &str = "spiffe://shop.example/ns/shop/sa/client";
/// The server's sidecar.
pub const SERVER_ID: &str = "spiffe://shop.example/ns/shop/sa/server";

/// The address of a Service in pods: nobody has it.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// How many Outriggers there are on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One, in plain text on both sides.
    Plain,
    /// The client's and the server's, with mTLS between.
    Chain,
    /// The same, each in its pod, to which connections are redirected that know nothing of it.
    Pods,
}

/// What the listeners and the cluster on the way are told.
#[derive(Debug, Clone, Copy)]
pub struct Spoken {
    /// The listeners' `protocol`.
    pub listener: &'static str,
    /// The clusters' `protocol`.
    pub cluster: &'static str,
    /// More of the listeners' settings: `, key: value`.
    pub more: &'static str,
}

impl Spoken {
    /// HTTP of any version, in and out.
    pub const HTTP: Self = Self { listener: "http", cluster: "auto", more: "" };
    /// HTTP of any version in, HTTP/2 out.
    pub const HTTP2: Self = Self { listener: "http", cluster: "http2", more: "" };
    /// Whatever it is.
    pub const ANYTHING: Self = Self { listener: "auto", cluster: "auto", more: "" };
}

/// The Outriggers on the way to a server.
#[derive(Debug)]
pub struct Sidecars {
    /// Stands for the server.
    pub at: SocketAddr,
    /// Where the client is.
    client: Inside,
    way: Way,
    /// The one that the client speaks to.
    pub first: Outrigger,
    /// The one that speaks to the server, when there are two.
    pub second: Option<Outrigger>,
}

impl Sidecars {
    /// Starts them in folders of their own below `folder`, and waits until they are ready.
    ///
    /// # Panics
    /// When one does not become ready, or the way leads through pods, which [`Place`](crate::Place) has.
    #[track_caller]
    pub fn start(folder: &Path, way: Way, spoken: Spoken, server: u16) -> Self {
        assert!(way != Way::Pods, "`Place::pods` has these");
        let port = free_port();
        let home = |name: &str| {
            let home = folder.join(name);
            fs::create_dir_all(&home).expect("the test's folder can be written");
            home
        };
        if way == Way::Plain {
            let config = proxy("", spoken, &format!("direction: inbound, address: \"127.0.0.1:{port}\""), server, "");
            let first = start_outrigger(&home("sidecar"), &config);
            return Self { at: here(port), client: Inside::here(), way, first, second: None };
        }
        let authority = Authority::new(&folder.join("sidecars-ca"));
        let between = free_port();
        let (client, own) = (authority.issue("client", CLIENT_ID), authority.issue("server", SERVER_ID));
        let listener = format!(
            "direction: inbound, address: \"127.0.0.1:{between}\", tls: {{ mode: strict, allowedPeers: [\"{CLIENT_ID}\"] }}"
        );
        let second = start_outrigger(
            &home("server-sidecar"),
            &proxy(&identity(&own, &authority), spoken, &listener, server, ""),
        );
        let listener = format!("direction: outbound, address: \"127.0.0.1:{port}\"");
        let tls = format!(", tls: {{ spiffeIds: [\"{SERVER_ID}\"] }}");
        let config = proxy(&identity(&client, &authority), spoken, &listener, between, &tls);
        let first = start_outrigger(&home("client-sidecar"), &config);
        Self { at: here(port), client: Inside::here(), way, first, second: Some(second) }
    }

    /// In two pods; what stands for the server is a Service's address, which nobody has.
    ///
    /// # Panics
    /// When one does not become ready.
    #[track_caller]
    pub(crate) fn in_pods(folder: &Path, client: &Pod, server: &Pod, spoken: Spoken, port: u16) -> Self {
        let authority = Authority::new(&folder.join("sidecars-ca"));
        let start = |name: &str, pod: &Pod, id: &str, inbound: &str, clusters: &str| {
            let identity = identity(&authority.issue(name, id), &authority);
            let home = folder.join(name);
            fs::create_dir(&home).expect("the test's folder can be written");
            run(tool("chown").args(["-R", &PROXY.to_string()]).arg(folder)).expect("root may give files away");
            pod.namespace.must_init(&[]);
            let more = spoken.more;
            let config = format!(
                "{identity}proxy:\n  listeners:\n  \
                 - {{ name: out, direction: outbound, address: \"[::]:15001\", protocol: auto, redirected: true{more} }}\n  \
                 - {{ name: in, direction: inbound, address: \"[::]:15006\", protocol: auto, redirected: true{inbound}{more} }}\n\
                 {clusters}"
            );
            pod.namespace.enter(PROXY, || start_outrigger(&home, &config))
        };
        let at = SocketAddr::from((SERVICE, port));
        let inbound = format!(", tls: {{ mode: strict, allowedPeers: [\"{CLIENT_ID}\"] }}");
        let second = start("server-sidecar", server, SERVER_ID, &inbound, "");
        let clusters = format!(
            "  clusters: [{{ name: server, endpoints: [\"{}:{port}\"], virtualAddresses: [\"{at}\"], protocol: {}, \
             tls: {{ spiffeIds: [\"{SERVER_ID}\"] }} }}]\n",
            server.v4, spoken.cluster
        );
        let first = start("client-sidecar", client, CLIENT_ID, "", &clusters);
        let client = client.namespace.enter(0, Inside::here);
        Self { at, client, way: Way::Pods, first, second: Some(second) }
    }

    /// Does something where the client is.
    ///
    /// # Panics
    /// When `work` does.
    #[track_caller]
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.client.enter(work)
    }

    /// `http://IP:PORT` of what stands for the server.
    pub fn address(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Whether the server is spoken to in the version of HTTP that its client chose.
    pub fn keeps_the_protocol(&self) -> bool {
        self.way == Way::Pods
    }

    /// Each Outrigger on the way, with the name of its cluster that leads to the server.
    pub fn each(&self) -> impl Iterator<Item = (&Outrigger, &'static str)> {
        let cluster = if self.way == Way::Pods { "passthrough" } else { "server" };
        [(&self.first, "server")].into_iter().chain(self.second.as_ref().map(|second| (second, cluster)))
    }

    /// The one next to the server.
    pub fn last(&self) -> &Outrigger {
        self.second.as_ref().unwrap_or(&self.first)
    }
}

/// The config's section for an identity of the trust domain `shop.example`.
pub fn identity(leaf: &Leaf, authority: &Authority) -> String {
    format!(
        "identity:\n  trustDomain: shop.example\n  files: {{ certificate: {}, key: {}, trustBundle: {} }}\n",
        leaf.certificate.display(),
        leaf.key.display(),
        authority.bundle().display()
    )
}

fn here(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn proxy(identity: &str, spoken: Spoken, listener: &str, endpoint: u16, cluster: &str) -> String {
    let Spoken { listener: protocol, cluster: upstream, more } = spoken;
    let backend = "backendRefs: [{ name: server }]";
    let routes = match protocol {
        "tcp" => String::new(),
        _ => format!(", routes: [{{ name: all, {backend} }}]"),
    };
    let tcp = match protocol {
        "http" => String::new(),
        _ => format!(", tcpRoute: {{ name: bytes, {backend} }}"),
    };
    format!(
        "{identity}proxy:\n  listeners:\n  - {{ name: way, {listener}, protocol: {protocol}{routes}{tcp}{more} }}\n  \
         clusters: [{{ name: server, endpoints: [\"127.0.0.1:{endpoint}\"], protocol: {upstream}{cluster} }}]\n"
    )
}
