//! The next step of a rollout.
//!
//! In: the resource, all pods with a sidecar, the time. Out: changes to pods that may be made now, and the status. It
//! remembers nothing: where a pod is stands in the pod, that everything goes back stands in the status or in a pod that is
//! on its way back. Promise: what is changed first is told first: when the direction turns, the status is written before
//! any pod is touched.

use outrigger_kubernetes::names::KEEPER_IDLE;

use crate::change::{Action, Do};
use crate::gate::{Gate, gate, is_hopeless, told};
use crate::moment::Moment;
use crate::order::meant;
use crate::pod::{KeeperState, Pod};
use crate::record::{Record, Stage};
use crate::spec::{HandOver, OnFailure, Spec};
use crate::status::{Failure, MOST_NAMED, Phase, Status, Told};

/// A keeper that has waited for longer might end before the sidecar does; in seconds.
const KEEPER_FRESH: u64 = KEEPER_IDLE - 30;
/// A claim that is older when its keeper is added is renewed, so that the keeper has all of its time; in seconds.
const CLAIM_FRESH: u64 = 10;
/// A pod that starts is waited for, for so long after it was made; in seconds.
const STARTING: u64 = 120;

/// A `SidecarRollout`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Its UID.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// The generation of its spec.
    pub generation: i64,
    /// What is asked for.
    pub spec: Spec,
    /// How it stood.
    pub status: Status,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Changes to pods, at most one for each. Those that fail are planned again.
    pub actions: Vec<Action>,
    /// How it stands. To be written before the actions are done.
    pub status: Status,
}

/// Where a pod is.
enum Standing {
    /// It has the image.
    Updated,
    /// It waits for its turn.
    Outstanding,
    /// It is on its way; perhaps there is something to be done now.
    UnderWay(Step),
    /// It was changed, and has its former image again.
    Restored,
    /// It could not be brought back.
    Stuck(String),
    /// It is passed over.
    Skipped(String),
    /// It starts.
    Starting,
}

/// What becomes of a pod on its way.
enum Step {
    Wait(String),
    Act(Do),
    /// It failed on its way to the image.
    Fail(String),
}

/// What is to be done now, and how it stands.
pub fn plan(rollout: &Rollout, pods: &[Pod], now: Moment) -> Plan {
    let Rollout { spec, status, .. } = rollout;
    // One that is through can still be taken back.
    if status.phase.has_ended() && !(status.phase == Phase::Completed && spec.rollback) {
        let status = Status { observed_generation: rollout.generation, ..status.clone() };
        return Plan { actions: Vec::new(), status };
    }
    let pods = meant(spec, pods);
    let back = spec.rollback
        || status.phase == Phase::RollingBack
        || pods.iter().any(|pod| own(rollout, pod).is_some_and(|record| record.back));
    let mut planner = Planner { rollout, now, back, standings: Vec::new() };
    planner.standings = pods.iter().map(|pod| (*pod, planner.standing(pod))).collect();
    planner.plan()
}

/// What is noted in a pod of this rollout.
fn own<'a>(rollout: &Rollout, pod: &'a Pod) -> Option<&'a Record> {
    pod.record.as_ref().filter(|record| record.rollout == rollout.uid)
}

struct Planner<'a> {
    rollout: &'a Rollout,
    now: Moment,
    back: bool,
    standings: Vec<(&'a Pod, Standing)>,
}

impl<'a> Planner<'a> {
    fn spec(&self) -> &'a Spec {
        &self.rollout.spec
    }

    fn standing(&self, pod: &Pod) -> Standing {
        if let Some(record) = own(self.rollout, pod) {
            return match record.stage {
                Stage::Claimed => Standing::UnderWay(self.claimed(pod, record)),
                Stage::Changed => self.changed(pod, record),
                // Somebody else has changed it since: it is theirs.
                Stage::Done if pod.sidecar.image != record.goal() => {
                    Standing::Skipped("its image was changed by somebody else".to_owned())
                }
                Stage::Done if record.back => Standing::Restored,
                Stage::Done if self.back => Standing::Outstanding,
                Stage::Done => Standing::Updated,
            };
        }
        if pod.sidecar.image == self.spec().image {
            return Standing::Updated;
        }
        if self.back {
            return Standing::Skipped("it was not changed".to_owned());
        }
        if !pod.running {
            return match pod.created.age(self.now) < STARTING {
                true => Standing::Starting,
                false => Standing::Skipped("it does not start".to_owned()),
            };
        }
        if pod.socket.is_none() && self.spec().hand_over == HandOver::Required {
            return Standing::Skipped(
                "its sidecar cannot hand its sockets over (its config has no `runtime.handover`, or was injected by an older version)"
                    .to_owned(),
            );
        }
        Standing::Outstanding
    }

    /// A pod whose image is not changed yet.
    fn claimed(&self, pod: &Pod, record: &Record) -> Step {
        if self.back && !record.back {
            return Step::Act(Do::Note(None));
        }
        if record.attempt < self.spec().attempt && !record.back {
            return Step::Act(self.claim(pod, record.back));
        }
        if pod.sidecar.image != if record.back { record.to.as_str() } else { record.from.as_str() } {
            return Step::Act(Do::Note(None));
        }
        if let Some(why) = pod.refused.as_ref().filter(|_| !record.back) {
            return Step::Fail(why.clone());
        }
        let late = record.at.age(self.now) > u64::from(self.spec().progress_deadline_seconds);
        let change = || Step::Act(Do::Image(Box::new(self.change(pod, record))));
        // A pod is brought back even where that cannot be done gently.
        let fail = |why: String| if record.back { change() } else { Step::Fail(why) };
        let Some(name) = &record.keeper else { return change() };
        let other =
            |keeper: &&crate::pod::Keeper| keeper.name != *name && matches!(keeper.state, KeeperState::Running(_));
        let Some(keeper) = pod.keepers.iter().find(|keeper| keeper.name == *name) else {
            if pod.keepers.iter().any(|keeper| other(&keeper)) {
                return Step::Wait("an earlier keeper to end".to_owned());
            }
            if record.at.age(self.now) > CLAIM_FRESH {
                return Step::Act(self.claim(pod, record.back));
            }
            return Step::Act(Do::Keeper { name: name.clone(), image: record.goal().to_owned() });
        };
        match &keeper.state {
            KeeperState::Running(since) if since.age(self.now) <= KEEPER_FRESH => change(),
            KeeperState::Running(_) => Step::Wait("its keeper to end, which waited for too long".to_owned()),
            // It had nothing to do in its time, or its sockets went to a sidecar that crashed meanwhile.
            KeeperState::Ended(0 | 3 | 4) => Step::Act(self.claim(pod, record.back)),
            KeeperState::Ended(code) => fail(format!("its keeper ended with {code} before it had sockets")),
            KeeperState::Waiting(reason, message) if is_hopeless(reason) => {
                fail(format!("its keeper does not start: {}", told(reason, message)))
            }
            KeeperState::Waiting(..) if late => {
                fail(format!("its keeper did not start within {} s", self.spec().progress_deadline_seconds))
            }
            KeeperState::Waiting(..) => Step::Wait("its keeper to start".to_owned()),
        }
    }

    /// A pod whose image was changed.
    fn changed(&self, pod: &Pod, record: &Record) -> Standing {
        if pod.sidecar.image != record.goal() {
            // By somebody else, and then it is theirs.
            return Standing::UnderWay(Step::Act(Do::Note(None)));
        }
        let noted = |record: Record| Standing::UnderWay(Step::Act(Do::Note(Some(Box::new(record)))));
        if record.attempt < self.spec().attempt && !self.back {
            // Its time begins anew, and it may end once more.
            let restarts = pod.sidecar.state.restarts;
            return noted(Record { attempt: self.spec().attempt, at: self.now, restarts, ..record.clone() });
        }
        match gate(self.spec(), pod, record, self.now) {
            Gate::Well => noted(Record { stage: Stage::Done, at: self.now, ..record.clone() }),
            Gate::NotYet(what) => Standing::UnderWay(Step::Wait(what)),
            Gate::Broken(why) if record.back => Standing::Stuck(why),
            // It serves, though not well, and can hand over as any other.
            Gate::Broken(_) if self.back && pod.sidecar.state.ready => {
                Standing::UnderWay(Step::Act(self.claim(pod, true)))
            }
            // Its keeper may still hold the sockets; another one would have nobody to take them from.
            Gate::Broken(_) if self.back => {
                let record = Record { back: true, keeper: None, ..record.clone() };
                Standing::UnderWay(Step::Act(Do::Image(Box::new(self.change(pod, &record)))))
            }
            Gate::Broken(why) => Standing::UnderWay(Step::Fail(why)),
        }
    }

    /// A pod's turn comes, with a fresh keeper.
    fn claim(&self, pod: &Pod, back: bool) -> Do {
        let before = own(self.rollout, pod);
        let from = before.map_or_else(|| pod.sidecar.image.clone(), |record| record.from.clone());
        Do::Note(Some(Box::new(Record {
            rollout: self.rollout.uid.clone(),
            name: self.rollout.name.clone(),
            stage: Stage::Claimed,
            from,
            to: self.spec().image.clone(),
            back,
            attempt: self.spec().attempt,
            at: self.now,
            keeper: pod.socket.is_some().then(|| pod.next_keeper()),
            container: String::new(),
            restarts: 0,
            others: std::collections::BTreeMap::new(),
            waiting: false,
            ready: false,
            traffic: None,
        })))
    }

    /// What is noted when the image is changed.
    fn change(&self, pod: &Pod, record: &Record) -> Record {
        let state = &pod.sidecar.state;
        Record {
            stage: Stage::Changed,
            at: self.now,
            container: state.container.clone(),
            restarts: state.restarts,
            others: pod.others.clone(),
            waiting: state.running.is_none(),
            // One that was not ready before need not be so afterwards. On the way back the sidecar alone counts.
            ready: pod.ready && !record.back,
            traffic: pod.traffic,
            ..record.clone()
        }
    }

    fn plan(self) -> Plan {
        let mut status = self.counted();
        let before = &self.rollout.status;
        if status.started_at.is_none() {
            status.started_at = Some(self.now);
        }
        if !self.back
            && let Some(failure) = self.failure()
        {
            let reason = format!("pod {}/{}: {}", failure.namespace, failure.name, failure.reason);
            status.failure = Some(failure);
            if self.spec().on_failure == OnFailure::RollBack {
                status.phase = Phase::RollingBack;
                status.message = format!("rolls back: {reason}");
                // Told first, then done.
                return Plan { actions: Vec::new(), status };
            }
        }
        let failed = status.failure.clone().filter(|failure| failure.attempt == self.spec().attempt);
        if !self.back && failed.is_none() {
            status.failure = None;
        }
        let paused = !self.back && (self.spec().paused || failed.is_some());
        status.canary_passed = self.canary_passed(&status);
        let mut actions = self.steps();
        let claims = if paused { Vec::new() } else { self.claims(&status) };
        let blocked = claims.is_empty() && status.rolling == 0 && status.waiting > 0;
        actions.extend(claims);
        let starting = self.standings.iter().filter(|(_, standing)| matches!(standing, Standing::Starting)).count();
        let busy = status.rolling > 0 || status.waiting > 0 || (starting > 0 && !self.back);
        let stuck = self.standings.iter().find_map(|(pod, standing)| match standing {
            Standing::Stuck(why) => {
                Some(format!("pod {}/{} could not be brought back: {why}", pod.namespace, pod.name))
            }
            _ => None,
        });
        (status.phase, status.message) = if busy && self.back && before.phase != Phase::RollingBack {
            // Told first, then done.
            actions.clear();
            (Phase::RollingBack, "rolls back, as it was asked to".to_owned())
        } else if busy && self.back {
            (Phase::RollingBack, stuck.unwrap_or_else(|| before.message.clone()))
        } else if self.back {
            match stuck {
                Some(stuck) => (Phase::Failed, stuck),
                None => (Phase::RolledBack, rolled_back(&status)),
            }
        } else if busy && paused {
            let why = failed.map(|failed| format!("pod {}/{}: {}", failed.namespace, failed.name, failed.reason));
            (Phase::Paused, why.unwrap_or_else(|| "paused, as it was asked to".to_owned()))
        } else if busy {
            let phase = if status.canary_passed { Phase::Rolling } else { Phase::Canary };
            (phase, self.progress(&status, blocked))
        } else {
            (Phase::Completed, completed(&status))
        };
        if status.phase.has_ended() && status.finished_at.is_none() {
            status.finished_at = Some(self.now);
        } else if !status.phase.has_ended() {
            status.finished_at = None;
        }
        Plan { actions, status }
    }

    fn counted(&self) -> Status {
        let mut status = self.rollout.status.clone();
        status.observed_generation = self.rollout.generation;
        status.pods.clear();
        (status.total, status.updated, status.rolling) = (0, 0, 0);
        (status.waiting, status.rolled_back, status.skipped) = (0, 0, 0);
        let mut skipped = Vec::new();
        for (pod, standing) in &self.standings {
            status.total += 1;
            let told = |about: &str| Told {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                about: about.to_owned(),
            };
            match standing {
                Standing::Updated => status.updated += 1,
                Standing::Outstanding => status.waiting += 1,
                Standing::Starting => {}
                Standing::Restored => status.rolled_back += 1,
                Standing::UnderWay(step) => {
                    status.rolling += 1;
                    status.pods.push(match step {
                        Step::Wait(what) => told(&format!("waits for {what}")),
                        Step::Act(_) => told("goes on"),
                        Step::Fail(why) => told(&format!("failed: {why}")),
                    });
                }
                Standing::Stuck(why) => status.pods.push(told(&format!("could not be brought back: {why}"))),
                Standing::Skipped(_) if self.back => {}
                Standing::Skipped(why) => {
                    status.skipped += 1;
                    skipped.push(told(&format!("passed over: {why}")));
                }
            }
        }
        status.pods.extend(skipped);
        status.pods.truncate(MOST_NAMED);
        status
    }

    /// The first pod that failed.
    fn failure(&self) -> Option<Failure> {
        self.standings.iter().find_map(|(pod, standing)| match standing {
            Standing::UnderWay(Step::Fail(reason)) => Some(Failure {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                reason: reason.clone(),
                at: self.known_since(pod, reason),
                attempt: self.spec().attempt,
            }),
            _ => None,
        })
    }

    /// One that was told already keeps its time.
    fn known_since(&self, pod: &Pod, reason: &str) -> Moment {
        let known = self.rollout.status.failure.as_ref();
        let known =
            known.filter(|known| known.namespace == pod.namespace && known.name == pod.name && known.reason == reason);
        known.map_or(self.now, |known| known.at)
    }

    /// Pods that went to the image by this rollout and are well, and since when the last of them is.
    fn verified(&self) -> (usize, Moment) {
        let done = self.standings.iter().filter_map(|(pod, standing)| match standing {
            Standing::Updated => own(self.rollout, pod).map(|record| record.at),
            _ => None,
        });
        done.fold((0, Moment(0)), |(count, last), at| (count + 1, last.max(at)))
    }

    fn canaries(&self, status: &Status) -> usize {
        let others = status.skipped as usize + self.updated_by_others();
        self.spec().canary.up((status.total as usize).saturating_sub(others))
    }

    fn updated_by_others(&self) -> usize {
        let is =
            |pod: &Pod, standing: &Standing| matches!(standing, Standing::Updated) && own(self.rollout, pod).is_none();
        self.standings.iter().filter(|(pod, standing)| is(pod, standing)).count()
    }

    fn canary_passed(&self, status: &Status) -> bool {
        let (verified, last) = self.verified();
        let wanted = self.canaries(status);
        let looked = wanted == 0 || last.age(self.now) >= u64::from(self.spec().canary_seconds);
        status.canary_passed || (verified >= wanted && looked)
    }

    /// What is done to pods on their way.
    fn steps(&self) -> Vec<Action> {
        let act = |(pod, standing): &(&Pod, Standing)| match standing {
            Standing::UnderWay(Step::Act(what)) => Some(action(pod, what.clone())),
            _ => None,
        };
        self.standings.iter().filter_map(act).collect()
    }

    /// Whose turn comes.
    fn claims(&self, status: &Status) -> Vec<Action> {
        let mut claims: Vec<Action> = Vec::new();
        let mut under_way = status.rolling as usize;
        let (verified, _) = self.verified();
        let canaries = self.canaries(status);
        // The first one goes alone; so do canaries, which are only a few.
        let parallel = match (self.back, status.canary_passed && verified > 0) {
            (true, _) | (false, true) => self.spec().parallel.max(1) as usize,
            (false, false) => 1,
        };
        let begins = |standing: &Standing| {
            matches!(standing, Standing::UnderWay(_) | Standing::Outstanding | Standing::Starting)
        };
        // One namespace after the other.
        let turn = self.standings.iter().find(|(_, standing)| begins(standing)).map(|(pod, _)| pod.namespace.as_str());
        for (pod, standing) in &self.standings {
            let waits =
                matches!(standing, Standing::Outstanding) && (self.back || turn == Some(pod.namespace.as_str()));
            if !waits || !self.may_leave(pod, &claims) {
                continue;
            }
            let more = self.back || status.canary_passed || verified + under_way < canaries;
            if under_way >= parallel || !more {
                break;
            }
            under_way += 1;
            claims.push(action(pod, self.claim(pod, self.back)));
        }
        claims
    }

    /// Whether enough others of its workload are there.
    fn may_leave(&self, pod: &Pod, claims: &[Action]) -> bool {
        let of_it = |other: &&(&Pod, Standing)| other.0.namespace == pod.namespace && other.0.workload == pod.workload;
        let all = self.standings.iter().filter(of_it);
        let total = all.clone().count();
        let absent = |other: &Pod, standing: &Standing| {
            let claimed = claims.iter().any(|claim| claim.uid == other.uid);
            claimed || !other.ready || matches!(standing, Standing::UnderWay(_) | Standing::Stuck(_))
        };
        let away = all.filter(|(other, standing)| other.uid != pod.uid && absent(other, standing)).count();
        away < self.spec().max_unavailable.down(total)
    }

    fn progress(&self, status: &Status, blocked: bool) -> String {
        let (verified, last) = self.verified();
        let of = format!("{} of {} pods have the image", status.updated, status.total);
        if !status.canary_passed && status.rolling == 0 && verified > 0 && verified >= self.canaries(status) {
            let left = u64::from(self.spec().canary_seconds).saturating_sub(last.age(self.now));
            return format!("{of}; the canaries are looked at for {left} s more");
        }
        if blocked {
            return format!(
                "{of}; of no workload may another pod be away now (`maxUnavailable`): others of it are not ready"
            );
        }
        of
    }
}

fn action(pod: &Pod, what: Do) -> Action {
    Action { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone(), what }
}

fn skipped(status: &Status) -> String {
    if status.skipped == 0 { String::new() } else { format!("; {} passed over", status.skipped) }
}

fn completed(status: &Status) -> String {
    if status.total == 0 {
        return "there are no pods with a sidecar here".to_owned();
    }
    format!("{} of {} pods have the image{}", status.updated, status.total, skipped(status))
}

fn rolled_back(status: &Status) -> String {
    let why = status.failure.as_ref();
    let why = why.map(|failure| format!(": pod {}/{}: {}", failure.namespace, failure.name, failure.reason));
    format!("rolled back ({} pods changed and brought back){}", status.rolled_back, why.unwrap_or_default())
}
