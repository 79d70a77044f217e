//! An endpoint as one worker knows it, and the choice among a cluster's endpoints.
//!
//! In: the plan that all workers share, and what is under way on this one. Out: one of the endpoints. Promise: an
//! endpoint that refused connections lately is passed over while there is another; nothing is allocated per request;
//! an endpoint that never got a request costs a worker a pointer.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_traffic::balance::{Endpoints, PeakEwma, Turn};

use crate::members::{Measure, Members, Peer};
use crate::pool::Idle;
use crate::shared::SharedConnections;

/// An endpoint that failed is avoided for so long, doubling up to [`LONGEST_AVOIDANCE`].
const AVOIDANCE: Duration = Duration::from_millis(200);
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(10);

/// One endpoint of a cluster, as one worker sees it.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// What all workers know of it.
    pub(crate) peer: Arc<Peer>,
    /// Requests under way.
    pub(crate) under_way: Cell<u32>,
    /// The most that were under way at once since the last sweep, and lately.
    most: Cell<u32>,
    lately: Cell<u32>,
    /// The same over all of the cluster's endpoints.
    all_under_way: Rc<Cell<u32>>,
    /// Connections there are, idle or busy.
    pub(crate) open: Cell<u32>,
    /// Connections kept for the next request.
    pub(crate) idle: RefCell<Vec<Idle>>,
    /// Connections that carry many requests.
    pub(crate) shared: SharedConnections,
    /// How fast it answers.
    pub(crate) latency: PeakEwma,
    /// Answers, and those of them that were failures.
    pub(crate) answers: Cell<u64>,
    pub(crate) failed_answers: Cell<u64>,
    /// The last connection to it was agreed on as between Outriggers.
    pub(crate) kin: Cell<bool>,
    /// A connection is being made ahead of requests.
    pub(crate) preparing: Cell<bool>,
    /// The cluster has it no longer; connections to it are not kept.
    pub(crate) retired: Cell<bool>,
    failures: Cell<u32>,
    avoid_until: Cell<Option<Instant>>,
}

impl Endpoint {
    pub(crate) fn new(peer: Arc<Peer>, all_under_way: Rc<Cell<u32>>) -> Rc<Self> {
        Rc::new(Self {
            address: peer.address,
            peer,
            under_way: Cell::new(0),
            most: Cell::new(0),
            lately: Cell::new(0),
            all_under_way,
            open: Cell::new(0),
            idle: RefCell::default(),
            shared: SharedConnections::default(),
            latency: PeakEwma::default(),
            answers: Cell::new(0),
            failed_answers: Cell::new(0),
            kin: Cell::new(false),
            preparing: Cell::new(false),
            retired: Cell::new(false),
            failures: Cell::new(0),
            avoid_until: Cell::new(None),
        })
    }

    /// A request begins.
    pub(crate) fn begin(&self) {
        let under_way = self.under_way.get() + 1;
        self.under_way.set(under_way);
        self.most.set(self.most.get().max(under_way));
        self.all_under_way.set(self.all_under_way.get() + 1);
    }

    /// A request has ended.
    pub(crate) fn end(&self) {
        self.under_way.set(self.under_way.get() - 1);
        self.all_under_way.set(self.all_under_way.get() - 1);
    }

    /// How many connections requests needed at once lately. To close one that the next crowd wants again costs far more
    /// than to keep it for a few seconds.
    pub(crate) fn needed(&self) -> usize {
        self.most.get().max(self.lately.get()) as usize
    }

    /// Forgets a quarter of that. Called once a second.
    pub(crate) fn forget_need(&self) {
        let lately = self.lately.get();
        self.lately.set((lately - lately.div_ceil(4)).max(self.most.replace(self.under_way.get())));
    }

    /// A connection is there.
    pub(crate) fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// Connections are gone.
    pub(crate) fn closed(&self, count: u32) {
        self.open.set(self.open.get() - count);
    }

    /// No connection could be made: the endpoint is avoided for a while.
    pub(crate) fn failed(&self, now: Instant) {
        let failures = self.failures.get();
        let wait = AVOIDANCE.saturating_mul(1 << failures.min(6)).min(LONGEST_AVOIDANCE);
        self.failures.set(failures.saturating_add(1));
        self.avoid_until.set(Some(now + wait));
    }

    /// A connection is being made. While it is not known that the endpoint is back, one try is enough.
    pub(crate) fn try_again(&self, timeout: Duration) {
        if self.failures.get() > 0 {
            self.avoid_until.set(Instant::now().checked_add(timeout));
        }
    }

    /// A connection was made.
    pub(crate) fn connected(&self) {
        self.failures.set(0);
        self.avoid_until.set(None);
    }

    /// Whether it failed lately.
    pub(crate) fn is_avoided(&self, now: Instant) -> bool {
        self.avoid_until.get().is_some_and(|until| until > now)
    }
}

/// A cluster's endpoints on one worker.
pub(crate) struct Local {
    members: Arc<Members>,
    /// In the order of the members; absent where no request went yet.
    endpoints: Vec<Option<Rc<Endpoint>>>,
    turn: Turn,
    all_under_way: Rc<Cell<u32>>,
}

impl Local {
    pub(crate) fn new(seed: u64) -> Self {
        Self { members: Arc::default(), endpoints: Vec::new(), turn: Turn::new(seed), all_under_way: Rc::default() }
    }

    pub(crate) fn members(&self) -> &Arc<Members> {
        &self.members
    }

    /// Takes on new members; known endpoints keep their connections. Returns those that are gone.
    pub(crate) fn renew(&mut self, members: Arc<Members>) -> Vec<Rc<Endpoint>> {
        let mut gone = Vec::new();
        if !Arc::ptr_eq(&members.peers, &self.members.peers) {
            let known = std::mem::take(&mut self.endpoints).into_iter().flatten();
            let mut known: std::collections::HashMap<SocketAddr, Rc<Endpoint>> =
                known.map(|endpoint| (endpoint.address, endpoint)).collect();
            self.endpoints = if known.is_empty() {
                vec![None; members.peers.len()]
            } else {
                members.peers.iter().map(|peer| known.remove(&peer.address)).collect()
            };
            gone.extend(known.into_values());
        }
        self.members = members;
        gone
    }

    /// One of the endpoints, by `key` where the policy goes by one, and when it was chosen, if the clock was asked.
    /// `None` when there is none.
    pub(crate) fn choose(&mut self, key: Option<u64>) -> Option<(Rc<Endpoint>, Option<Instant>)> {
        let Self { members, endpoints, turn, all_under_way } = self;
        let (index, now) = match endpoints.len() {
            0 => return None,
            1 => (0, None),
            _ => {
                let now = Instant::now();
                let view = View { endpoints, measure: &members.measure, now, all: all_under_way.get() };
                (members.plan.choose(turn, &view, key)?, Some(now))
            }
        };
        Some((self.endpoint(index), now))
    }

    /// The endpoint at a place.
    pub(crate) fn endpoint(&mut self, index: usize) -> Rc<Endpoint> {
        let (peers, all) = (&self.members.peers, &self.all_under_way);
        let made = || Endpoint::new(Arc::clone(&peers[index]), Rc::clone(all));
        Rc::clone(self.endpoints[index].get_or_insert_with(made))
    }

    /// Those that had a request.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Rc<Endpoint>> {
        self.endpoints.iter().flatten()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// The one at an address, if it may be used.
    pub(crate) fn at(&mut self, address: SocketAddr, now: Instant) -> Option<Rc<Endpoint>> {
        let index = self.members.peers.iter().position(|peer| peer.address == address)?;
        self.may_be_used(index, now).then(|| self.endpoint(index))
    }

    /// Any that was not tried and did not fail lately.
    pub(crate) fn untried(&mut self, tried: &[SocketAddr], now: Instant) -> Option<Rc<Endpoint>> {
        let fits =
            |index: &usize| self.may_be_used(*index, now) && !tried.contains(&self.members.peers[*index].address);
        let index = (0..self.endpoints.len()).find(fits)?;
        Some(self.endpoint(index))
    }

    fn may_be_used(&self, index: usize, now: Instant) -> bool {
        let peer = &self.members.peers[index];
        peer.weight() > 0
            && (peer.is_usable() || self.members.plan.is_panic())
            && !self.endpoints[index].as_ref().is_some_and(|endpoint| endpoint.is_avoided(now))
    }

    /// Whom to try beside those that let us wait: one of the other address family than the last, else any; of the same
    /// priority, and none that failed lately.
    pub(crate) fn beside(&mut self, tried: &[Rc<Endpoint>], now: Instant) -> Option<Rc<Endpoint>> {
        let last = tried.last()?;
        let (family, priority) = (last.address.is_ipv6(), last.peer.priority());
        let fits = |index: &usize| {
            let peer = &self.members.peers[*index];
            peer.priority() == priority
                && self.may_be_used(*index, now)
                && !tried.iter().any(|one| one.address == peer.address)
        };
        let fresh = || (0..self.endpoints.len()).filter(fits);
        let other = fresh().find(|index| self.members.peers[*index].address.is_ipv6() != family);
        let next = other.or_else(|| fresh().next())?;
        Some(self.endpoint(next))
    }
}

/// What a choice looks at.
struct View<'a> {
    endpoints: &'a [Option<Rc<Endpoint>>],
    measure: &'a Measure,
    now: Instant,
    all: u32,
}

impl Endpoints for View<'_> {
    fn under_way(&self, index: usize) -> u32 {
        self.endpoints[index].as_ref().map_or(0, |endpoint| endpoint.under_way.get())
    }

    fn cost(&self, index: usize) -> f32 {
        let cost = |one: &Rc<Endpoint>| one.latency.cost(one.under_way.get(), self.now, self.measure.decay);
        self.endpoints[index].as_ref().map_or(0.0, cost)
    }

    fn is_avoided(&self, index: usize) -> bool {
        self.endpoints[index].as_ref().is_some_and(|endpoint| endpoint.is_avoided(self.now))
    }

    fn all_under_way(&self) -> u32 {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Clusters;

    fn local(addresses: &[&str]) -> Local {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let config = outrigger_config::Cluster::new("a".parse().unwrap(), addresses);
        let mut local = Local::new(7);
        local.renew(Clusters::default().obtain(&config).members());
        local
    }

    #[test]
    fn what_failed_is_avoided_for_a_growing_while() {
        let mut some = local(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        let now = Instant::now();
        let all: Vec<_> = (0..3).map(|index| some.endpoint(index)).collect();
        all[0].failed(now);
        let mut chosen =
            |times: usize| -> Vec<u16> { (0..times).map(|_| some.choose(None).unwrap().0.address.port()).collect() };
        assert!(!chosen(100).contains(&1));
        assert!(!all[0].is_avoided(now + AVOIDANCE), "worth a try again");
        all[0].failed(now + AVOIDANCE);
        assert!(all[0].is_avoided(now + AVOIDANCE * 2), "longer the second time");
        // One that is tried again is not tried by others meanwhile.
        all[0].try_again(Duration::from_secs(60));
        assert!(!chosen(100).contains(&1));
        all[1].failed(now);
        all[2].failed(now);
        let all_tried = chosen(200);
        assert!([1, 2, 3].iter().all(|port| all_tried.contains(port)), "when all have failed, all are tried");
        all[0].connected();
        assert!(chosen(100).iter().all(|port| *port == 1));
    }

    #[test]
    fn the_other_family_is_next() {
        let mut all = local(&["192.0.2.1:1", "192.0.2.2:1", "[2001:db8::1]:1", "[2001:db8::2]:1"]);
        let now = Instant::now();
        let mut tried = vec![all.endpoint(0)];
        let mut order = Vec::new();
        while let Some(one) = all.beside(&tried, now) {
            order.push(one.address.to_string());
            tried.push(one);
        }
        assert_eq!(order, ["[2001:db8::1]:1", "192.0.2.2:1", "[2001:db8::2]:1"]);
        all.endpoint(2).failed(now);
        let next = all.beside(&tried[..1], now).map(|one| one.address.to_string());
        assert_eq!(next.as_deref(), Some("[2001:db8::2]:1"), "not one that failed");
    }

    #[test]
    fn endpoints_that_stay_are_the_same_ones() {
        let clusters = Clusters::default();
        let config = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            outrigger_config::Cluster::new("a".parse().unwrap(), addresses)
        };
        let cluster = clusters.obtain(&config(&["127.0.0.1:1", "127.0.0.1:2"]));
        let mut local = Local::new(7);
        assert!(local.renew(cluster.members()).is_empty());
        let (stays, goes) = (local.endpoint(1), local.endpoint(0));
        let again = clusters.obtain(&config(&["127.0.0.1:3", "127.0.0.1:2"]));
        assert!(Arc::ptr_eq(&cluster, &again), "a new list of endpoints makes no new cluster");
        let gone = local.renew(cluster.members());
        assert!(gone.len() == 1 && Rc::ptr_eq(&gone[0], &goes));
        assert!(Rc::ptr_eq(&local.endpoint(1), &stays));
    }
}
