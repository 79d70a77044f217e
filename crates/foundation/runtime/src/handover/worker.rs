//! A worker's side of the hand-over, over its life.
//!
//! In: `runtime.handover`. Out: the sockets of the worker before, at the start; our own
//! with the keeper, at the stop. Promise: without a keeper nothing differs from a start
//! or stop without the section; a failed hand-over is told and costs seconds at most.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use outrigger_config as config;
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::client::{self, ClientError, Passed, Taken};
use super::presence::Presence;
use crate::signals::{Received, Signals};
use crate::sockets::{Listening, Sockets};

/// How often a start asks a keeper that has nothing yet. A connection waits this long at most for a worker that
/// overlaps with the one before it.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// The hand-over of one worker.
pub(crate) struct Handover {
    config: config::Handover,
    /// Who we are, for the keeper's log.
    name: String,
    _presence: Option<Presence>,
    /// Where the keeper waits to hear that we are ready. Until then it has what we have.
    link: Option<UnixStream>,
}

/// A signal to stop came while the start waited.
#[derive(Debug)]
pub(crate) struct Interrupted(pub(crate) Received);

impl Handover {
    /// Takes over the sockets of the worker before, when a keeper has them; waits for them when it soon will.
    pub(crate) async fn begin(
        config: &config::Handover,
        version: &str,
        sockets: &Sockets,
        signals: &mut Signals,
    ) -> Result<Self, Interrupted> {
        let name = format!("outrigger {version}, process {}", std::process::id());
        let taken = tokio::select! {
            taken = take(config, &name) => taken,
            signal = stop_signal(signals) => return Err(Interrupted(signal)),
        };
        let link = taken.map(|(passed, link)| {
            let count = passed.len();
            let adopted = sockets.adopt(passed.into_iter().map(|passed| passed.socket));
            tracing::info!(component = "runtime", sockets = count, adopted, "took over sockets from the keeper");
            link
        });
        let path = config.socket.clone();
        let presence = blocking(move || Presence::show(&path)).await;
        if let Some(Err(error)) = &presence {
            let path = config.socket.display();
            tracing::warn!(component = "runtime", %error, "cannot lock {path}.lock; a worker started beside this one will not wait for its sockets");
        }
        Ok(Self { config: config.clone(), name, _presence: presence.and_then(Result::ok), link })
    }

    /// Everything that was taken over is in use: the keeper may go.
    pub(crate) fn confirm(&mut self) {
        if let Some(link) = self.link.take()
            && let Err(error) = client::confirm(&link)
        {
            tracing::debug!(component = "runtime", %error, "the keeper has gone already");
        }
    }

    /// Gives all listening sockets to the keeper, if there is one.
    pub(crate) async fn give(&mut self, sockets: &Sockets) {
        if self.link.take().is_some() {
            // Never ready: the keeper still has what we took, for the next worker.
            tracing::info!(component = "runtime", "the sockets stay with the keeper");
            sockets.set_handed_over();
            return;
        }
        let passed: Vec<Passed> = sockets.listening().into_iter().map(describe).collect();
        let (path, name, count) = (self.config.socket.clone(), self.name.clone(), passed.len());
        if count == 0 {
            return;
        }
        let begun = Instant::now();
        let outcome = blocking(move || client::give(&path, &name, &passed)).await;
        match outcome {
            Some(Ok(())) => {
                sockets.set_handed_over();
                let took = begun.elapsed();
                tracing::info!(component = "runtime", sockets = count, ?took, "handed sockets over to the keeper");
            }
            Some(Err(ClientError::NoKeeper)) => {
                tracing::debug!(component = "runtime", "no keeper is there; sockets are closed");
            }
            Some(Err(error)) => {
                tracing::warn!(component = "runtime", %error, "sockets are not handed over; new connections are refused until the next start");
            }
            None => {}
        }
    }
}

async fn take(config: &config::Handover, name: &str) -> Option<(Vec<Passed>, UnixStream)> {
    let until = Instant::now() + Duration::from(config.wait);
    let mut waiting = false;
    loop {
        let (path, name) = (config.socket.clone(), name.to_owned());
        let (alone, taken) = blocking(move || look(&path, &name)).await?;
        match taken {
            Ok(Taken::Sockets(passed, link)) => return Some((passed, link)),
            Err(ClientError::NoKeeper) => return None,
            Ok(Taken::Empty) if alone => return None,
            Ok(Taken::Empty) if Instant::now() >= until => {
                tracing::warn!(
                    component = "runtime",
                    "another process runs and has handed nothing over in time (runtime.handover.wait); going on without"
                );
                return None;
            }
            Ok(Taken::Empty) => {
                if !std::mem::replace(&mut waiting, true) {
                    let path = config.socket.display();
                    tracing::info!(component = "runtime", keeper = %path, "waiting for the sockets of the process before");
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(error) => {
                tracing::warn!(component = "runtime", %error, "sockets are not taken over");
                return None;
            }
        }
    }
}

/// Whether we are the only worker, and what the keeper has. In this order: a worker that has ended before the first
/// look had given everything before the second.
fn look(path: &Path, name: &str) -> (bool, Result<Taken, ClientError>) {
    let alone = !Presence::of_another(path).unwrap_or(false);
    (alone, client::take(path, name))
}

fn describe(listening: Listening) -> Passed {
    let Listening { owner, kind, address, socket } = listening;
    let owner: String = owner.chars().take(128).collect();
    Passed { description: json!({ "kind": kind, "address": address, "owner": owner }), socket }
}

async fn stop_signal(signals: &mut Signals) -> Received {
    loop {
        let signal = signals.next().await;
        if matches!(signal, Received::Terminate | Received::Interrupt | Received::Quit) {
            return signal;
        }
    }
}

/// Runs a short conversation beside the runtime; `None` when it panicked, which the panic's hook has told.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    spawn_blocking(work).await.ok()
}
