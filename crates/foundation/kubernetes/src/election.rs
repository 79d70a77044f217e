//! Who leads, by a [Lease]: one of several processes, or none.
//!
//! In: a Lease that all of them name. Out: [`Leadership`], to be asked before each thing that only one may do. Promise:
//! never two at once, as long as clocks run at about the same speed: a leader that cannot renew stops calling itself one
//! before anybody else may follow it; no two clocks are compared. At a stop the Lease is given back, so that the next
//! one need not wait. As client-go does it, with whose elections it gets along.
//!
//! [Lease]: https://kubernetes.io/docs/concepts/architecture/leases/

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_runtime::{Backoff, Stop};
use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::client::{Client, Write};
use crate::error::ApiError;
use crate::object::resources::LEASES;

/// The Lease, who asks, and how long things take. client-go's defaults.
#[derive(Debug, Clone)]
pub struct ElectionOptions {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Who we are: different for each process, such as the pod's name.
    pub identity: String,
    /// Others may follow so long after the last renewal that they saw.
    pub duration: Duration,
    /// A leader that has not renewed for so long leads no more; well below `duration`.
    pub renew_deadline: Duration,
    /// How often it is renewed, and looked at.
    pub retry: Duration,
}

impl ElectionOptions {
    /// With client-go's times: 15, 10 and 2 seconds.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Takes part in an election for as long as it is run.
pub struct Election {
    client: Client,
    options: ElectionOptions,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// We lead until then, unless it is renewed.
    until: Option<Instant>,
    holder: String,
    problem: Option<String>,
}

/// Whether we lead. Cheap to clone.
#[derive(Clone)]
pub struct Leadership(Arc<Shared>);

/// The Lease as it was seen last, and when it was first seen so.
struct Seen {
    record: Value,
    at: Instant,
}

impl Election {
    /// Takes no part before it is run.
    pub fn new(client: Client, options: ElectionOptions) -> (Self, Leadership) {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: watch::Sender::new(false) });
        let leadership = Leadership(Arc::clone(&shared));
        (Self { client, options, shared }, leadership)
    }

    /// Takes part until the stop, and then gives the Lease back.
    pub async fn run(&self, stop: &Stop) {
        let mut seen = None;
        loop {
            let round = async {
                self.round(&mut seen).await;
                // Not all that wait look at the same moment.
                let jitter = Backoff::new(self.options.retry / 5, self.options.retry / 5).next();
                tokio::time::sleep(self.options.retry + jitter).await;
            };
            tokio::select! {
                () = round => {}
                () = self.lapse() => if self.shared.step_down() {
                    tracing::warn!(lease = %self.options.name, "leads no more: the lease was not renewed in time");
                },
                () = stop.requested() => break,
            }
        }
        let led = self.shared.leads();
        self.shared.step_down();
        if led {
            // Nobody waits for a server that is away.
            let _ = timeout(self.options.retry, self.release()).await;
        }
    }

    /// Resolves when our time as the leader has run out.
    async fn lapse(&self) {
        loop {
            let until = self.shared.state.lock().until;
            match until {
                Some(until) if Instant::now() >= until && *self.shared.changed.borrow() => return,
                Some(until) if Instant::now() < until => tokio::time::sleep_until(until).await,
                _ => std::future::pending().await,
            }
        }
    }

    async fn round(&self, seen: &mut Option<Seen>) {
        let result = match timeout(self.options.renew_deadline, self.acquire_or_renew(seen)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "no answer of the API server within {:?}: it is away, or too busy",
                self.options.renew_deadline
            )),
        };
        let mut state = self.shared.state.lock();
        match result {
            Ok(()) => state.problem = None,
            Err(problem) => {
                if state.problem.as_ref() != Some(&problem) {
                    tracing::warn!(lease = %self.options.name, %problem, "cannot take part in the election");
                }
                state.problem = Some(problem);
            }
        }
    }

    async fn acquire_or_renew(&self, seen: &mut Option<Seen>) -> Result<(), ApiError> {
        let options = &self.options;
        let path = LEASES.named(&options.namespace, &options.name);
        // What we may call ourselves counts from before the request, as others count from after it.
        let asked = Instant::now();
        let Some(mut lease) = self.client.find(path).await? else {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": options.name, "namespace": options.namespace },
                "spec": self.record(None),
            });
            return match self.client.create(path, &lease, Write::Real).await {
                Ok(made) => {
                    self.lead(seen, &made, asked);
                    Ok(())
                }
                Err(error) if error.is_conflict() => Ok(()),
                Err(error) => Err(error),
            };
        };
        let spec = lease["spec"].take();
        let holder = spec["holderIdentity"].as_str().unwrap_or_default().to_owned();
        if seen.as_ref().is_none_or(|seen| seen.record != spec) {
            *seen = Some(Seen { record: spec.clone(), at: Instant::now() });
        }
        let ours = holder == options.identity;
        let lasts = spec["leaseDurationSeconds"].as_u64().map_or(options.duration, Duration::from_secs);
        let valid = seen.as_ref().is_some_and(|seen| seen.at.elapsed() < lasts);
        if !ours && !holder.is_empty() && valid {
            self.follow(&holder);
            return Ok(());
        }
        lease["spec"] = self.record(Some((&spec, ours)));
        // The version that was read goes along, so that of two who try one is refused.
        match self.client.update(path, &lease, Write::Real).await {
            Ok(made) => {
                self.lead(seen, &made, asked);
                Ok(())
            }
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn record(&self, before: Option<(&Value, bool)>) -> Value {
        let now = micro_time(SystemTime::now());
        let (acquired, transitions) = match before {
            Some((spec, true)) => (spec["acquireTime"].clone(), spec["leaseTransitions"].as_u64().unwrap_or(0)),
            Some((spec, false)) => (json!(now), spec["leaseTransitions"].as_u64().unwrap_or(0) + 1),
            None => (json!(now), 0),
        };
        json!({
            "holderIdentity": self.options.identity,
            "leaseDurationSeconds": self.options.duration.as_secs().max(1),
            "acquireTime": acquired,
            "renewTime": now,
            "leaseTransitions": transitions,
        })
    }

    fn lead(&self, seen: &mut Option<Seen>, made: &Value, asked: Instant) {
        *seen = Some(Seen { record: made["spec"].clone(), at: Instant::now() });
        let mut state = self.shared.state.lock();
        state.until = Some(asked + self.options.renew_deadline);
        state.holder.clone_from(&self.options.identity);
        drop(state);
        if self.shared.changed.send_if_modified(|leads| !std::mem::replace(leads, true)) {
            tracing::info!(lease = %self.options.name, identity = %self.options.identity, "leads");
        }
    }

    fn follow(&self, holder: &str) {
        holder.clone_into(&mut self.shared.state.lock().holder);
        if self.shared.step_down() {
            tracing::warn!(lease = %self.options.name, %holder, "leads no more: another one does");
        }
    }

    async fn release(&self) -> Result<(), ApiError> {
        let path = LEASES.named(&self.options.namespace, &self.options.name);
        let Some(mut lease) = self.client.find(path).await? else { return Ok(()) };
        if lease["spec"]["holderIdentity"] != self.options.identity.as_str() {
            return Ok(());
        }
        lease["spec"]["holderIdentity"] = json!("");
        lease["spec"]["leaseDurationSeconds"] = json!(1);
        lease["spec"]["renewTime"] = json!(micro_time(SystemTime::now()));
        self.client.update(path, &lease, Write::Real).await.map(drop)
    }
}

impl Shared {
    fn leads(&self) -> bool {
        *self.changed.borrow() && self.state.lock().until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether we led.
    fn step_down(&self) -> bool {
        self.state.lock().until = None;
        self.changed.send_if_modified(std::mem::take)
    }
}

impl Leadership {
    /// Whether we lead at this moment.
    pub fn leads(&self) -> bool {
        self.0.leads()
    }

    /// Who leads, as far as we know; empty when nobody does.
    pub fn holder(&self) -> String {
        self.0.state.lock().holder.clone()
    }

    /// Why we cannot take part.
    pub fn problem(&self) -> Option<String> {
        self.0.state.lock().problem.clone()
    }

    /// Resolves when we lead (at once if we do). Cancel-safe.
    pub async fn gained(&self) {
        let mut changed = self.0.changed.subscribe();
        // The sender is in here.
        let _ = changed.wait_for(|leads| *leads).await;
    }

    /// Resolves when we do not lead (at once if we do not). Cancel-safe.
    pub async fn lost(&self) {
        let mut changed = self.0.changed.subscribe();
        let _ = changed.wait_for(|leads| !*leads).await;
    }
}

/// A time as Kubernetes' MicroTime.
pub(crate) fn micro_time(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    OffsetDateTime::from(at).format(format).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_kubernetes_does() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042);
        assert_eq!(micro_time(at), "2023-11-14T22:13:20.000042Z");
    }
}
