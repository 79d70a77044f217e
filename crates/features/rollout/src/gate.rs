//! Whether a pod whose image was changed is well.
//!
//! In: the pod, and what was noted when its image was changed. Out: well, not yet, or why never. Promise: an old
//! container is not taken for the new one; who is well stays so, and who has crashed does not become well by running again.

use crate::moment::Moment;
use crate::pod::{KeeperState, Pod, Traffic};
use crate::record::Record;
use crate::spec::Spec;

/// Fewer requests than these say nothing.
const ENOUGH: u64 = 20;
/// What a kubelet told of a sidecar that did not run may still be told so long after its image was changed; in seconds.
const STALE: u64 = 15;

/// What a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It is well.
    Well,
    /// What it waits for.
    NotYet(String),
    /// What is wrong with it.
    Broken(String),
}

/// Looks at a pod whose image was changed.
pub(crate) fn gate(spec: &Spec, pod: &Pod, record: &Record, now: Moment) -> Gate {
    match look(spec, pod, record, now) {
        Gate::NotYet(what) if record.at.age(now) > u64::from(spec.progress_deadline_seconds) => {
            Gate::Broken(format!("after {} s still: {what}", spec.progress_deadline_seconds))
        }
        gate => gate,
    }
}

fn look(spec: &Spec, pod: &Pod, record: &Record, now: Moment) -> Gate {
    let state = &pod.sidecar.state;
    if let Some((reason, message)) = &state.waiting
        && is_hopeless(reason)
        && (!record.waiting || record.at.age(now) > STALE)
    {
        return Gate::Broken(told(reason, message));
    }
    if state.restarts > record.restarts.saturating_add(1) {
        return Gate::Broken(format!("the next sidecar ended {} times", state.restarts - record.restarts - 1));
    }
    for (name, restarts) in &record.others {
        if pod.others.get(name).is_some_and(|now| now > restarts) {
            return Gate::Broken(format!("the container `{name}` was started again meanwhile"));
        }
    }
    if state.container == record.container {
        return Gate::NotYet("the former sidecar to end".to_owned());
    }
    let Some(since) = state.running else { return Gate::NotYet("the next sidecar to start".to_owned()) };
    if !state.ready {
        return Gate::NotYet("the next sidecar to be ready".to_owned());
    }
    if record.ready && !pod.ready {
        return Gate::NotYet("the pod to be ready".to_owned());
    }
    let keeper = record.keeper.as_ref().and_then(|name| pod.keepers.iter().find(|keeper| keeper.name == *name));
    match keeper.map(|keeper| &keeper.state) {
        None | Some(KeeperState::Ended(0)) => {}
        // On the way back there is nothing better than to go on.
        Some(_) if record.back => {}
        Some(KeeperState::Ended(code)) => {
            let why = match code {
                3 => ": the next sidecar did not come for them",
                4 => ": the former sidecar gave none",
                _ => "",
            };
            return Gate::Broken(format!("the sockets were not handed over (the keeper ended with {code}{why})"));
        }
        Some(_) => return Gate::NotYet("the sockets to be handed over".to_owned()),
    }
    if since.age(now) < u64::from(spec.min_ready_seconds) {
        return Gate::NotYet(format!("the next sidecar to have run for {} s", spec.min_ready_seconds));
    }
    if !record.back
        && let (Some(before), Some(after)) = (record.traffic, pod.traffic)
        && let Some(problem) = worse(spec, before, after)
    {
        return Gate::Broken(problem);
    }
    Gate::Well
}

/// What lets a container never start by itself.
pub(crate) fn is_hopeless(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "CrashLoopBackOff"
    )
}

/// A reason with its message, as one line that is not too long.
pub(crate) fn told(reason: &str, message: &str) -> String {
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

fn worse(spec: &Spec, before: Traffic, after: Traffic) -> Option<String> {
    let share = |traffic: Traffic| {
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more")]
        let share = 100.0 * traffic.errors as f64 / traffic.requests.max(1) as f64;
        share
    };
    let (was, is) = (share(before), share(after));
    let more = is - was > f64::from(spec.max_error_increase);
    (after.requests >= ENOUGH && more)
        .then(|| format!("{is:.1}% of its requests end in errors of a server, and {was:.1}% did before"))
}
