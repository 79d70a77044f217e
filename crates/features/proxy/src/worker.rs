//! What one worker has for itself: pools, handles, connections, a sweep once a second.
//!
//! Both directions' listeners on a worker share it, so that an outbound and an inbound
//! listener use the same connections to a cluster. It lives as long as any listener does.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::Identities;
use outrigger_traffic::Random;
use tokio::task::JoinSet;

use crate::access_log::{AccessLog, Buffer, Entry};
use crate::cluster::Cluster;
use crate::connection::Downstream;
use crate::connections::Open;
use crate::error::Reason;
use crate::listener::LocalListener;
use crate::metrics::{Families, NumberHasher};
use crate::pool::Pool;
use crate::socket::OwnCall;
use crate::state::Sight;
use crate::watch::Clock;
use crate::{buffer, splice};

/// How long an access log line may stay on the worker.
const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Identities a worker has numbers for.
const MOST_PEERS: usize = 4096;
/// Addresses that redirected connections go to at once.
const MOST_ORIGINALS: usize = 4096;
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Connections that were cut have so long to end before more are.
const RECLAIM_EVERY: Duration = Duration::from_millis(20);

thread_local! {
    static CURRENT: RefCell<Weak<Worker>> = const { RefCell::new(Weak::new()) };
}

/// One worker's own things.
pub(crate) struct Worker {
    pub(crate) families: Families,
    pub(crate) identities: Identities,
    pools: RefCell<HashMap<u64, Rc<Pool>, BuildHasherDefault<NumberHasher>>>,
    /// Pools toward addresses that redirected connections wanted to go to.
    originals: RefCell<HashMap<(u64, SocketAddr), Rc<Pool>>>,
    /// Listeners whose clusters may want connections made ahead.
    listeners: RefCell<Vec<Weak<LocalListener>>>,
    random: RefCell<Random>,
    peers: RefCell<HashMap<String, u64>>,
    next_peer: Cell<u64>,
    pub(crate) clock: Rc<Clock>,
    access: RefCell<Buffer>,
    /// Whether a task is there to flush `access`.
    flushing: Cell<bool>,
    tasks: RefCell<JoinSet<()>>,
    /// Bytes of buffers as the metric knows them.
    buffers: Cell<(usize, usize)>,
    /// Pipes as the metric knows them.
    pipes: Cell<(usize, usize)>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tell_buffers((0, 0));
        self.tell_pipes((0, 0));
    }
}

impl Worker {
    /// This thread's worker, made when there is none.
    pub(crate) fn current(families: &Families, identities: &Identities) -> Rc<Self> {
        if let Some(worker) = CURRENT.with_borrow(Weak::upgrade) {
            return worker;
        }
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let worker = Rc::new(Self {
            families: families.clone(),
            identities: identities.clone(),
            pools: RefCell::default(),
            originals: RefCell::default(),
            listeners: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            peers: RefCell::default(),
            next_peer: Cell::new(1),
            clock: Clock::new(),
            access: RefCell::default(),
            flushing: Cell::new(false),
            tasks: RefCell::default(),
            buffers: Cell::default(),
            pipes: Cell::default(),
        });
        let mut tasks = worker.tasks.borrow_mut();
        tasks.spawn_local(sweep(Rc::downgrade(&worker)));
        tasks.spawn_local(reclaim(Rc::downgrade(&worker)));
        tasks.spawn_local(Rc::clone(&worker.clock).run());
        drop(tasks);
        CURRENT.set(Rc::downgrade(&worker));
        worker
    }

    /// This thread's worker, if there is one.
    pub(crate) fn existing() -> Option<Rc<Self>> {
        CURRENT.with_borrow(Weak::upgrade)
    }

    /// What it knows of endpoints.
    pub(crate) fn sight(&self) -> Sight {
        let (pools, originals) = (self.pools.borrow(), self.originals.borrow());
        let now = Instant::now();
        let all = pools.values().chain(originals.values());
        all.flat_map(|pool| pool.sight(now).into_iter().map(|(address, seen)| ((pool.cluster.id, address), seen)))
            .collect()
    }

    /// What is open here: of one listener or of all, at most so many connections.
    pub(crate) fn open(&self, listener: Option<&str>, most: usize) -> Open {
        let names: HashMap<u64, String> = self
            .listeners
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|one| listener.is_none_or(|name| one.shared.name == name))
            .map(|one| (one.shared.id, one.shared.name.clone()))
            .collect();
        let (total, told) = self.clock.states(most, |number| names.get(&number).cloned());
        let (pools, originals) = (self.pools.borrow(), self.originals.borrow());
        let pools = pools.values().chain(originals.values()).map(|pool| {
            let (open, idle) = pool.open_and_idle();
            (pool.cluster.name.to_string(), open, idle)
        });
        Open { total, told, pools: pools.collect() }
    }

    /// The pool of a cluster.
    pub(crate) fn pool(&self, cluster: &Arc<Cluster>) -> Rc<Pool> {
        if let Some(pool) = self.pools.borrow().get(&cluster.id) {
            return Rc::clone(pool);
        }
        let metrics = self.families.cluster(&cluster.name);
        let seed = (u64::from(self.random()) << 32) | u64::from(self.random());
        let pool = Pool::new(Arc::clone(cluster), metrics, &self.identities, seed);
        self.pools.borrow_mut().insert(cluster.id, Rc::clone(&pool));
        pool
    }

    /// The pool for a client's connection; a `direct` one goes to the endpoint that it wanted to go to. One of our own
    /// that was redirected to us is not sent on again.
    pub(crate) fn pool_for(
        &self,
        cluster: &Arc<Cluster>,
        direct: bool,
        downstream: &Downstream,
    ) -> Result<Rc<Pool>, Reason> {
        if (direct || cluster.config.original_destination)
            && let Some(address) = downstream.original
            && OwnCall::is_one(downstream.remote, address)
        {
            let (listener, reason) = (&downstream.local.shared.name, Reason::Loop);
            tracing::error!(component = "proxy", listener, %address, %reason, "refused a connection");
            return Err(reason);
        }
        self.pool_toward(cluster, direct, downstream.original)
    }

    /// The pool of a cluster, or of the one address a connection wants to go to.
    pub(crate) fn pool_toward(
        &self,
        cluster: &Arc<Cluster>,
        direct: bool,
        address: Option<SocketAddr>,
    ) -> Result<Rc<Pool>, Reason> {
        if !direct && !cluster.config.original_destination {
            return Ok(self.pool(cluster));
        }
        let address = address.ok_or(Reason::NoEndpoint)?;
        if let Some(pool) = self.originals.borrow().get(&(cluster.id, address)) {
            return Ok(Rc::clone(pool));
        }
        let mut originals = self.originals.borrow_mut();
        if originals.len() >= MOST_ORIGINALS {
            originals.retain(|_, pool| Rc::strong_count(pool) > 1);
        }
        if originals.len() >= MOST_ORIGINALS {
            return Err(Reason::Overflow("too many destinations at once"));
        }
        let toward = Arc::new(cluster.toward(address));
        let metrics = self.families.cluster(&cluster.name);
        let pool = Pool::new(toward, metrics, &self.identities, u64::from(self.random()));
        originals.insert((cluster.id, address), Rc::clone(&pool));
        Ok(pool)
    }

    /// Sees to it that connections are made ahead for a listener's clusters, as they are now and after reloads.
    pub(crate) fn keep_ahead_for(&self, listener: &Rc<LocalListener>) {
        self.listeners.borrow_mut().push(Rc::downgrade(listener));
        self.make_ahead(listener);
    }

    fn make_ahead(&self, listener: &Rc<LocalListener>) {
        for cluster in listener.snapshot().routes.wanting_connections() {
            self.pool(cluster).make_ahead(|| self.random());
        }
    }

    /// Chance.
    pub(crate) fn chance(&self) -> std::cell::RefMut<'_, Random> {
        self.random.borrow_mut()
    }

    /// Runs something that nobody waits for, until it ends or the worker does. What calls it bounds how many there are.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(task);
    }

    /// Any number.
    pub(crate) fn random(&self) -> u32 {
        self.random.borrow_mut().next()
    }

    /// Sixteen random bytes in base64, as a WebSocket's handshake wants them ([RFC 6455], 4.1).
    ///
    /// [RFC 6455]: https://www.rfc-editor.org/rfc/rfc6455
    pub(crate) fn websocket_key(&self) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut key: String = (0..21).map(|_| char::from(DIGITS[(self.random() >> 26) as usize])).collect();
        // The last digit of sixteen bytes carries two bits.
        key.push(char::from(DIGITS[(self.random() >> 30 << 4) as usize]));
        key.push_str("==");
        key
    }

    /// A number for a peer's identity, for the caches of metric handles.
    pub(crate) fn peer_number(&self, id: &str) -> u64 {
        let mut peers = self.peers.borrow_mut();
        if let Some(number) = peers.get(id) {
            return *number;
        }
        if peers.len() >= MOST_PEERS {
            peers.clear();
        }
        // Never given out twice, for handles are kept under it.
        let number = self.next_peer.replace(self.next_peer.get() + 1);
        peers.insert(id.to_owned(), number);
        number
    }

    /// Adds a line to the access log.
    pub(crate) fn log(self: &Rc<Self>, log: &Arc<AccessLog>, entry: &Entry<'_>) {
        self.access.borrow_mut().add(log, entry);
        if !self.flushing.replace(true) {
            let (worker, log) = (Rc::downgrade(self), Arc::clone(log));
            let mut tasks = self.tasks.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                if let Some(worker) = worker.upgrade() {
                    worker.flushing.set(false);
                    worker.flush(&log);
                }
            });
        }
    }

    fn tell_buffers(&self, held: (usize, usize)) {
        let before = self.buffers.replace(held);
        if before != held {
            let more = |now: usize, before: usize| now as f64 - before as f64;
            self.families.buffers(more(held.0, before.0), more(held.1, before.1));
        }
    }

    fn tell_pipes(&self, held: (usize, usize)) {
        let before = self.pipes.replace(held);
        if before != held {
            let more = |now: usize, before: usize| now as f64 - before as f64;
            self.families.pipes(more(held.0, before.0), more(held.1, before.1));
        }
    }

    /// Hands over the lines that wait.
    pub(crate) fn flush(&self, log: &Arc<AccessLog>) {
        self.access.borrow_mut().flush(log);
    }
}

/// Makes room when connections hold more memory than they may: those that have held theirs longest without going on
/// are cut. Nobody waits for memory, so nobody can wait for ever.
async fn reclaim(worker: Weak<Worker>) {
    loop {
        buffer::over().await;
        let Some(worker) = worker.upgrade() else { return };
        let (held, _) = buffer::bytes_held();
        let cut = worker.clock.cut_holders(buffer::excess().div_ceil(buffer::BLOCK).max(1));
        worker.tell_buffers(buffer::bytes_held());
        worker.families.reclaimed();
        tracing::warn!(component = "proxy", held, cut, "buffers are full; connections that hold them longest are cut");
        drop(worker);
        tokio::time::sleep(RECLAIM_EVERY).await;
    }
}

async fn sweep(worker: Weak<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(worker) = worker.upgrade() else { return };
        let now = Instant::now();
        worker.tell_buffers(buffer::bytes_held());
        worker.tell_pipes(splice::held());
        worker.pools.borrow_mut().retain(|_, pool| !pool.is_abandoned());
        for pool in worker.pools.borrow().values() {
            pool.sweep(now);
        }
        worker.originals.borrow_mut().retain(|_, pool| {
            pool.sweep(now);
            pool.is_in_use()
        });
        worker.listeners.borrow_mut().retain(|listener| listener.strong_count() > 0);
        let listeners: Vec<_> = worker.listeners.borrow().iter().filter_map(Weak::upgrade).collect();
        listeners.iter().for_each(|listener| worker.make_ahead(listener));
    }
}
