//! Which endpoint of a cluster gets a request.
//!
//! In: what is known of the endpoints ([`Member`]), once for each change; then, for each request,
//! how busy they are and perhaps a key. Out: the index of one of them. Promise: a choice costs the
//! same however many endpoints there are, and allocates nothing; everything that takes longer is
//! done once in [`Plan::new`], whose result all workers share.

mod ewma;
mod maglev;
mod ring;
mod tiers;
mod weights;

pub use ewma::PeakEwma;

use crate::Random;
use maglev::Maglev;
use ring::Ring;
use tiers::Share;
use weights::{Alias, schedule};

/// Endpoints that are looked at in search of one that did not fail lately.
const MOST_STEPS: usize = 16;
/// Where weights differ, one endpoint's cost must be so many times lower to outdo the other's weight: latencies differ
/// by chance, too.
const CLEARLY: f32 = 2.0;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Of two at random, the one with the lower latency and fewer requests under way.
    PeakEwma,
    /// Of two at random, the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By a key, on a ring of so many points: at least, and at most.
    RingHash(usize, usize),
    /// By a key, from a table of so many entries, a prime.
    Maglev(usize),
}

/// What stays the same while endpoints come and go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How an endpoint is chosen.
    pub policy: Policy,
    /// So much more than its share an endpoint may get before others help out: 1.4 means that 72 % of them are enough.
    pub overprovisioning: f64,
    /// When a smaller part of the endpoints than this is healthy, all are used.
    pub panic_threshold: f64,
    /// With a key: an endpoint that has so many times the average under way is passed over.
    pub balance_factor: Option<f32>,
}

/// What a plan is made of: one endpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member {
    /// Its part of the requests beside the others'; 0 for none.
    pub weight: f64,
    /// 0 is the first.
    pub priority: u32,
    /// It is in the zone that is preferred.
    pub near: bool,
    /// It is neither ejected nor found unhealthy.
    pub healthy: bool,
    /// Its place on a ring, the same in every process.
    pub key: u64,
}

/// What a choice looks at, by index; only what changes with each request.
pub trait Endpoints {
    /// Requests under way.
    fn under_way(&self, index: usize) -> u32;
    /// What another request would cost, as [`PeakEwma::cost`] has it.
    fn cost(&self, index: usize) -> f32;
    /// No connection could be made to it lately.
    fn is_avoided(&self, index: usize) -> bool;
    /// Requests under way at all of them.
    fn all_under_way(&self) -> u32;
}

/// What one worker remembers from choice to choice.
#[derive(Debug)]
pub struct Turn {
    random: Random,
    /// Whose turn it is, in each tier.
    next: Vec<usize>,
}

impl Turn {
    /// The same seed makes the same choices.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), next: Vec::new() }
    }
}

/// How requests are shared among endpoints, until their health, their weights or they themselves change.
#[derive(Debug, Default)]
pub struct Plan {
    tiers: Vec<Tier>,
    policy: Option<Policy>,
    balance_factor: Option<f32>,
    panic: bool,
}

/// Endpoints of one priority, near or far.
#[derive(Debug)]
struct Tier {
    /// Requests whose point is below go here, if not to an earlier one.
    below: u64,
    members: Box<[u32]>,
    weights: Option<Alias>,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Any,
    /// Positions among the members, each as often as its weight says.
    Schedule(Box<[u32]>),
    Ring(Ring),
    Maglev(Maglev),
}

/// All points that a request may have.
const WHOLE: u64 = 1 << 32;

impl Plan {
    /// Plans how requests are shared among these endpoints.
    pub fn new(members: &[Member], settings: &Settings) -> Self {
        let (shares, panic) = tiers::shares(members, settings);
        let mut below = 0.0;
        let mut tiers: Vec<Tier> = shares
            .into_iter()
            .map(|Share { part, members: of }| {
                below += part;
                Tier::new((below * WHOLE as f64) as u64, of, members, settings.policy)
            })
            .collect();
        if let Some(last) = tiers.last_mut() {
            last.below = WHOLE;
        }
        Self { tiers, policy: Some(settings.policy), balance_factor: settings.balance_factor, panic }
    }

    /// Whether so few endpoints are healthy that the others are used too.
    pub fn is_panic(&self) -> bool {
        self.panic
    }

    /// Chooses an endpoint, by `key` where the policy goes by one. `None` when there is none.
    pub fn choose(&self, turn: &mut Turn, endpoints: &impl Endpoints, key: Option<u64>) -> Option<usize> {
        let by_key = matches!(self.policy, Some(Policy::RingHash(..) | Policy::Maglev(_)));
        let key = if by_key { Some(key.unwrap_or_else(|| any_key(&mut turn.random))) } else { None };
        let number = match self.tiers.as_slice() {
            [] => return None,
            [_] => 0,
            several => {
                // What has the same key goes to the same tier.
                let point = key.map_or_else(|| u64::from(turn.random.next()), |key| mix(key) >> 32);
                several.iter().position(|tier| point < tier.below).unwrap_or(several.len() - 1)
            }
        };
        let chosen = self.choose_in(number, turn, endpoints, key);
        if self.tiers.len() > 1 && endpoints.is_avoided(chosen) {
            let mut others = (0..self.tiers.len()).filter(|other| *other != number);
            let better = others.find_map(|other| {
                let chosen = self.choose_in(other, turn, endpoints, key);
                (!endpoints.is_avoided(chosen)).then_some(chosen)
            });
            return Some(better.unwrap_or(chosen));
        }
        Some(chosen)
    }

    fn choose_in(&self, number: usize, turn: &mut Turn, endpoints: &impl Endpoints, key: Option<u64>) -> usize {
        let tier = &self.tiers[number];
        let member = |position: usize| tier.members[position] as usize;
        let count = tier.members.len();
        if count < 2 {
            return member(0);
        }
        let passed = |index: usize| endpoints.is_avoided(index);
        match (self.policy, &tier.order) {
            (_, Order::Ring(ring)) => {
                let steps = ring.from(key.unwrap_or_default()).map(|position| member(position as usize));
                self.first_good(steps, endpoints, count)
            }
            (_, Order::Maglev(maglev)) => {
                let steps = maglev.from(key.unwrap_or_default()).map(|position| member(position as usize));
                self.first_good(steps, endpoints, count)
            }
            (Some(Policy::RoundRobin), order) => {
                if turn.next.len() <= number {
                    let Turn { random, next } = turn;
                    next.resize_with(number + 1, || random.next() as usize);
                }
                let next = turn.next[number].wrapping_add(1);
                let at = |place: usize| match order {
                    Order::Schedule(schedule) => member(schedule[place % schedule.len()] as usize),
                    _ => member(place % count),
                };
                let steps = (0..MOST_STEPS).map(|step| next.wrapping_add(step));
                let place = steps.into_iter().find(|place| !passed(at(*place))).unwrap_or(next);
                turn.next[number] = place;
                at(place)
            }
            (policy, _) => {
                let position = |random: &mut Random| match &tier.weights {
                    None => random.below(count),
                    Some(weights) => weights.sample(random),
                };
                let first = position(&mut turn.random);
                let mut second = position(&mut turn.random);
                if second == first {
                    second = (first + 1 + turn.random.below(count - 1)) % count;
                }
                let (one, other) = (member(first), member(second));
                match (passed(one), passed(other)) {
                    (false, true) => one,
                    (true, false) => other,
                    (false, false) => {
                        let outdone = match policy {
                            Some(Policy::PeakEwma) => {
                                let factor = if tier.weights.is_some() { CLEARLY } else { 1.0 };
                                endpoints.cost(other) * factor < endpoints.cost(one)
                            }
                            Some(Policy::LeastRequest) => {
                                let weight = |position| tier.weights.as_ref().map_or(1.0, |all| all.weight(position));
                                let (w1, w2) = (weight(first), weight(second));
                                let (u1, u2) = (endpoints.under_way(one) as f32, endpoints.under_way(other) as f32);
                                // Even with this request the other would have no more, for its weight.
                                (u2 + 1.0) * w1 <= u1 * w2
                            }
                            _ => false,
                        };
                        if outdone { other } else { one }
                    }
                    // When all have failed lately, all are worth a try again.
                    (true, true) => (0..count.min(MOST_STEPS))
                        .map(|step| member((second + step) % count))
                        .find(|index| !passed(*index))
                        .unwrap_or(one),
                }
            }
        }
    }

    /// The first that did not fail lately and has not much more to do than the others; else the first.
    fn first_good(&self, steps: impl Iterator<Item = usize>, endpoints: &impl Endpoints, count: usize) -> usize {
        let most = self.balance_factor.map(|factor| {
            let average = (endpoints.all_under_way() + 1) as f32 / count as f32;
            (average * factor).ceil() as u32
        });
        let mut first = None;
        for index in steps.take(MOST_STEPS * 4) {
            let first = *first.get_or_insert(index);
            let full = most.is_some_and(|most| endpoints.under_way(index) >= most);
            if !full && !endpoints.is_avoided(index) {
                return index;
            }
            if count == 1 {
                return first;
            }
        }
        first.unwrap_or_default()
    }
}

impl Tier {
    fn new(below: u64, of: Vec<u32>, members: &[Member], policy: Policy) -> Self {
        let weights: Vec<f64> = of.iter().map(|index| members[*index as usize].weight).collect();
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let keys = || of.iter().map(|index| members[*index as usize].key);
        let order = match policy {
            Policy::RoundRobin if !even => Order::Schedule(schedule(&weights)),
            Policy::RingHash(least, most) => Order::Ring(Ring::new(keys(), &weights, least, most)),
            Policy::Maglev(size) => Order::Maglev(Maglev::new(keys(), &weights, size)),
            _ => Order::Any,
        };
        let chance = matches!(policy, Policy::PeakEwma | Policy::LeastRequest | Policy::Random);
        let weights = (chance && !even).then(|| Alias::new(&weights));
        Self { below, members: of.into(), weights, order }
    }
}

/// A number for a key, the same in every process, so that all of them send it to the same endpoint.
pub fn hash(bytes: &[u8]) -> u64 {
    // FNV-1a, whose weak high bits `mix` makes up for.
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Spreads a number over all bits (the finaliser of MurmurHash3).
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn any_key(random: &mut Random) -> u64 {
    (u64::from(random.next()) << 32) | u64::from(random.next())
}

#[cfg(test)]
mod tests;
