//! Rollouts among pods whose kubelet takes its time, under a controller that is killed at any moment.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::BTreeMap;

use outrigger_rollout::{
    Action, Do, HandOver, Keeper, KeeperState, Moment, OnFailure, Phase, Pod, Rollout, Share, Sidecar, SidecarState,
    Spec, Status, Traffic, plan,
};
use proptest::prelude::*;

const OLD: &str = "outrigger:1";
const NEW: &str = "outrigger:2";

/// What is wrong with the next image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// There is no such image.
    Missing,
    /// Its sidecar ends again and again, in the pods with these numbers.
    Crashes(Vec<usize>),
    /// It runs, and requests fail.
    Errors,
}

/// A cluster: pods, and a kubelet that does something now and then.
struct World {
    pods: Vec<Pod>,
    rollout: Rollout,
    fault: Fault,
    now: u64,
    serial: u64,
    /// Pods whose image was ever changed to the next one.
    changed: Vec<String>,
    most: BTreeMap<String, usize>,
}

fn pod(namespace: &str, workload: &str, number: usize, image: &str, serial: u64) -> Pod {
    Pod {
        namespace: namespace.to_owned(),
        name: format!("{workload}-{number}-{serial}"),
        uid: format!("uid-{serial}"),
        version: "1".to_owned(),
        created: Moment(0),
        workload: format!("Deployment/{workload}"),
        labels: BTreeMap::new(),
        leaving: false,
        running: true,
        ready: true,
        ip: "10.0.0.1".to_owned(),
        sidecar: Sidecar {
            place: "/spec/initContainers/0".to_owned(),
            image: image.to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            user: Some(15_000),
            group: Some(15_000),
            volume: Some(("outrigger-handover".to_owned(), "/run/outrigger".to_owned())),
            state: SidecarState {
                container: format!("{image}#first-{serial}"),
                running: Some(Moment(1)),
                ready: true,
                ..SidecarState::default()
            },
        },
        others: BTreeMap::from([("app".to_owned(), 0)]),
        keepers: Vec::new(),
        socket: Some("/run/outrigger/keeper.sock".to_owned()),
        record: None,
        traffic: None,
        refused: None,
    }
}

impl World {
    fn new(sizes: &[usize], spec: Spec, fault: Fault) -> Self {
        let rollout =
            Rollout { uid: "r".to_owned(), name: "next".to_owned(), generation: 1, spec, status: Status::default() };
        let mut world =
            Self { pods: Vec::new(), rollout, fault, now: 1000, serial: 0, changed: Vec::new(), most: BTreeMap::new() };
        for (at, size) in sizes.iter().enumerate() {
            for number in 0..*size {
                world.serial += 1;
                let namespace = if at % 2 == 0 { "blue" } else { "red" };
                world.pods.push(pod(namespace, &format!("w{at}"), number, OLD, world.serial));
            }
        }
        world
    }

    /// One pass of a controller. `budget` says how many writes it makes before it is killed; the status is the first.
    fn pass(&mut self, budget: usize) {
        for at in 0..self.pods.len() {
            let bad = self.fault == Fault::Errors && self.pods[at].sidecar.image == NEW;
            self.pods[at].traffic = Some(Traffic { requests: 100, errors: if bad { 50 } else { 1 } });
        }
        let plan = plan(&self.rollout, &self.pods, Moment(self.now));
        if budget == 0 {
            return;
        }
        self.rollout.status = plan.status;
        for action in plan.actions.iter().take(budget - 1) {
            self.apply(action);
        }
    }

    fn apply(&mut self, action: &Action) {
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.uid == action.uid) else { return };
        match &action.what {
            Do::Note(record) => pod.record = record.as_deref().cloned(),
            Do::Keeper { name, image } => {
                assert!(pod.keepers.iter().all(|keeper| keeper.name != *name), "each keeper has a fresh name");
                let state = KeeperState::Waiting(String::new(), String::new());
                pod.keepers.push(Keeper { name: name.clone(), image: image.clone(), state });
            }
            Do::Image(record) => {
                pod.record = Some((**record).clone());
                pod.sidecar.image = record.goal().to_owned();
                if record.goal() == NEW {
                    self.changed.push(pod.uid.clone());
                }
            }
        }
        let mut away = BTreeMap::<String, usize>::new();
        for pod in &self.pods {
            if pod.record.as_ref().is_some_and(|record| record.is_under_way()) {
                *away.entry(format!("{}/{}", pod.namespace, pod.workload)).or_default() += 1;
            }
        }
        for (workload, count) in away {
            let most = self.most.entry(workload).or_default();
            *most = (*most).max(count);
        }
    }

    /// The kubelet does the next thing that is due in a pod.
    fn kubelet(&mut self, at: usize) {
        let (now, serial) = (Moment(self.now), &mut self.serial);
        let missing = |image: &str| self.fault == Fault::Missing && image == NEW;
        let Some(pod) = self.pods.get_mut(at) else { return };
        let number: usize = pod.name.split('-').nth(1).unwrap().parse().unwrap();
        for keeper in &mut pod.keepers {
            match &keeper.state {
                KeeperState::Waiting(..) if missing(&keeper.image) => {
                    keeper.state = KeeperState::Waiting("ImagePullBackOff".to_owned(), "not found".to_owned());
                    return;
                }
                KeeperState::Waiting(..) => return keeper.state = KeeperState::Running(now),
                KeeperState::Running(since) if since.age(now) > 90 => return keeper.state = KeeperState::Ended(4),
                _ => {}
            }
        }
        let state = &mut pod.sidecar.state;
        let made_for = format!("{}#", pod.sidecar.image);
        let is_new = state.container.starts_with(&made_for);
        if state.running.is_some() && !is_new {
            *state = SidecarState {
                restarts: state.restarts,
                container: state.container.clone(),
                ..SidecarState::default()
            };
            pod.ready = false;
            // The keeper has the sockets now, and another patience.
            for keeper in pod.keepers.iter_mut().filter(|keeper| matches!(keeper.state, KeeperState::Running(_))) {
                keeper.state = KeeperState::Running(now);
            }
        } else if state.running.is_none() {
            *serial += 1;
            state.container = format!("{}#{serial}", pod.sidecar.image);
            (state.running, state.waiting) = (Some(now), None);
            state.restarts += 1;
        } else if matches!(&self.fault, Fault::Crashes(pods) if pods.contains(&number)) && pod.sidecar.image == NEW {
            state.running = None;
            state.ready = false;
            state.waiting = Some(("CrashLoopBackOff".to_owned(), String::new()));
        } else if !state.ready {
            state.ready = true;
            let keeper = pod.keepers.iter_mut().rev().find(|keeper| matches!(keeper.state, KeeperState::Running(_)));
            keeper.into_iter().for_each(|keeper| keeper.state = KeeperState::Ended(0));
        } else {
            pod.ready = true;
        }
    }

    /// An owner puts another pod in the place of one.
    fn replace(&mut self, at: usize, image: &str) {
        let Some(gone) = self.pods.get(at) else { return };
        self.serial += 1;
        let workload = gone.workload.trim_start_matches("Deployment/").to_owned();
        let number = gone.name.split('-').nth(1).unwrap().parse().unwrap();
        self.pods[at] = pod(&gone.namespace.clone(), &workload, number, image, self.serial);
    }

    /// Goes on, by chance, until the rollout has ended.
    fn run(&mut self, chance: &[u8]) -> Phase {
        let mut chance = chance.iter().copied().cycle();
        for round in 0..20_000 {
            let kills = round < 600;
            let dice = chance.next().unwrap();
            self.pass(if kills { usize::from(dice % 4) } else { usize::MAX });
            for at in 0..self.pods.len() {
                if chance.next().unwrap() % 2 == 0 || !kills {
                    self.kubelet(at);
                }
            }
            self.now += 1;
            if kills && dice == 7 {
                // No controller is there for minutes; the kubelet is.
                for _ in 0..20 {
                    (0..self.pods.len()).for_each(|at| self.kubelet(at));
                    self.now += 10;
                }
            }
            if self.rollout.status.phase.has_ended() {
                return self.rollout.status.phase;
            }
        }
        panic!("it does not end: {:#?}\n{:#?}", self.rollout.status, self.pods);
    }

    fn all_have(&self, image: &str) -> bool {
        self.pods.iter().all(|pod| pod.sidecar.image == image)
    }
}

fn spec() -> impl Strategy<Value = Spec> {
    (0..4u32, 1..4u32, 1..5u32, 0..3u32).prop_map(|(canary, max, parallel, ready)| Spec {
        image: NEW.to_owned(),
        canary: Share::Number(canary),
        canary_seconds: canary * 3,
        max_unavailable: Share::Number(max),
        parallel,
        min_ready_seconds: ready,
        // The kubelet of these worlds is never late; that nobody was there for a while is no fault of a pod.
        progress_deadline_seconds: 3600,
        ..Spec::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn all_pods_have_the_image_at_the_end(
        sizes in prop::collection::vec(1..5usize, 1..5), spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256),
    ) {
        let most = spec.max_unavailable.down(1);
        let mut world = World::new(&sizes, spec, Fault::Nothing);
        prop_assert_eq!(world.run(&chance), Phase::Completed);
        prop_assert!(world.all_have(NEW));
        prop_assert!(world.most.values().all(|away| *away <= most), "{:?}", world.most);
        prop_assert!(world.pods.iter().all(|pod| pod.sidecar.state.restarts == 1), "each sidecar was replaced once");
    }

    #[test]
    fn pods_come_and_go_meanwhile(
        sizes in prop::collection::vec(1..4usize, 1..4), spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256),
        replaced in prop::collection::vec((0..12usize, any::<bool>()), 0..6),
    ) {
        let mut world = World::new(&sizes, spec, Fault::Nothing);
        for (at, new) in replaced {
            for dice in &chance[..16] {
                world.pass(usize::from(dice % 4));
                world.kubelet(usize::from(*dice) % world.pods.len());
                world.now += 1;
            }
            if !world.rollout.status.phase.has_ended() {
                world.replace(at % world.pods.len(), if new { NEW } else { OLD });
            }
        }
        prop_assert_eq!(world.run(&chance), Phase::Completed);
        prop_assert!(world.all_have(NEW));
    }

    #[test]
    fn an_image_that_is_not_there_changes_no_pod(
        sizes in prop::collection::vec(1..5usize, 1..5), spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256),
    ) {
        let mut world = World::new(&sizes, spec, Fault::Missing);
        prop_assert_eq!(world.run(&chance), Phase::RolledBack);
        prop_assert!(world.all_have(OLD) && world.changed.is_empty());
        prop_assert_eq!(world.pods.iter().filter(|pod| !pod.keepers.is_empty()).count(), 1, "it stops at the first pod");
        prop_assert!(world.pods.iter().all(|pod| pod.record.is_none()));
        prop_assert!(world.rollout.status.message.contains("ImagePullBackOff"), "{}", world.rollout.status.message);
    }

    #[test]
    fn one_pod_that_fails_takes_all_back(
        sizes in prop::collection::vec(2..5usize, 1..5), spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256),
        late in any::<bool>(),
    ) {
        let most = spec.max_unavailable.down(1);
        let mut world = World::new(&sizes, spec, Fault::Crashes(if late { vec![1] } else { vec![0, 1, 2, 3, 4] }));
        prop_assert_eq!(world.run(&chance), Phase::RolledBack);
        prop_assert!(world.all_have(OLD));
        prop_assert!(late || world.changed.len() == 1, "it stops at the first pod: {:?}", world.changed);
        prop_assert!(world.most.values().all(|away| *away <= most), "{:?}", world.most);
        prop_assert_eq!(world.rollout.status.rolled_back as usize, world.changed.len());
    }

    #[test]
    fn requests_that_fail_take_all_back(spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256)) {
        let mut world = World::new(&[2, 3], spec, Fault::Errors);
        prop_assert_eq!(world.run(&chance), Phase::RolledBack);
        prop_assert!(world.all_have(OLD) && world.changed.len() == 1);
        let message = &world.rollout.status.message;
        prop_assert!(message.contains("50.0% of its requests"), "{}", message);
    }

    #[test]
    fn who_asks_for_it_gets_all_back(
        sizes in prop::collection::vec(1..4usize, 1..4), spec in spec(), chance in prop::collection::vec(any::<u8>(), 64..256),
        after in 0..200usize,
    ) {
        let mut world = World::new(&sizes, spec, Fault::Nothing);
        for dice in chance.iter().cycle().take(after) {
            world.pass(usize::from(dice % 4));
            world.kubelet(usize::from(*dice) % world.pods.len());
            world.now += 1;
        }
        world.rollout.spec.rollback = true;
        if world.rollout.status.phase == Phase::Completed {
            world.pass(usize::MAX);
        }
        prop_assert_eq!(world.run(&chance), Phase::RolledBack);
        prop_assert!(world.all_have(OLD));
    }
}

fn steady() -> Spec {
    Spec { image: NEW.to_owned(), canary_seconds: 0, min_ready_seconds: 0, ..Spec::default() }
}

/// Passes and kubelets without any chance.
fn go(world: &mut World, rounds: usize) {
    for _ in 0..rounds {
        world.pass(usize::MAX);
        (0..world.pods.len()).for_each(|at| world.kubelet(at));
        world.now += 1;
    }
}

#[test]
fn who_pauses_gets_no_further_pod() {
    let mut world = World::new(&[4], steady(), Fault::Nothing);
    while world.changed.len() < 2 {
        go(&mut world, 1);
    }
    world.rollout.spec.paused = true;
    go(&mut world, 50);
    assert_eq!((world.changed.len(), world.rollout.status.phase), (2, Phase::Paused));
    assert!(world.pods.iter().all(|pod| pod.ready), "what was begun is brought to its end");
    world.rollout.spec.paused = false;
    assert_eq!(world.run(&[1]), Phase::Completed);
}

#[test]
fn a_failure_pauses_where_that_is_asked_for() {
    let spec = Spec { on_failure: OnFailure::Pause, ..steady() };
    let mut world = World::new(&[3], spec, Fault::Missing);
    go(&mut world, 30);
    assert_eq!((world.rollout.status.phase, world.changed.len()), (Phase::Paused, 0));
    assert!(world.rollout.status.failure.is_some());
    // Somebody has pushed the image.
    world.fault = Fault::Nothing;
    world.rollout.spec.attempt = 1;
    assert_eq!(world.run(&[1]), Phase::Completed);
    assert_eq!(world.rollout.status.failure, None);
}

#[test]
fn namespaces_go_one_after_the_other_and_canaries_first() {
    let spec = Spec {
        namespaces: vec!["red".to_owned(), "blue".to_owned()],
        canary: Share::Number(1),
        canary_seconds: 20,
        max_unavailable: Share::Number(5),
        ..steady()
    };
    let mut world = World::new(&[3, 3], spec, Fault::Nothing);
    while world.changed.is_empty() {
        go(&mut world, 1);
    }
    assert_eq!(world.pods.iter().find(|pod| pod.uid == world.changed[0]).unwrap().namespace, "red");
    go(&mut world, 15);
    assert_eq!(
        (world.changed.len(), world.rollout.status.phase),
        (1, Phase::Canary),
        "{}",
        world.rollout.status.message
    );
    assert_eq!(world.run(&[1]), Phase::Completed);
    let order: Vec<&str> = world
        .changed
        .iter()
        .map(|uid| world.pods.iter().find(|pod| pod.uid == *uid).unwrap().namespace.as_str())
        .collect();
    assert_eq!(order, ["red", "red", "red", "blue", "blue", "blue"]);
}

#[test]
fn of_a_workload_that_is_not_well_no_further_pod_goes() {
    let mut world = World::new(&[2], steady(), Fault::Nothing);
    // Its application is not ready, whatever the sidecar does.
    world.pods[0].ready = false;
    let others = world.pods[1].uid.clone();
    for _ in 0..40 {
        world.pass(usize::MAX);
        (0..2).for_each(|at| world.kubelet(at));
        world.pods[0].ready = false;
        world.now += 1;
    }
    assert!(!world.changed.contains(&others), "the only pod that serves stays");
    assert_eq!(world.changed.len(), 1, "one that serves nobody may be changed");
    assert!(world.rollout.status.message.contains("maxUnavailable"), "{}", world.rollout.status.message);
}

#[test]
fn a_pod_that_cannot_hand_over_is_passed_over_unless_somebody_says_otherwise() {
    let mut world = World::new(&[1, 1], steady(), Fault::Nothing);
    world.pods[0].socket = None;
    assert_eq!(world.run(&[1]), Phase::Completed);
    assert_eq!((world.rollout.status.updated, world.rollout.status.skipped), (1, 1));
    assert!(world.rollout.status.pods[0].about.contains("runtime.handover"), "{:?}", world.rollout.status.pods);

    let mut world = World::new(&[1, 1], Spec { hand_over: HandOver::IfPossible, ..steady() }, Fault::Nothing);
    world.pods[0].socket = None;
    assert_eq!(world.run(&[1]), Phase::Completed);
    assert!(world.all_have(NEW) && world.pods[0].keepers.is_empty());
}

#[test]
fn what_takes_too_long_has_failed() {
    let mut world = World::new(&[2], steady(), Fault::Nothing);
    // Nobody starts the keeper.
    for _ in 0..200 {
        world.pass(usize::MAX);
        world.now += 1;
    }
    assert_eq!(world.rollout.status.phase, Phase::RolledBack);
    assert!(world.rollout.status.message.contains("did not start within 120 s"), "{}", world.rollout.status.message);
}

#[test]
fn a_change_that_is_refused_is_a_failure() {
    let mut world = World::new(&[2], steady(), Fault::Nothing);
    world.pass(usize::MAX);
    world.pods.iter_mut().for_each(|pod| pod.refused = Some("a policy denies it".to_owned()));
    assert_eq!(world.run(&[1]), Phase::RolledBack);
    assert!(world.changed.is_empty());
    assert!(world.rollout.status.message.contains("a policy denies it"), "{}", world.rollout.status.message);
}
