//! Connections: those that rest between requests, and the tasks that drive them.
//!
//! In: connections after a response. Out: one that is still open. Promise: no more rest per
//! server than allowed, none longer than its time; all end when the client is dropped, for
//! the client owns their tasks.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::target::Target;

/// Servers that connections rest for; a client talks to one or a few.
const MOST_TARGETS: usize = 64;

/// An open connection.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    resting: watch::Sender<bool>,
}

/// The connections of one client.
pub(crate) struct Pool {
    max_idle: usize,
    idle_timeout: Duration,
    resting: Mutex<HashMap<Target, Vec<Connection>>>,
    drivers: Mutex<JoinSet<()>>,
}

impl Pool {
    pub(crate) fn new(max_idle: usize, idle_timeout: Duration) -> Self {
        Self { max_idle, idle_timeout, resting: Mutex::default(), drivers: Mutex::default() }
    }

    /// The connection to this server that rested last, if one is still open.
    pub(crate) fn take(&self, target: &Target) -> Option<Connection> {
        let mut resting = self.resting.lock();
        let connections = resting.get_mut(target)?;
        while let Some(connection) = connections.pop() {
            if connection.sender.is_ready() {
                connection.resting.send_replace(false);
                return Some(connection);
            }
        }
        resting.remove(target);
        None
    }

    /// Lets a connection rest, or closes it when enough are resting.
    pub(crate) fn put(&self, target: &Target, connection: Connection) {
        if self.max_idle == 0 {
            return;
        }
        let mut resting = self.resting.lock();
        resting.retain(|_, connections| {
            connections.retain(|connection| !connection.sender.is_closed());
            !connections.is_empty()
        });
        if !resting.contains_key(target) && resting.len() >= MOST_TARGETS {
            return;
        }
        let connections = resting.entry(target.clone()).or_default();
        if connections.len() >= self.max_idle {
            // The one that has rested longest is the likeliest to be closed by the server soon.
            connections.remove(0);
        }
        connection.resting.send_replace(true);
        connections.push(connection);
    }

    /// Starts driving a connection. Call it within a tokio runtime.
    pub(crate) fn drive<C>(&self, sender: SendRequest<Full<Bytes>>, connection: C) -> Connection
    where
        C: Future<Output = hyper::Result<()>> + Send + 'static,
    {
        let (resting, receiver) = watch::channel(false);
        let mut drivers = self.drivers.lock();
        while drivers.try_join_next().is_some() {}
        drivers.spawn(drive(connection, receiver, self.idle_timeout));
        Connection { sender, resting }
    }
}

/// Drives a connection to its end, or until it has rested too long.
async fn drive<C>(connection: C, mut resting: watch::Receiver<bool>, idle_timeout: Duration)
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = std::pin::pin!(connection);
    loop {
        let rests = *resting.borrow_and_update();
        tokio::select! {
            // An error here is told to the request that it hits; a resting connection may just end.
            _ = &mut connection => return,
            changed = resting.changed() => if changed.is_err() {
                // Nobody will use it again; a peer that does not read must not hold it open.
                let _ = tokio::time::timeout(idle_timeout, connection).await;
                return;
            },
            () = tokio::time::sleep(idle_timeout), if rests => return,
        }
    }
}
