//! How a component learns that it is to stop, and until when.
//!
//! In: one deadline, set by the supervisor and perhaps brought forward by a second signal.
//! Out: futures a component can wait on. Promise: a request once made is never withdrawn
//! and its deadline never moves back.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A deadline so far away that nothing waits for it.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The component's side: asks whether it is to stop, and until when.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<Instant>>);

/// The supervisor's side: requests the stop.
#[derive(Debug)]
pub struct StopSource(watch::Sender<Option<Instant>>);

impl Stop {
    /// A pair of both sides; features use it in tests, the supervisor for each run of a component.
    pub fn channel() -> (StopSource, Self) {
        let (sender, receiver) = watch::channel(None);
        (StopSource(sender), Self(receiver))
    }

    /// Resolves when the stop is requested (at once if it was already). Cancel-safe.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // A supervisor that is gone wants a stop too.
        let _ = receiver.wait_for(Option::is_some).await;
    }

    /// Whether the stop was requested.
    pub fn is_requested(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
    }

    /// When the stop must be over; before a request, a time far away. It may come nearer later.
    pub fn deadline(&self) -> Instant {
        self.0.borrow().unwrap_or_else(|| Instant::now() + FAR)
    }

    /// How much of the stop's time is left.
    pub fn remaining(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    /// Resolves when a requested stop has used up its time, also when the deadline is brought forward. Cancel-safe.
    pub async fn overdue(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let deadline = self.deadline();
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                changed = receiver.changed() => if changed.is_err() { return },
            }
        }
    }
}

impl StopSource {
    /// Requests the stop, or brings its deadline forward.
    pub fn request(&self, deadline: Instant) {
        self.0.send_if_modified(|current| {
            let earlier = current.is_none_or(|now| deadline < now);
            if earlier {
                *current = Some(deadline);
            }
            earlier
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_only_comes_nearer() {
        let (source, stop) = Stop::channel();
        assert!(!stop.is_requested());
        let begin = Instant::now();
        source.request(begin + Duration::from_secs(10));
        source.request(begin + Duration::from_secs(20));
        stop.requested().await;
        assert_eq!(stop.remaining(), Duration::from_secs(10));
        let hastened = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            source.request(begin + Duration::from_secs(2));
            std::future::pending::<()>().await;
        };
        tokio::select! { () = hastened => {}, () = stop.overdue() => {} }
        assert_eq!(begin.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_supervisor_that_is_gone_means_stop() {
        let (source, stop) = Stop::channel();
        drop(source);
        stop.requested().await;
        assert!(stop.is_requested());
    }
}
