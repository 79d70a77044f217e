//! Where a test's client and server are, and so which Outriggers lie between them.
//!
//! In: this machine, or pods. Out: threads at either end, and the ways from one to the other. Promise: a suite
//! that is written once runs over each of them; in pods neither end knows of Outrigger: the kernel redirects
//! what the client sends to a Service's address, and what reaches the server's pod.

use std::path::Path;

use crate::pods::{Node, Pod};
use crate::process::{run, tool};
use crate::sidecars::{Sidecars, Spoken, Way};

/// Where a test takes place. Drop it last: with it go the pods.
#[derive(Debug)]
pub enum Place {
    /// On this machine: the client calls an Outrigger's port.
    Here,
    /// The client in one pod, the server in another, each beside an Outrigger.
    Pods(Box<Pods>),
}

/// Two pods on a node.
#[derive(Debug)]
pub struct Pods {
    /// Where the client is.
    pub client: Pod,
    /// Where the server is.
    pub server: Pod,
    _node: Node,
}

impl Place {
    /// Two pods.
    ///
    /// # Panics
    /// When the system does not let us: it needs root.
    pub fn pods() -> Self {
        let node = Node::new();
        Self::Pods(Box::new(Pods { client: node.pod(), server: node.pod(), _node: node }))
    }

    /// Does something where the server is, such as to start it.
    ///
    /// # Panics
    /// When `work` does.
    #[track_caller]
    pub fn at_server<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Here => work(),
            Self::Pods(pods) => pods.server.namespace.enter(0, work),
        }
    }

    /// All ways there are from the client to a port of the server, in folders of their own below `folder`.
    ///
    /// # Panics
    /// When an Outrigger does not become ready.
    #[track_caller]
    pub fn ways(&self, folder: &Path, spoken: Spoken, server: u16) -> Vec<Sidecars> {
        let home = |name: &str| {
            let home = folder.join(name);
            std::fs::create_dir(&home).expect("the test's folder can be written");
            home
        };
        match self {
            Self::Here => [Way::Plain, Way::Chain]
                .map(|way| Sidecars::start(&home(&format!("{way:?}")), way, spoken, server))
                .into(),
            Self::Pods(pods) => {
                run(tool("chmod").arg("a+x").arg(folder)).expect("the test's folder is ours");
                vec![Sidecars::in_pods(&home("Pods"), &pods.client, &pods.server, spoken, server)]
            }
        }
    }
}
