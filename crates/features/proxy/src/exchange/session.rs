//! Sessions: a request goes where its client's earlier ones were answered, if that can be.
//!
//! In: a request of a route with `sessionPersistence`. Out: the backend and endpoint it belongs to, and in the answer what the
//! client brings next time. Promise: an endpoint that is gone, ejected or was tried in vain is passed by, and
//! the session goes over to the one that answered; nobody is sent where the cluster has no endpoint.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_traffic::balance::hash;
use outrigger_traffic::session::Session;
use outrigger_wire::head::Head;

use super::Exchange;
use crate::route::Route;

/// A client's session as its request brought it.
pub(super) struct Sticky {
    /// `None` for a client that is new.
    known: Option<Session>,
    now: u64,
}

impl Sticky {
    /// The backend that the client belongs to, among those that take requests.
    pub(super) fn backend(&self, route: &Route) -> Option<u32> {
        let cluster = self.known?.cluster;
        (0..).map_while(|number| Some((number, route.cluster_of(number)?))).find_map(|(number, one)| {
            // By name, so that it holds over reloads and in other replicas.
            (hash(one.name.as_bytes()) == cluster).then_some(number)
        })
    }
}

impl Exchange {
    /// Reads the session that a request brings.
    pub(super) fn read_session(&self, route: &Route, request: &Head) -> Option<Box<Sticky>> {
        let persistence = route.session.as_ref()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let keys = self.snapshot.session_keys.as_ref()?;
        let known = persistence.brought(request).and_then(|brought| keys.open(brought, persistence.context()));
        Some(Box::new(Sticky { known: known.filter(|session| persistence.counts(session, now)), now }))
    }

    /// The endpoint that the request belongs to.
    pub(super) fn belongs_to(&self) -> Option<SocketAddr> {
        self.session.as_ref()?.known.map(|session| session.endpoint)
    }

    /// Tells the client of its session when it is new, goes elsewhere now, or would be forgotten.
    pub(super) fn tell_session(&self, response: &mut Head) {
        let (Some(sticky), Some(pool), Some(endpoint)) = (&self.session, &self.pool, self.endpoint) else { return };
        let Some(persistence) = self.route().and_then(|route| route.session.as_ref()) else { return };
        let cluster = hash(pool.cluster.name.as_bytes());
        let stays = sticky.known.filter(|known| known.endpoint == endpoint && known.cluster == cluster);
        if stays.is_some_and(|known| !persistence.is_due(&known, sticky.now)) {
            return;
        }
        let began = sticky.known.map_or(sticky.now, |known| known.began);
        let session = Session { began, told: sticky.now, cluster, endpoint };
        let sealed = self.snapshot.session_keys.as_ref().and_then(|keys| keys.seal(&session, persistence.context()));
        if let Some(sealed) = sealed {
            persistence.tell(&sealed, &session, self.downstream.secure, response);
        }
    }
}
