//! The harness of the end-to-end tests: the built executable among real servers.
//!
//! In: a config as text and the servers a test asks for. Out: guards that end what they
//! started, by process id, and show what it wrote when the test failed. Promise: each
//! test has its own folder and ports, so all run at once; every wait has a deadline and
//! says what it waited for; a missing server fails the test.

mod application;
mod calls;
mod certificates;
mod collector;
mod http;
mod network;
mod outrigger;
mod place;
mod pods;
mod process;
mod servers;
mod sidecars;
mod wait;

pub use application::{Application, Seen};
pub use calls::{Called, Calls};
pub use certificates::{Authority, Leaf};
pub use collector::{Collector, Mood};
pub use http::{Connection, Response, request};
pub use network::{free_port, free_port_pair, free_udp_port};
pub use outrigger::{Outrigger, outrigger_command, start_outrigger, start_outrigger_as, start_outrigger_with};
pub use place::{Place, Pods};
pub use pods::{APPLICATION, Inside, Namespace, Node, PROXY, Pod, PodOutrigger, listen_on};
pub use process::{Process, run, tool};
pub use servers::{
    ApiServer, Bao, Envoy, KubeNamespace, Mariadb, Nghttpd, Nginx, Otelcol, Postgres, Prometheus, Redis, Span,
    is_listening, mariadb, outrigger_image, peer_server, psql, redis, run_peer, start_peer,
};
pub use sidecars::{CLIENT_ID, SERVER_ID, Sidecars, Spoken, Way, identity};
pub use wait::{eventually, eventually_within, one_line};
