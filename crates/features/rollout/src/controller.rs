//! Runs rollouts, as long as we lead.
//!
//! In: `SidecarRollout`s and pods of the API server. Out: changes to pods, statuses. Promise: one rollout at a time, the
//! oldest first, and the others say what they wait for; a status is written before what follows from it is done; what the
//! API server refuses is told in the status, with the right that is missing; without the resource's definition nothing
//! is done and nothing is wrong.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_http::Resolver;
use outrigger_kubernetes::definitions::ROLLOUTS;
use outrigger_kubernetes::resources::PODS;
use outrigger_kubernetes::{ApiError, Client, Duty, Key, Leader, Patch, Selection, Store, Write, informer};
use outrigger_runtime::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, sleep};

use crate::change::{Action, Do, PatchKind};
use crate::moment::Moment;
use crate::plan::{Rollout, plan};
use crate::pod::{KeeperState, Pod};
use crate::record::Stage;
use crate::spec::Spec;
use crate::status::{Phase, Status};
use crate::traffic::Metrics;
use crate::view::Ahead;

/// A rollout that is on its way is looked at so often.
const PACE: Duration = Duration::from_millis(500);
/// Whether the definition has come is looked at so often.
const DEFINED: Duration = Duration::from_secs(10);
/// All rollouts are looked at so often, whether anything was told or not.
const LOOK: Duration = Duration::from_secs(1);

/// Runs rollouts.
pub struct Rollouts {
    metrics: Metrics,
    problem: Mutex<Option<String>>,
}

/// What is kept of a rollout by the informer: enough to know whether it is on its way.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    created: String,
    ended: bool,
}

impl Rollouts {
    /// `resolver` finds nothing but pods by their addresses.
    pub fn new(resolver: Resolver) -> Self {
        Self { metrics: Metrics::new(resolver), problem: Mutex::default() }
    }

    fn tell(&self, problem: Option<String>) {
        *self.problem.lock() = problem;
    }

    /// Waits until the API server knows `SidecarRollout`, and lets us see them. Until somebody set that up rollouts are off,
    /// which is no fault: without the definition, the right is what is found missing.
    async fn defined(&self, client: &Client) {
        let mut told = false;
        loop {
            match client.list(ROLLOUTS.all(), &Selection::fields("metadata.name=none")).await {
                Ok(_) => return self.tell(None),
                Err(error) if error.is_not_found() || error.is_forbidden() => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!(
                            component = "controller",
                            why = %error,
                            "rollouts are off; `outrigger install … | kubectl apply -f -` brings what they need"
                        );
                    }
                    self.tell(None);
                }
                Err(error) => self.tell(Some(error.to_string())),
            }
            sleep(DEFINED).await;
        }
    }

    async fn lead(&self, leader: &Leader, rollouts: &Store<Known>) {
        loop {
            rollouts.synced().await;
            self.tell(rollouts.problem());
            if let Some(first) = under_way(rollouts).first() {
                self.roll(leader, first, rollouts).await;
            }
            sleep(LOOK).await;
        }
    }

    /// Tells those that come later what they wait for.
    async fn hold(&self, client: &Client, first: &Key, others: &[Key]) -> Result<(), ApiError> {
        for key in others {
            let Some(object) = client.find(ROLLOUTS.global(&key.name)).await? else { continue };
            let before = read(&object).map(|rollout| rollout.status).unwrap_or_default();
            let message =
                format!("waits for the rollout `{}` to end; `outrigger upgrade rollback {0}` ends it", first.name);
            let status = Status { phase: Phase::Pending, message, ..before };
            self.write(client, &object, &status).await?;
        }
        Ok(())
    }

    /// Runs one rollout until it has ended, or is gone. Cancel-safe.
    async fn roll(&self, leader: &Leader, key: &Key, rollouts: &Store<Known>) {
        let (following, pods) = informer(leader.client.clone(), PODS.all(), Selection::default(), Pod::read);
        tokio::select! {
            () = following.run() => {}
            () = self.passes(leader, key, &pods, rollouts) => {}
        }
    }

    async fn passes(&self, leader: &Leader, key: &Key, pods: &Store<Pod>, rollouts: &Store<Known>) {
        pods.synced().await;
        let mut ahead = Ahead::default();
        // What the API server would not take, by pod: it would not take it again.
        let mut refused: HashMap<String, String> = HashMap::new();
        // Why nothing goes on, such as a right that is missing.
        let mut trouble: Option<String> = None;
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut passes = 0_u32;
        loop {
            pace.tick().await;
            if !leader.leadership.leads() {
                continue;
            }
            let result = self.pass(leader, key, pods, &mut ahead, &mut refused, trouble.as_deref()).await;
            trouble = result.as_ref().err().map(ToString::to_string).or_else(|| pods.problem());
            self.tell(trouble.clone());
            if matches!(result, Ok(true)) {
                return;
            }
            // Those that wait are told what for, now and then.
            let others: Vec<Key> = under_way(rollouts).into_iter().filter(|other| other != key).collect();
            if passes.is_multiple_of(8)
                && let Err(error) = self.hold(&leader.client, key, &others).await
            {
                trouble = Some(error.to_string());
            }
            passes = passes.wrapping_add(1);
        }
    }

    /// One pass; whether nothing is left to be done.
    async fn pass(
        &self,
        leader: &Leader,
        key: &Key,
        pods: &Store<Pod>,
        ahead: &mut Ahead,
        refused: &mut HashMap<String, String>,
        trouble: Option<&str>,
    ) -> Result<bool, ApiError> {
        let client = &leader.client;
        let Some(object) = client.find(ROLLOUTS.global(&key.name)).await? else { return Ok(true) };
        let Some(rollout) = read(&object) else { return Ok(true) };
        let mut pods = ahead.pods(pods);
        for pod in &mut pods {
            if wants_traffic(&rollout, pod) {
                pod.traffic = self.metrics.of(pod).await;
            }
            pod.refused = refused.get(&pod.uid).cloned();
        }
        let mut plan = plan(&rollout, &pods, now());
        if let Some(trouble) = trouble.filter(|_| !plan.status.phase.has_ended()) {
            trouble.clone_into(&mut plan.status.message);
        }
        let turned = plan.status.phase != rollout.status.phase;
        if plan.status != rollout.status && !self.write(client, &object, &plan.status).await? {
            // It has changed meanwhile; the next pass sees it.
            return Ok(false);
        }
        if turned {
            tracing::info!(rollout = %key.name, phase = plan.status.phase.name(), message = %plan.status.message, "a rollout goes on");
        }
        for action in &plan.actions {
            if !leader.leadership.leads() {
                return Ok(false);
            }
            let Some(pod) = pods.iter().find(|pod| pod.uid == action.uid) else { continue };
            self.act(client, pod, action, ahead, refused).await?;
        }
        Ok(plan.actions.is_empty() && plan.status.phase.has_ended())
    }

    async fn act(
        &self,
        client: &Client,
        pod: &Pod,
        action: &Action,
        ahead: &mut Ahead,
        refused: &mut HashMap<String, String>,
    ) -> Result<(), ApiError> {
        let (kind, part, patch) = action.what.patch(pod);
        let how = match kind {
            PatchKind::Merge => Patch::Merge,
            PatchKind::Json => Patch::Json,
            PatchKind::Strategic => Patch::Strategic,
        };
        match client.patch(PODS.named(&action.namespace, &action.name).part(part), how, &patch, Write::Real).await {
            Ok(changed) => {
                tracing::debug!(namespace = %action.namespace, pod = %action.name, what = what(&action.what), "a pod of a rollout was changed");
                ahead.changed(Key::new(&action.namespace, &action.name), &changed);
                Ok(())
            }
            // It has changed, or gone; the next pass sees it.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) if is_refusal(&error) => {
                refused.insert(action.uid.clone(), error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a status of the version that was read; whether that still was the newest.
    async fn write(&self, client: &Client, object: &Value, status: &Status) -> Result<bool, ApiError> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let mut written = status.written(&object["status"], now());
        if written == object["status"] {
            return Ok(true);
        }
        // A merge leaves what it does not name.
        for (key, _) in object["status"].as_object().into_iter().flatten() {
            if written.get(key).is_none() {
                written[key] = Value::Null;
            }
        }
        let version = &object["metadata"]["resourceVersion"];
        let patch = json!({ "metadata": { "resourceVersion": version }, "status": written });
        match client.patch(ROLLOUTS.global(name).part("status"), Patch::Merge, &patch, Write::Real).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Duty for Rollouts {
    fn name(&self) -> &'static str {
        "rollouts"
    }

    fn run<'a>(&'a self, leader: &'a Leader) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // Who does not lead has no problem with it.
            let _calm = Calm(&self.problem);
            self.defined(&leader.client).await;
            let (following, store) = informer(leader.client.clone(), ROLLOUTS.all(), Selection::default(), known);
            tokio::select! {
                () = following.run() => {}
                () = self.lead(leader, &store) => {}
            }
        })
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().clone()
    }
}

/// Forgets the problem at its end.
struct Calm<'a>(&'a Mutex<Option<String>>);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Rollouts that have not ended, the oldest first.
fn under_way(rollouts: &Store<Known>) -> Vec<Key> {
    let mut found: Vec<_> = rollouts.all().into_iter().filter(|(_, known)| !known.ended).collect();
    found.sort_by(|a, b| (&a.1.created, &a.0).cmp(&(&b.1.created, &b.0)));
    found.into_iter().map(|(key, _)| key).collect()
}

/// What may be asked for again and again is no refusal of this very change.
fn is_refusal(error: &ApiError) -> bool {
    let Some(status) = error.status() else { return false };
    // A right that is missing is told, and may come; who else forbids is a policy.
    matches!(status.code, 400 | 403 | 422) && status.forbidden().is_none()
}

fn what(change: &Do) -> &'static str {
    match change {
        Do::Note(Some(record)) => match record.stage {
            Stage::Claimed => "its turn has come",
            Stage::Changed => "it is looked at again",
            Stage::Done => "it is well",
        },
        Do::Note(None) => "it has no part any more",
        Do::Keeper { .. } => "a keeper was added",
        Do::Image(_) => "its image was changed",
    }
}

/// Before its image is changed, and as long as it is looked at.
fn wants_traffic(rollout: &Rollout, pod: &Pod) -> bool {
    let Some(record) = pod.record.as_ref().filter(|record| record.rollout == rollout.uid) else { return false };
    match record.stage {
        Stage::Claimed => pod.keepers.iter().any(|keeper| matches!(keeper.state, KeeperState::Running(_))),
        Stage::Changed => pod.sidecar.state.ready && !record.back,
        Stage::Done => false,
    }
}

fn known(object: &Value) -> Option<Known> {
    let rollout = read(object)?;
    let taken_back = rollout.status.phase == Phase::Completed && rollout.spec.rollback;
    let created = object["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    Some(Known { created, ended: rollout.status.phase.has_ended() && !taken_back })
}

/// A `SidecarRollout`; `None` when its schema was another one.
fn read(object: &Value) -> Option<Rollout> {
    let metadata = &object["metadata"];
    let spec: Spec = serde_json::from_value(object["spec"].clone()).ok()?;
    let status = match &object["status"] {
        Value::Null => Status::default(),
        status => serde_json::from_value(status.clone()).ok()?,
    };
    Some(Rollout {
        uid: metadata["uid"].as_str()?.to_owned(),
        name: metadata["name"].as_str()?.to_owned(),
        generation: metadata["generation"].as_i64().unwrap_or(0),
        spec,
        status,
    })
}

fn now() -> Moment {
    Moment(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
