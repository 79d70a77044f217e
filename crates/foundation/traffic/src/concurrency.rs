//! A limit on requests at once that finds itself, by latency.
//!
//! In: how long requests took. Out: how many may be under way. Promise: while requests take as long as
//! they do without load the limit grows; when they wait, because more are under way than are worked
//! on, it shrinks towards what is worked on; so a service under twice its load answers as many as it
//! can, and quickly, and refuses the rest at once.
//!
//! The way is Envoy's gradient controller: the latency without load is measured anew now and then, with
//! few requests at once, and the limit is held where the latency is a little above that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What the limit is kept within, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConcurrencyBounds {
    /// The limit is never lower, and this low while the latency without load is measured for the first time.
    pub least: u32,
    /// It is never higher.
    pub most: u32,
    /// By what share latency may be above that without load before the limit shrinks.
    pub buffer: f64,
    /// How often the latency without load is measured anew.
    pub every: Duration,
}

/// Requests that ended in a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// How many.
    pub count: u32,
    /// How long they took on average.
    pub latency: Duration,
    /// The most that were under way at once.
    pub under_way: u32,
}

/// Finds the limit.
#[derive(Debug)]
pub struct Gradient {
    bounds: ConcurrencyBounds,
    limit: f64,
    /// The latency without load, in seconds; `None` while it is measured for the first time.
    base: Option<f64>,
    /// When it is measured anew, in time since the beginning.
    measure_at: Duration,
    /// It is being measured: what was gathered, and the limit to go back to.
    measuring: Option<Measuring>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Measuring {
    count: u32,
    /// Seconds of all of them.
    sum: f64,
    back_to: f64,
}

/// Requests of which the latency without load is the average.
const MEASURED: u32 = 50;
/// A span with fewer requests says little, and is added to the next.
pub(crate) const LEAST_SAMPLE: u32 = 10;
/// The limit changes by no more than this factor at once.
const STEEPEST: (f64, f64) = (0.5, 2.0);

impl Gradient {
    /// Begins by measuring.
    pub fn new(bounds: ConcurrencyBounds) -> Self {
        let limit = f64::from(bounds.least);
        let measuring = Measuring { back_to: limit, ..Measuring::default() };
        Self { bounds, limit, base: None, measure_at: Duration::ZERO, measuring: Some(measuring) }
    }

    /// The limit now.
    pub fn limit(&self) -> u32 {
        (self.limit as u32).clamp(self.bounds.least, self.bounds.most)
    }

    /// The latency without load, once it is known.
    pub fn base(&self) -> Option<Duration> {
        self.base.map(Duration::from_secs_f64)
    }

    /// Takes in what ended lately; `now` is the time since the beginning.
    pub fn learn(&mut self, sample: Sample, now: Duration) {
        if sample.count == 0 {
            return;
        }
        let latency = sample.latency.as_secs_f64();
        if let Some(measuring) = &mut self.measuring {
            measuring.count += sample.count;
            measuring.sum += latency * f64::from(sample.count);
            if measuring.count >= MEASURED {
                self.base = Some((measuring.sum / f64::from(measuring.count)).max(1e-6));
                self.limit = measuring.back_to;
                self.measuring = None;
                self.measure_at = now + self.bounds.every;
            }
            return;
        }
        let Some(base) = self.base else { return };
        if now >= self.measure_at {
            // Half of what is worked on waits for nothing, and half of the work goes on.
            let back_to = self.limit;
            self.limit = (self.limit / 2.0).max(f64::from(self.bounds.least));
            self.measuring = Some(Measuring { back_to, ..Measuring::default() });
            return;
        }
        // One that got faster needs no measuring to know.
        let base = base.min(latency.max(1e-6));
        self.base = Some(base);
        let gradient = (base * (1.0 + self.bounds.buffer) / latency.max(1e-6)).clamp(STEEPEST.0, STEEPEST.1);
        let room = self.limit.sqrt();
        let wanted = self.limit * gradient.min(1.0) + room;
        // A limit that is not reached says nothing about what is beyond it.
        if wanted > self.limit && f64::from(sample.under_way) < self.limit / 2.0 {
            return;
        }
        // Half way each time, so that one odd sample does not shake it.
        let next = f64::midpoint(self.limit, wanted);
        self.limit = next.clamp(f64::from(self.bounds.least), f64::from(self.bounds.most));
    }
}

/// How much a request matters when not all can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Criticality {
    /// Refused last: all of the limit is for it.
    Critical,
    /// Nine tenths of the limit are for it and those below.
    Standard,
    /// Refused first: it gets what lies below seven tenths of the limit.
    Sheddable,
}

impl Criticality {
    /// So many may be under way when one of this kind comes.
    pub(crate) fn share(self, limit: u32) -> u32 {
        match self {
            Self::Critical => limit,
            Self::Standard => (limit * 9).div_ceil(10),
            Self::Sheddable => (limit * 7).div_ceil(10),
        }
    }
}

/// A limit in use, shared by threads: requests come and go without a lock. The one that finds that a span of time is over
/// teaches the controller, unless another one does just then.
#[derive(Debug)]
pub struct AdaptiveLimit {
    begin: Instant,
    limit: AtomicU32,
    under_way: AtomicU32,
    /// Of the span under way: requests that ended, microseconds of all of them, the most at once, and its end.
    count: AtomicU32,
    sum: AtomicU64,
    peak: AtomicU32,
    ends: AtomicU64,
    gradient: Mutex<Gradient>,
}

/// The length of a span, in microseconds.
const SPAN: u64 = 100_000;

impl AdaptiveLimit {
    /// A limit that begins `now`.
    pub fn new(bounds: ConcurrencyBounds, now: Instant) -> Self {
        let gradient = Gradient::new(bounds);
        Self {
            begin: now,
            limit: AtomicU32::new(gradient.limit()),
            under_way: AtomicU32::new(0),
            count: AtomicU32::new(0),
            sum: AtomicU64::new(0),
            peak: AtomicU32::new(0),
            ends: AtomicU64::new(SPAN),
            gradient: Mutex::new(gradient),
        }
    }

    /// Takes a place, if there is one for a request that matters so much. It must be given back by [`Self::leave`].
    pub fn enter(&self, criticality: Criticality) -> bool {
        // Counted before it is looked at, so that two threads never take the last place both.
        let under_way = self.under_way.fetch_add(1, Relaxed) + 1;
        if under_way > criticality.share(self.limit.load(Relaxed)) {
            self.under_way.fetch_sub(1, Relaxed);
            return false;
        }
        if under_way > self.peak.load(Relaxed) {
            self.peak.fetch_max(under_way, Relaxed);
        }
        true
    }

    /// Gives a place back; `latency` is how long the answer took, if that tells of the endpoint's load.
    pub fn leave(&self, latency: Option<Duration>, now: Instant) {
        self.under_way.fetch_sub(1, Relaxed);
        let Some(latency) = latency else { return };
        self.sum.fetch_add(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX / 2), Relaxed);
        let count = self.count.fetch_add(1, Relaxed) + 1;
        let since = now.saturating_duration_since(self.begin);
        let now = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let ends = self.ends.load(Relaxed);
        if now < ends || count < LEAST_SAMPLE {
            return;
        }
        if self.ends.compare_exchange(ends, now + SPAN, Relaxed, Relaxed).is_ok()
            && let Ok(mut gradient) = self.gradient.try_lock()
        {
            let (count, sum) = (self.count.swap(0, Relaxed), self.sum.swap(0, Relaxed));
            let under_way = self.peak.swap(self.under_way.load(Relaxed), Relaxed);
            let latency = Duration::from_micros(sum / u64::from(count.max(1)));
            gradient.learn(Sample { count, latency, under_way }, since);
            self.limit.store(gradient.limit(), Relaxed);
        }
    }

    /// The limit now, and how many are under way.
    pub fn state(&self) -> (u32, u32) {
        (self.limit.load(Relaxed), self.under_way.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    #[test]
    fn what_matters_least_is_refused_first_and_places_come_back() {
        let bounds = ConcurrencyBounds { least: 10, most: 100, buffer: 0.25, every: Duration::from_secs(30) };
        let now = Instant::now();
        let limit = AdaptiveLimit::new(bounds, now);
        let take = |criticality| (0..20).filter(|_| limit.enter(criticality)).count();
        use Criticality::{Critical, Sheddable, Standard};
        assert_eq!((take(Sheddable), take(Standard), take(Critical)), (7, 2, 1));
        assert_eq!(limit.state(), (10, 10));
        (0..10).for_each(|_| limit.leave(None, now));
        assert_eq!(limit.state(), (10, 0));
        assert_eq!(take(Critical), 10);
    }

    #[test]
    fn it_learns_from_what_threads_tell() {
        let bounds = ConcurrencyBounds { least: 3, most: 1000, buffer: 0.25, every: Duration::from_secs(3600) };
        let begin = Instant::now();
        let limit = AdaptiveLimit::new(bounds, begin);
        for step in 1..2000_u64 {
            let now = begin + Duration::from_millis(step * 5);
            let taken = (0..2000).take_while(|_| limit.enter(Criticality::Critical)).count();
            (0..taken).for_each(|_| limit.leave(Some(Duration::from_millis(10)), now));
        }
        assert!(limit.state().0 > 500, "nothing waits, so it grows: {:?}", limit.state());
        for step in 2000..4000_u64 {
            let now = begin + Duration::from_millis(step * 5);
            let taken = (0..2000).take_while(|_| limit.enter(Criticality::Critical)).count() as u64;
            // Forty are worked on at once.
            let latency = Duration::from_millis(10 * taken.div_ceil(40));
            (0..taken).for_each(|_| limit.leave(Some(latency), now));
        }
        let (found, _) = limit.state();
        assert!((30..=80).contains(&found), "{found}");
    }

    /// A server that works on so many requests at once, each for 10 ms, while the others wait in line; time goes by in
    /// milliseconds.
    struct Server {
        capacity: usize,
        work: u64,
        /// When each request came, and the work left of those that are worked on.
        waiting: std::collections::VecDeque<u64>,
        working: Vec<(u64, u64)>,
    }

    /// What came of a simulated while.
    #[derive(Debug, Default)]
    struct Outcome {
        answered: u64,
        shed: u64,
        worst: u64,
        limits: Vec<u32>,
    }

    struct World {
        server: Server,
        gradient: Gradient,
        now: u64,
        random: Random,
        sum: u64,
        sample: Sample,
    }

    impl World {
        fn new(capacity: usize) -> Self {
            let every = Duration::from_secs(30);
            let bounds = ConcurrencyBounds { least: 3, most: 1000, buffer: 0.25, every };
            Self {
                server: Server { capacity, work: 10, waiting: Default::default(), working: Vec::new() },
                gradient: Gradient::new(bounds),
                now: 0,
                random: Random::new(7),
                sum: 0,
                sample: Sample::default(),
            }
        }

        /// Runs for so many milliseconds with so many requests in each on average.
        fn run(&mut self, milliseconds: u64, rate: f64) -> Outcome {
            let mut outcome = Outcome::default();
            let mut due = 0.0;
            for _ in 0..milliseconds {
                self.now += 1;
                // By chance, up to twice as many as on average.
                due += rate * f64::from(self.random.next()) / f64::from(u32::MAX) * 2.0;
                while due >= 1.0 {
                    due -= 1.0;
                    let under_way = (self.server.waiting.len() + self.server.working.len()) as u32;
                    if under_way < self.gradient.limit() {
                        self.server.waiting.push_back(self.now);
                        self.sample.under_way = self.sample.under_way.max(under_way + 1);
                    } else {
                        outcome.shed += 1;
                    }
                }
                let server = &mut self.server;
                while server.working.len() < server.capacity
                    && let Some(came) = server.waiting.pop_front()
                {
                    server.working.push((came, server.work));
                }
                server.working.iter_mut().for_each(|(_, left)| *left -= 1);
                let now = self.now;
                server.working.retain(|(came, left)| {
                    if *left == 0 {
                        let took = now - came;
                        outcome.answered += 1;
                        outcome.worst = outcome.worst.max(took);
                        self.sum += took;
                        self.sample.count += 1;
                    }
                    *left > 0
                });
                if self.now.is_multiple_of(100) && self.sample.count >= LEAST_SAMPLE {
                    self.sample.latency = Duration::from_micros(self.sum * 1000 / u64::from(self.sample.count));
                    self.gradient.learn(std::mem::take(&mut self.sample), Duration::from_millis(self.now));
                    self.sum = 0;
                    outcome.limits.push(self.gradient.limit());
                }
            }
            outcome
        }
    }

    #[test]
    fn under_twice_the_load_it_answers_what_it_can_and_quickly() {
        for capacity in [8, 20, 100] {
            let mut world = World::new(capacity);
            // What the server can do in a millisecond.
            let able = capacity as f64 / 10.0;
            world.run(5_000, able * 2.0);
            let outcome = world.run(60_000, able * 2.0);
            let most = (able * 60_000.0) as u64;
            assert!(outcome.answered > most * 9 / 10, "{capacity}: {} of {most}", outcome.answered);
            let limits = outcome.limits.iter().map(|limit| *limit as usize);
            let (least, average) =
                (limits.clone().min().unwrap(), limits.clone().sum::<usize>() / outcome.limits.len());
            assert!(average >= capacity && average <= capacity * 2, "{capacity}: {average}, {least} at least");
            assert!(outcome.worst <= 40, "{capacity}: none waits long: {} ms", outcome.worst);
            assert!(outcome.shed > most / 2, "the rest is refused");
        }
    }

    #[test]
    fn without_overload_nothing_is_shed() {
        let mut world = World::new(20);
        world.run(5_000, 1.0);
        let outcome = world.run(60_000, 1.0);
        assert!(outcome.shed * 200 < outcome.answered, "{} shed, {} answered", outcome.shed, outcome.answered);
    }

    #[test]
    fn it_follows_a_server_that_gets_weaker_and_recovers() {
        let mut world = World::new(40);
        world.run(20_000, 8.0);
        world.server.capacity = 10;
        world.run(20_000, 8.0);
        let weak = world.run(20_000, 8.0);
        assert!(weak.answered > 20_000 * 9 / 10, "{}", weak.answered);
        assert!(weak.worst <= 60, "{}", weak.worst);
        world.server.capacity = 40;
        world.run(40_000, 8.0);
        let strong = world.run(20_000, 8.0);
        assert!(strong.answered > 80_000 * 85 / 100, "{}", strong.answered);
    }

    #[test]
    fn a_server_that_is_slower_for_good_is_believed_at_the_next_measuring() {
        let mut world = World::new(20);
        world.run(10_000, 1.5);
        let base = |world: &World| world.gradient.base().unwrap().as_millis();
        assert!((9..=10).contains(&base(&world)), "{}", base(&world));
        world.server.work = 30;
        world.run(70_000, 0.5);
        assert!((29..=30).contains(&base(&world)), "{}", base(&world));
    }
}
