use std::cell::RefCell;
use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// Endpoints whose figures a test sets.
struct Field {
    under_way: RefCell<Vec<u32>>,
    latency: Vec<f32>,
    avoided: Vec<bool>,
}

impl Field {
    fn new(count: usize) -> Self {
        Self { under_way: RefCell::new(vec![0; count]), latency: vec![1.0; count], avoided: vec![false; count] }
    }
}

impl Endpoints for Field {
    fn under_way(&self, index: usize) -> u32 {
        self.under_way.borrow()[index]
    }
    fn cost(&self, index: usize) -> f32 {
        self.latency[index] * (self.under_way(index) as f32 + 1.0)
    }
    fn is_avoided(&self, index: usize) -> bool {
        self.avoided[index]
    }
    fn all_under_way(&self) -> u32 {
        self.under_way.borrow().iter().sum()
    }
}

const POLICIES: [Policy; 6] = [
    Policy::PeakEwma,
    Policy::LeastRequest,
    Policy::RoundRobin,
    Policy::Random,
    Policy::RingHash(1024, 8_388_608),
    Policy::Maglev(65_537),
];

fn settings(policy: Policy) -> Settings {
    Settings { policy, overprovisioning: 1.4, panic_threshold: 0.5, balance_factor: None }
}

fn member(index: usize, weight: u32) -> Member {
    let key = hash(format!("10.0.{}.{}:80", index / 256, index % 256).as_bytes());
    Member { weight: f64::from(weight), priority: 0, near: true, healthy: true, key }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights.iter().enumerate().map(|(index, weight)| member(index, *weight)).collect()
}

/// The part of the choices that each gets, every request being answered before the next.
fn parts(plan: &Plan, field: &Field, count: usize) -> Vec<f64> {
    let mut turn = Turn::new(11);
    let mut chosen = vec![0.0; field.avoided.len()];
    for _ in 0..count {
        chosen[plan.choose(&mut turn, field, None).unwrap()] += 1.0 / count as f64;
    }
    chosen
}

#[test]
fn every_policy_honours_weights() {
    for policy in POLICIES {
        let plan = Plan::new(&members(&[1, 3, 0, 6]), &settings(policy));
        let parts = parts(&plan, &Field::new(4), 20_000);
        for (part, expected) in parts.iter().zip([0.1, 0.3, 0.0, 0.6]) {
            let most = if expected == 0.0 { 0.0 } else { 0.07 };
            assert!((part - expected).abs() <= most, "{policy:?}: {parts:?}");
        }
    }
}

#[test]
fn weights_hold_while_requests_are_under_way() {
    // Always eight under way: the oldest is answered when the next one comes.
    for policy in [Policy::PeakEwma, Policy::LeastRequest] {
        let plan = Plan::new(&members(&[1, 9]), &settings(policy));
        let (field, mut turn, mut open) = (Field::new(2), Turn::new(5), std::collections::VecDeque::new());
        let mut light = 0;
        for _ in 0..10_000 {
            let chosen = plan.choose(&mut turn, &field, None).unwrap();
            light += usize::from(chosen == 0);
            field.under_way.borrow_mut()[chosen] += 1;
            open.push_back(chosen);
            if open.len() > 8 {
                field.under_way.borrow_mut()[open.pop_front().unwrap()] -= 1;
            }
        }
        let most = if policy == Policy::PeakEwma { 4000 } else { 1400 };
        assert!((400..most).contains(&light), "{policy:?}: {light}");
    }
}

#[test]
fn a_slow_endpoint_gets_little() {
    let mut field = Field::new(5);
    field.latency[2] = 10.0;
    let slow = |policy| parts(&Plan::new(&members(&[1; 5]), &settings(policy)), &field, 10_000)[2];
    assert!(slow(Policy::PeakEwma) < 0.001, "any other is better");
    assert!((slow(Policy::Random) - 0.2).abs() < 0.02, "as the others");
    let uneven = parts(&Plan::new(&members(&[2, 1, 1, 1, 1]), &settings(Policy::PeakEwma)), &field, 10_000)[2];
    assert!(uneven < 0.01, "with weights too: {uneven}");
}

#[test]
fn round_robin_is_smooth() {
    let plan = Plan::new(&members(&[5, 1, 1]), &settings(Policy::RoundRobin));
    let (field, mut turn) = (Field::new(3), Turn::new(1));
    let chosen: Vec<_> = (0..70).map(|_| plan.choose(&mut turn, &field, None).unwrap()).collect();
    assert_eq!(chosen.iter().filter(|index| **index == 0).count(), 50);
    let longest = chosen.split(|index| *index != 0).map(<[usize]>::len).max().unwrap();
    assert!(longest <= 4, "{chosen:?}");
}

#[test]
fn what_failed_lately_is_passed_over_while_there_is_another() {
    for policy in POLICIES {
        let plan = Plan::new(&members(&[1; 4]), &settings(policy));
        let mut field = Field::new(4);
        field.avoided = vec![true, false, true, true];
        assert!(parts(&plan, &field, 2_000)[1] > 0.999, "{policy:?}");
        field.avoided = vec![true; 4];
        assert!(parts(&plan, &field, 2_000).iter().all(|part| *part > 0.05), "{policy:?}: all are worth a try");
        // Where none can be reached, those that have no part otherwise help out.
        let mut all = members(&[1; 4]);
        (all[0].near, all[1].priority) = (false, 1);
        let plan = Plan::new(&all, &settings(policy));
        field.avoided = vec![false; 4];
        assert_eq!(parts(&plan, &field, 2_000)[..2], [0.0, 0.0], "{policy:?}");
        field.avoided = vec![false, false, true, true];
        assert!(parts(&plan, &field, 2_000)[0] > 0.999, "{policy:?}: the own priority first");
        field.avoided = vec![true, false, true, true];
        assert!(parts(&plan, &field, 2_000)[1] > 0.999, "{policy:?}: then the next one");
    }
}

/// A name, the priority, nearness and health of each, the part of the requests that goes to each, and whether there is
/// panic.
type Row<'a> = (&'a str, &'a [(u32, bool, bool)], &'a [f64], bool);

#[test]
fn priorities_and_zones_spill_over() {
    let rows: &[Row<'_>] = &[
        ("all well", &[(0, true, true), (0, true, true), (1, true, true)], &[0.5, 0.5, 0.0], false),
        ("half of the first", &[(0, true, true), (0, true, false), (1, true, true)], &[0.7, 0.0, 0.3], false),
        ("none of the first", &[(0, true, false), (1, true, true)], &[0.0, 1.0], false),
        (
            "three of four suffice",
            &[(0, true, true), (0, true, true), (0, true, true), (0, true, false), (1, true, true)],
            &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
            false,
        ),
        ("panic", &[(0, true, true), (0, true, false), (0, true, false)], &[1.0 / 3.0; 3], true),
        ("nobody is healthy", &[(0, true, false), (1, true, false), (1, true, false)], &[1.0 / 3.0; 3], true),
        ("the own zone", &[(0, true, true), (0, false, true), (0, false, true)], &[1.0, 0.0, 0.0], false),
        (
            "half of the own zone",
            &[(0, true, true), (0, true, false), (0, false, true), (0, false, true)],
            &[0.7, 0.0, 0.15, 0.15],
            false,
        ),
        (
            "none of the own zone",
            &[(0, true, false), (0, false, true), (0, false, true), (0, false, true)],
            &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0],
            false,
        ),
        ("only the own zone is left", &[(0, true, true), (0, true, true), (0, false, false)], &[0.5, 0.5, 0.0], false),
    ];
    for (name, given, expected, panic) in rows {
        let all: Vec<_> = given
            .iter()
            .enumerate()
            .map(|(index, (priority, near, healthy))| Member {
                priority: *priority,
                near: *near,
                healthy: *healthy,
                ..member(index, 1)
            })
            .collect();
        for policy in POLICIES {
            let plan = Plan::new(&all, &settings(policy));
            assert_eq!(plan.is_panic(), *panic, "{name}");
            let parts = parts(&plan, &Field::new(all.len()), 10_000);
            assert!(
                parts.iter().zip(*expected).all(|(part, expected)| (part - expected).abs() < 0.06),
                "{name}, {policy:?}: {parts:?}"
            );
        }
    }
}

#[test]
fn a_full_endpoint_passes_its_keys_on() {
    for policy in [Policy::RingHash(1024, 100_000), Policy::Maglev(1009)] {
        let bounded = Settings { balance_factor: Some(1.25), ..settings(policy) };
        let (plan, field, mut turn) = (Plan::new(&members(&[1; 4]), &bounded), Field::new(4), Turn::new(1));
        for _ in 0..100 {
            let chosen = plan.choose(&mut turn, &field, Some(7)).unwrap();
            field.under_way.borrow_mut()[chosen] += 1;
        }
        let most = *field.under_way.borrow().iter().max().unwrap();
        assert!(most <= 32, "one hot key: {:?}", field.under_way.borrow());
    }
}

#[test]
fn the_numbers_of_keys_never_change() {
    // Other processes and other versions count on them.
    assert_eq!(hash(b"10.0.0.1:80"), hash(b"10.0.0.1:80"));
    assert_ne!(hash(b"a"), hash(b"b"));
    assert_eq!(hash(b""), mix(0xcbf2_9ce4_8422_2325));
}

/// Where each of many keys goes.
fn places(all: &[Member], policy: Policy, keys: u64) -> Vec<usize> {
    let (plan, field, mut turn) = (Plan::new(all, &settings(policy)), Field::new(all.len()), Turn::new(3));
    (0..keys).map(|key| plan.choose(&mut turn, &field, Some(mix(key))).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Keys are spread by weight, and when an endpoint goes hardly any key moves but its own.
    #[test]
    fn keys_are_spread_fairly_and_few_move(count in 2_usize..40, gone in 0_usize..40, ring in any::<bool>()) {
        const KEYS: u64 = 8_000;
        let policy = if ring { Policy::RingHash(1024, 1 << 20) } else { Policy::Maglev(10_007) };
        let gone = gone % count;
        let mut all = members(&vec![1; count]);
        let before = places(&all, policy, KEYS);
        let fair = KEYS as f64 / count as f64;
        for index in 0..count {
            let got = before.iter().filter(|place| **place == index).count() as f64;
            let slack = if ring { 0.65 } else { 0.35 };
            prop_assert!((got - fair).abs() <= fair * slack + 30.0, "{} of {}", got, fair);
        }
        all[gone].healthy = false;
        if count > 2 {
            let after = places(&all, policy, KEYS);
            prop_assert!(after.iter().all(|place| *place != gone));
            let strayed = before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count() as f64;
            // A ring of few endpoints has a least size, so each gets more points.
            let most = if !ring { 0.12 } else if count > 8 { 0.0 } else { 0.16 };
            prop_assert!(strayed <= KEYS as f64 * most, "{} of {} moved without need", strayed, KEYS);
        }
    }

    /// Whatever the endpoints are like: what is chosen has a weight, and is healthy unless there is panic.
    #[test]
    fn only_the_healthy_are_chosen(
        given in prop::collection::vec((0_u32..4, 0_u32..3, any::<bool>(), any::<bool>()), 0..12),
        policy in 0_usize..6, threshold in 0.0_f64..1.0,
    ) {
        let all: Vec<_> = given.iter().enumerate().map(|(index, (weight, priority, near, healthy))| Member {
            priority: *priority, near: *near, healthy: *healthy, ..member(index, *weight)
        }).collect();
        let policy = match POLICIES[policy] { Policy::Maglev(_) => Policy::Maglev(101), other => other };
        let plan = Plan::new(&all, &Settings { panic_threshold: threshold, ..settings(policy) });
        let (field, mut turn, mut seen) = (Field::new(all.len()), Turn::new(9), HashSet::new());
        for _ in 0..64 {
            match plan.choose(&mut turn, &field, None) {
                None => prop_assert!(all.iter().all(|one| one.weight == 0.0)),
                Some(index) => {
                    prop_assert!(all[index].weight > 0.0);
                    prop_assert!(all[index].healthy || plan.is_panic());
                    seen.insert(index);
                }
            }
        }
        if all.iter().any(|one| one.weight > 0.0) {
            prop_assert!(!seen.is_empty(), "somebody gets the requests");
        }
    }
}
