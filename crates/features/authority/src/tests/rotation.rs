//! Roots over years in which controllers come, go, are killed at any moment and disagree about the
//! time: no workload ever meets a certificate that its bundle cannot vouch for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_runtime::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::document;
use crate::keeper::Keeper;
use crate::roots::{Root, Roots, Step, Timing};
use crate::store::{Folder, Store, StoreError, Stored};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn timing() -> Timing {
    Timing::new(Duration::from_secs(2000), Duration::from_secs(140), Duration::from_secs(100))
}

/// A certificate that some workload holds: who signed it, until when, and whom its holder trusts.
#[derive(Debug, Clone)]
struct Held {
    root: u64,
    since: SystemTime,
    until: SystemTime,
    bundle: BTreeSet<u64>,
}

/// What happens next in the world.
#[derive(Debug, Clone)]
enum Event {
    /// Time passes.
    Pass(u64),
    /// A controller reads the roots, takes the step it thinks is due, or dies before it does.
    Tend { controller: usize, dies: bool },
    /// A controller issues a certificate for that long, if it may.
    Issue { controller: usize, ttl: u64 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1u64..30).prop_map(Event::Pass),
        1 => (30u64..600).prop_map(Event::Pass),
        4 => (0usize..3, prop::bool::weighted(0.2)).prop_map(|(controller, dies)| Event::Tend { controller, dies }),
        6 => (0usize..3, 1u64..=100).prop_map(|(controller, ttl)| Event::Issue { controller, ttl }),
    ];
    prop::collection::vec(event, 100..400)
}

#[derive(Default, Clone)]
struct Controller {
    /// What it read, and when by its own clock.
    known: Option<(Roots<u64>, SystemTime)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whoever_holds_a_valid_certificate_trusts_every_other(
        events in events(),
        skews in prop::array::uniform3(0u64..8),
    ) {
        let timing = timing();
        let mut stored: Roots<u64> = Roots::default();
        let mut controllers = vec![Controller::default(); 3];
        let mut held: Vec<Held> = Vec::new();
        // Roots that were made late, because no controller was there in time, and when.
        let mut late: BTreeMap<u64, SystemTime> = BTreeMap::new();
        let (mut now, mut made) = (at(1_000_000), 0);
        for event in events {
            match event {
                Event::Pass(seconds) => now += Duration::from_secs(seconds),
                Event::Tend { controller, dies } => {
                    let clock = now + Duration::from_secs(skews[controller]);
                    let mut roots = stored.clone();
                    match roots.step(&timing, clock) {
                        Step::Rest => controllers[controller].known = Some((stored.clone(), clock)),
                        _ if dies => controllers[controller].known = None,
                        Step::Add { signs_from } => {
                            made += 1;
                            if made > 1 && signs_from < clock + timing.propagation {
                                late.insert(made, now);
                            }
                            let not_after = clock + timing.lifetime;
                            roots.0.push(Root { not_after, signs_from, has_key: true, material: made });
                            stored = roots;
                        }
                        Step::DropKey(at) => {
                            roots.0[at].has_key = false;
                            stored = roots;
                        }
                        Step::Remove => {
                            roots.0.remove(0);
                            stored = roots;
                        }
                    }
                }
                Event::Issue { controller, ttl } => {
                    let clock = now + Duration::from_secs(skews[controller]);
                    let Some((roots, read_at)) = &controllers[controller].known else { continue };
                    if clock.duration_since(*read_at).is_ok_and(|age| age > timing.slack) {
                        continue;
                    }
                    let Some(signer) = roots.signer(clock) else { continue };
                    let root = &roots.0[signer];
                    held.push(Held {
                        root: root.material,
                        since: now,
                        until: (clock + Duration::from_secs(ttl)).min(root.not_after),
                        bundle: roots.0.iter().map(|root| root.material).collect(),
                    });
                }
            }
            held.retain(|held| held.until > now);
            let signers: BTreeSet<u64> = held.iter().map(|held| held.root).collect();
            for one in &held {
                // A late root is not known to whoever has not asked since it was made.
                let expected = |root: &&u64| late.get(root).is_none_or(|made| one.since > *made);
                let unknown: Vec<_> = signers.iter().filter(expected).filter(|root| !one.bundle.contains(root)).collect();
                prop_assert!(unknown.is_empty(), "at {now:?}: {one:?} meets {unknown:?}; roots {stored:?}");
            }
        }
    }
}

#[test]
fn a_rotation_takes_its_steps_in_order_and_ends() {
    let timing = timing();
    let mut roots: Roots<u64> = Roots::default();
    let mut told = Vec::new();
    let mut signers = Vec::new();
    for second in 0..4200 {
        let now = at(second);
        while let step @ (Step::Add { .. } | Step::DropKey(_) | Step::Remove) = roots.step(&timing, now) {
            told.push((second, step));
            match step {
                Step::Add { signs_from } => {
                    roots.0.push(Root { not_after: now + timing.lifetime, signs_from, has_key: true, material: second })
                }
                Step::DropKey(at) => roots.0[at].has_key = false,
                _ => drop(roots.0.remove(0)),
            }
        }
        let signer = roots.0[roots.signer(now).unwrap()].material;
        if signers.last().is_none_or(|(_, last)| *last != signer) {
            signers.push((second, signer));
        }
    }
    // Lead: 140 + 100 + 20 + 200. The next root signs 140 later, its key goes 20 after that, itself 100 later again.
    let add = |second: u64, signs_from: u64| (second, Step::Add { signs_from: at(signs_from) });
    let expected = [
        add(0, 0),
        add(1540, 1680),
        (1700, Step::DropKey(0)),
        (1800, Step::Remove),
        add(3080, 3220),
        (3240, Step::DropKey(0)),
        (3340, Step::Remove),
    ];
    assert_eq!(told, expected);
    assert_eq!(signers, [(0, 0), (1680, 1540), (3220, 3080)]);
}

#[test]
fn controllers_that_slept_through_the_end_begin_anew() {
    let timing = timing();
    let root = |not_after, signs_from, material| Root {
        not_after: at(not_after),
        signs_from: at(signs_from),
        has_key: true,
        material,
    };
    // Little of its life is left: the next one signs when most of it has passed, for whoever has come until then.
    let late = Roots(vec![root(2000, 0, 1)]);
    assert_eq!(late.step(&timing, at(1900)), Step::Add { signs_from: at(1975) });
    // Nothing is left.
    assert_eq!(late.step(&timing, at(5000)), Step::Add { signs_from: at(5000) });
    let renewed = Roots(vec![root(2000, 0, 1), root(7000, 5000, 2)]);
    assert_eq!(renewed.step(&timing, at(5000)), Step::Remove);
    assert_eq!(renewed.step(&timing, at(2019)), Step::Rest);
    assert_eq!(renewed.signer(at(5000)), Some(1));
}

/// A store in memory that can fail, and lose an answer.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    document: Option<Vec<u8>>,
    version: u64,
    made: usize,
    fails: bool,
}

impl Store for Memory {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let inner = self.0.lock();
            if inner.fails {
                return Err(StoreError { action: "read", problem: "it is away".to_owned() });
            }
            let stored = |document: &Vec<u8>| Stored {
                version: inner.version.to_string(),
                document: Zeroizing::new(document.clone()),
            };
            Ok(inner.document.as_ref().map(stored))
        })
    }

    fn replace<'a>(&'a self, version: Option<&'a str>, document: &'a [u8]) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut inner = self.0.lock();
            let found = inner.document.is_some().then(|| inner.version.to_string());
            if found.as_deref() != version {
                return Ok(false);
            }
            inner.document = Some(document.to_vec());
            inner.version += 1;
            inner.made += 1;
            Ok(true)
        })
    }

    fn publish<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn shop() -> outrigger_config::TrustDomain {
    "shop.example".parse().unwrap()
}

#[tokio::test]
async fn controllers_that_start_at_once_make_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let folder = Folder::new(folder.path().join("a/b"));
    let memory = Memory::default();
    let places: [Box<dyn Fn() -> Box<dyn Store>>; 2] =
        [Box::new(move || Box::new(folder.clone())), Box::new(move || Box::new(memory.clone()))];
    for place in places {
        let keepers: Vec<_> = (0..5).map(|_| Arc::new(Keeper::new(place(), shop(), timing()))).collect();
        let now = at(1_800_000_000);
        let mut tasks = tokio::task::JoinSet::new();
        for keeper in keepers {
            tasks.spawn(async move { keeper.signing(now).await.unwrap_or_else(|e| panic!("{e}")).bundle });
        }
        let bundles = tasks.join_all().await;
        assert!(bundles.windows(2).all(|pair| pair[0] == pair[1]) && bundles[0].len() == 1);
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_survived_for_a_while_and_no_longer() {
    let memory = Memory::default();
    let keeper = Keeper::new(Box::new(memory.clone()), shop(), timing());
    let begin = 1_800_000_000;
    keeper.signing(at(begin)).await.unwrap();
    memory.0.lock().fails = true;
    keeper.signing(at(begin + 19)).await.unwrap();
    // Another controller may have added a root by now that will sign before our certificates end.
    let error = keeper.signing(at(begin + 21)).await.err().unwrap().to_string();
    assert!(error.contains("memory") && error.contains("it is away"), "{error}");
    memory.0.lock().fails = false;
    keeper.signing(at(begin + 22)).await.unwrap();
}

#[tokio::test]
async fn keys_leave_the_document_with_their_time_and_damage_is_told() {
    let memory = Memory::default();
    let keeper = Keeper::new(Box::new(memory.clone()), shop(), timing());
    let begin = 1_800_000_000;
    let keys =
        || String::from_utf8(memory.0.lock().document.clone().unwrap()).unwrap().matches("PRIVATE KEY").count() / 2;
    let states = |second| keeper.facts(at(begin + second)).iter().map(|root| root.state).collect::<Vec<_>>();
    for (second, known, expected) in [
        (0, 1, &["signing"][..]),
        (1541, 2, &["signing", "next"]),
        (1681, 2, &["old", "signing"]),
        (1701, 1, &["old", "signing"]),
        (1801, 1, &["signing"]),
    ] {
        keeper.tend(at(begin + second)).await.unwrap();
        assert_eq!((keys(), states(second).as_slice()), (known, expected), "{second}");
    }

    let good = memory.0.lock().document.clone().unwrap();
    for (from, to, told) in [
        ("\"form\": 1", "\"form\": 2", "form 2"),
        ("shop.example\"", "other.example\"", "trust domain `other.example`"),
        ("PRIVATE KEY-----\\nM", "PRIVATE KEY-----\\nA", "root 1: its key is unusable"),
        ("{", "", "column"),
    ] {
        let bad = String::from_utf8(good.clone()).unwrap().replacen(from, to, 1);
        assert_ne!(bad.as_bytes(), good, "{from}");
        memory.0.lock().document = Some(bad.into());
        let error = keeper.tend(at(begin + 1802)).await.unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("memory"), "{error}");
        assert!(!error.contains("MIG"), "no key in {error}");
    }
    // The certificate of one root with the key of another.
    let another = document::make(&shop(), Duration::from_secs(9), at(0), at(begin)).unwrap();
    let mut mixed = document::read(&good, &shop()).unwrap();
    mixed.0[0].material.pem = another.material.pem;
    let told = document::read(&document::write(&mixed, &shop()), &shop()).err().unwrap();
    assert!(told.contains("does not belong"), "{told}");
}
