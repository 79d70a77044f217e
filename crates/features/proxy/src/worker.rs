//! What one worker has for itself: pools, handles, connections, a sweep once a second.
//!
//! Both directions' listeners on a worker share it, so that an outbound and an inbound
//! listener use the same connections to a cluster. It lives as long as any listener does.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_identity::Identities;
use tokio::task::JoinSet;

use crate::access_log::{AccessLog, Buffer, Entry};
use crate::cluster::Cluster;
use crate::connection::Watched;
use crate::metrics::{Families, NumberHasher};
use crate::pool::{LeastRequest, Pool};

/// How long an access log line may stay on the worker.
const FLUSH_AFTER: Duration = Duration::from_millis(200);
const SWEEP_EVERY: Duration = Duration::from_secs(1);

thread_local! {
    static CURRENT: RefCell<Weak<Worker>> = const { RefCell::new(Weak::new()) };
}

/// One worker's own things.
pub(crate) struct Worker {
    pub(crate) families: Families,
    pub(crate) identities: Identities,
    pools: RefCell<HashMap<u64, Rc<Pool>, BuildHasherDefault<NumberHasher>>>,
    random: RefCell<LeastRequest>,
    peers: RefCell<HashMap<String, u64>>,
    watched: RefCell<HashMap<u64, Weak<Watched>, BuildHasherDefault<NumberHasher>>>,
    next_watched: Cell<u64>,
    access: RefCell<Buffer>,
    tasks: RefCell<JoinSet<()>>,
    sweeper: RefCell<JoinSet<()>>,
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
            random: RefCell::new(LeastRequest::new(seed)),
            peers: RefCell::default(),
            watched: RefCell::default(),
            next_watched: Cell::new(0),
            access: RefCell::default(),
            tasks: RefCell::default(),
            sweeper: RefCell::default(),
        });
        worker.sweeper.borrow_mut().spawn_local(sweep(Rc::downgrade(&worker)));
        CURRENT.set(Rc::downgrade(&worker));
        worker
    }

    /// The pool of a cluster.
    pub(crate) fn pool(&self, cluster: &Arc<Cluster>) -> Rc<Pool> {
        if let Some(pool) = self.pools.borrow().get(&cluster.id) {
            return Rc::clone(pool);
        }
        let metrics = self.families.cluster(&cluster.name);
        let seed = (u64::from(self.random()) << 32) | u64::from(self.random());
        let pool = Pool::new(Arc::clone(cluster), metrics, self.identities.clone(), seed);
        self.pools.borrow_mut().insert(cluster.id, Rc::clone(&pool));
        pool
    }

    /// Any number.
    pub(crate) fn random(&self) -> u32 {
        self.random.borrow_mut().random()
    }

    /// A number for a peer's identity, for the caches of metric handles.
    pub(crate) fn peer_number(&self, id: &str) -> u64 {
        let mut peers = self.peers.borrow_mut();
        if let Some(number) = peers.get(id) {
            return *number;
        }
        let number = peers.len() as u64 + 1;
        peers.insert(id.to_owned(), number);
        number
    }

    /// Watches a connection's timeouts until it is dropped.
    pub(crate) fn watch(&self, connection: &Rc<Watched>) {
        let number = self.next_watched.get();
        self.next_watched.set(number + 1);
        self.watched.borrow_mut().insert(number, Rc::downgrade(connection));
    }

    /// Adds a line to the access log.
    pub(crate) fn log(self: &Rc<Self>, log: &Arc<AccessLog>, entry: &Entry<'_>) {
        if self.access.borrow_mut().add(log, entry) {
            let (worker, log) = (Rc::downgrade(self), Arc::clone(log));
            let mut tasks = self.tasks.borrow_mut();
            while tasks.try_join_next().is_some() {}
            tasks.spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                if let Some(worker) = worker.upgrade() {
                    worker.flush(&log);
                }
            });
        }
    }

    /// Hands over the lines that wait.
    pub(crate) fn flush(&self, log: &Arc<AccessLog>) {
        self.access.borrow_mut().flush(log);
    }
}

async fn sweep(worker: Weak<Worker>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(worker) = worker.upgrade() else { return };
        let now = Instant::now();
        worker.pools.borrow_mut().retain(|_, pool| !pool.is_abandoned());
        for pool in worker.pools.borrow().values() {
            pool.sweep(now);
        }
        worker.watched.borrow_mut().retain(|_, connection| {
            connection.upgrade().is_some_and(|connection| {
                connection.judge(now);
                true
            })
        });
    }
}
