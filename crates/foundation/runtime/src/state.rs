//! The life of one component, as a pure state machine, and the order of the stop.
//!
//! In: a state and an event. Out: the next state, or nothing when the event does not
//! apply. Promise: only a new run leads from `Failed` back to `Ready`; what a component
//! says after its end, or while it stops, never makes it look healthy.

use std::fmt;

/// When a component is stopped. Phases follow one another in this order; the application that `run -- CMD`
/// started exits between `Inbound` and `Outbound`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopPhase {
    /// Traffic to the application: first, while the application still answers.
    Inbound,
    /// Traffic from the application, and what decides about it: after the application has exited.
    Outbound,
    /// Log forwarding: everything the application wrote is read to its end and flushed.
    Logs,
    /// The exporter: a last push.
    Metrics,
    /// Secrets: leases are revoked.
    Secrets,
    /// Identity: last, for all others may need it to say goodbye.
    Identity,
}

impl StopPhase {
    /// All phases, in order.
    pub const ALL: [Self; 6] =
        [Self::Inbound, Self::Outbound, Self::Logs, Self::Metrics, Self::Secrets, Self::Identity];

    /// The phase's name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
            Self::Logs => "logs",
            Self::Metrics => "metrics",
            Self::Secrets => "secrets",
            Self::Identity => "identity",
        }
    }
}

impl fmt::Display for StopPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a component is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Off in the config.
    Disabled,
    /// On, and waiting for the components it needs.
    Pending,
    /// Running, not ready yet.
    Starting,
    /// Running, and says what it waits for; also after it has been ready.
    Waiting,
    /// Doing its work.
    Ready,
    /// Doing its work with the last good state of something.
    Degraded,
    /// Its run ended although nobody asked; it will be started again.
    Failed,
    /// Asked to stop.
    Stopping,
    /// Stopped for good.
    Stopped,
}

/// What happens to a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The config turns it on.
    Enable,
    /// The config has turned it off, and it does not run.
    Disable,
    /// Its needs are met: a run begins.
    Start,
    /// The run says it is ready.
    ReportReady,
    /// The run says it waits for something.
    ReportWaiting,
    /// The run says it serves the last good state.
    ReportDegraded,
    /// The run ended.
    Exit,
    /// The wait after a failure is over.
    Retry,
    /// It is asked to stop.
    Stop,
}

impl State {
    /// The next state, or `None` when the event does not apply here.
    pub(crate) fn on(self, event: Event) -> Option<Self> {
        use State::*;
        Some(match (self, event) {
            (Disabled | Stopped, Event::Enable) => Pending,
            (Pending | Failed | Stopped, Event::Disable) => Disabled,
            (Pending, Event::Start) => Starting,
            (Starting | Waiting | Ready | Degraded, Event::ReportReady) => Ready,
            (Starting | Waiting | Ready | Degraded, Event::ReportWaiting) => Waiting,
            (Starting | Waiting | Ready | Degraded, Event::ReportDegraded) => Degraded,
            (Starting | Waiting | Ready | Degraded, Event::Exit) => Failed,
            (Starting | Waiting | Ready | Degraded, Event::Stop) => Stopping,
            (Pending | Failed, Event::Stop) => Stopped,
            (Stopping, Event::Exit) => Stopped,
            (Failed, Event::Retry) => Pending,
            _ => return None,
        })
    }

    /// Whether others may build on it.
    pub(crate) fn is_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }

    /// Whether a run is under way.
    #[cfg(test)]
    pub(crate) fn is_running(self) -> bool {
        matches!(self, Self::Starting | Self::Waiting | Self::Ready | Self::Degraded | Self::Stopping)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Enable),
            Just(Event::Disable),
            Just(Event::Start),
            Just(Event::ReportReady),
            Just(Event::ReportWaiting),
            Just(Event::ReportDegraded),
            Just(Event::Exit),
            Just(Event::Retry),
            Just(Event::Stop),
        ]
    }

    proptest! {
        #[test]
        fn only_a_run_that_was_started_and_has_not_ended_is_ever_ready(events in prop::collection::vec(event(), 0..64)) {
            let mut state = State::Disabled;
            let mut running = false;
            for event in events {
                let Some(next) = state.on(event) else { continue };
                match event {
                    Event::Start => { prop_assert!(!running); running = true; }
                    Event::Exit => { prop_assert!(running); running = false; }
                    _ => {}
                }
                prop_assert_eq!(next.is_running(), running, "{:?} --{:?}-> {:?}", state, event, next);
                prop_assert!(!next.is_ready() || running);
                if state == State::Failed {
                    prop_assert!(matches!(next, State::Pending | State::Disabled | State::Stopped));
                }
                if state == State::Stopping {
                    prop_assert_eq!(next, State::Stopped);
                }
                state = next;
            }
        }

        #[test]
        fn after_a_stop_every_component_comes_to_rest(events in prop::collection::vec(event(), 0..32)) {
            let state = events.into_iter().fold(State::Disabled, |state, event| state.on(event).unwrap_or(state));
            let state = state.on(Event::Stop).unwrap_or(state);
            let state = state.on(Event::Exit).unwrap_or(state);
            prop_assert!(matches!(state, State::Stopped | State::Disabled));
        }
    }

    #[test]
    fn phases_are_stopped_in_their_order() {
        assert!(StopPhase::ALL.is_sorted());
    }
}
