//! A limit on requests at once that comes into force when clients give up waiting, and not before.
//!
//! In: how requests end, and after how long. Out: whether another one may begin. Promise: while clients wait for
//! their answers nobody is refused, however many there are and however long they take. When they give up, because
//! answers take several times as long as they do without a crowd, the limit tends to what is worked on at once, as
//! [`crate::Gradient`] finds it; should fewer clients get answers by it than before, it was no overload, and the
//! limit is lifted at once.

use std::time::{Duration, Instant};

use crate::Criticality;

/// So much is looked at together, or longer, until this many requests have ended.
const SPAN: Duration = Duration::from_millis(100);
const LEAST_SAMPLE: u32 = 10;
/// One of so many that gives up is a sign. Clients that are stopped, and those that ask twice and take the first
/// answer, give up all at once or soon: so the sign must come in several spans in a row, and with long waits.
const ONE_OF: u32 = 10;
const SPANS: u32 = 3;
/// Waits are long that are so many times what they are without a crowd.
const LONG: f64 = 3.0;
/// In force, waits may be so many times what they are without a crowd.
const BUFFER: f64 = 2.0;
/// The limit changes by no more than this factor at once, and is never lower.
const STEEPEST: f64 = 0.5;
const LEAST: f64 = 4.0;
/// What was begun in vain must have been worked off before the limit is judged: after so many of the waits that
/// brought it into force, within bounds.
const WAITS: u32 = 2;
const SETTLED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// It stays in force only if at least this share of those who got answers before still do.
const SERVED: f64 = 0.9;
/// After one that was wrong none comes into force for so long.
const DOUBT: Duration = Duration::from_secs(300);
/// It ends when nobody was refused for so long.
const OVER: Duration = Duration::from_secs(10);
/// What waits are without a crowd is remembered for so long, or twice.
const MEMORY: Duration = Duration::from_secs(300);

/// The limit, and what it goes by.
#[derive(Debug)]
pub struct Shedding {
    under_way: u32,
    span: Span,
    /// The shortest average wait, in seconds, of the present time of memory and of the one before.
    shortest: [Option<f64>; 2],
    turns: Instant,
    /// Spans in a row in which clients gave up, and what was answered in them, in how many seconds.
    signs: u32,
    signs_answered: f64,
    signs_seconds: f64,
    in_doubt: Option<Instant>,
    force: Option<Force>,
}

#[derive(Debug)]
struct Span {
    begin: Instant,
    answered: u32,
    gave_up: u32,
    refused: u32,
    /// The most that were under way.
    peak: u32,
    /// Of all who waited.
    waited: Duration,
}

#[derive(Debug)]
struct Force {
    limit: f64,
    /// The wait without a crowd, in seconds.
    base: f64,
    /// When it is judged, once what was begun in vain is over; then nothing.
    judged_at: Option<Instant>,
    /// Answers a second before it came into force.
    served: f64,
    /// When somebody was refused last.
    refused: Instant,
}

/// What became of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It came into force: so many may be under way.
    InForce(u32),
    /// It did not help, and was lifted.
    Lifted,
    /// The overload is over.
    Over,
}

impl Span {
    fn new(begin: Instant, under_way: u32) -> Self {
        Self { begin, answered: 0, gave_up: 0, refused: 0, peak: under_way, waited: Duration::ZERO }
    }
}

impl Shedding {
    /// No limit is in force.
    pub fn new(now: Instant) -> Self {
        Self {
            under_way: 0,
            span: Span::new(now, 0),
            shortest: [None; 2],
            turns: now + MEMORY,
            signs: 0,
            signs_answered: 0.0,
            signs_seconds: 0.0,
            in_doubt: None,
            force: None,
        }
    }

    /// How many may be under way, while that is limited.
    pub fn limit(&self) -> Option<u32> {
        self.force.as_ref().map(|force| force.limit as u32)
    }

    /// Begins a request that matters so much, unless it is refused. One that began ends by one of the others.
    pub fn enter(&mut self, criticality: Criticality) -> bool {
        if let Some(limit) = self.limit()
            && self.under_way >= criticality.share(limit)
        {
            self.span.refused += 1;
            return false;
        }
        self.under_way += 1;
        self.span.peak = self.span.peak.max(self.under_way);
        true
    }

    /// An answer has come.
    pub fn answered(&mut self, waited: Duration, now: Instant) -> Option<Turn> {
        self.span.answered += 1;
        self.ended(waited, now)
    }

    /// The client has gone, or was told that it took too long.
    pub fn gave_up(&mut self, waited: Duration, now: Instant) -> Option<Turn> {
        self.span.gave_up += 1;
        self.ended(waited, now)
    }

    /// It ended in a way that tells nothing.
    pub fn dropped(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn ended(&mut self, waited: Duration, now: Instant) -> Option<Turn> {
        self.under_way = self.under_way.saturating_sub(1);
        self.span.waited += waited;
        let count = self.span.answered + self.span.gave_up;
        if count < LEAST_SAMPLE || now.saturating_duration_since(self.span.begin) < SPAN {
            return None;
        }
        let span = std::mem::replace(&mut self.span, Span::new(now, self.under_way));
        let wait = (span.waited.as_secs_f64() / f64::from(count)).max(1e-6);
        self.remember(wait, now);
        let turn = if self.force.is_some() { self.go_on(&span, wait, now) } else { self.look(&span, wait, now) };
        if matches!(turn, Some(Turn::Lifted | Turn::Over)) {
            self.force = None;
        }
        turn
    }

    fn remember(&mut self, wait: f64, now: Instant) {
        if now >= self.turns {
            self.turns = now + MEMORY;
            self.shortest = [None, self.shortest[0]];
        }
        self.shortest[0] = Some(self.shortest[0].map_or(wait, |shortest| shortest.min(wait)));
    }

    /// Whether what happened in a span is an overload.
    fn look(&mut self, span: &Span, wait: f64, now: Instant) -> Option<Turn> {
        let base = self.shortest.into_iter().flatten().fold(wait, f64::min);
        let sign = span.gave_up * ONE_OF >= span.answered + span.gave_up && wait >= base * LONG;
        let doubtful = self.in_doubt.is_some_and(|until| now < until);
        if !sign || doubtful {
            (self.signs, self.signs_answered, self.signs_seconds) = (0, 0.0, 0.0);
            return None;
        }
        self.signs += 1;
        self.signs_answered += f64::from(span.answered);
        self.signs_seconds += now.saturating_duration_since(span.begin).as_secs_f64();
        if self.signs < SPANS {
            return None;
        }
        let served = self.signs_answered / self.signs_seconds.max(1e-6);
        (self.signs, self.signs_answered, self.signs_seconds) = (0, 0.0, 0.0);
        let limit = (f64::from(span.peak) * base * BUFFER / wait).max(LEAST);
        let settled = Duration::from_secs_f64(wait * f64::from(WAITS)).clamp(SETTLED.0, SETTLED.1);
        self.force = Some(Force { limit, base, judged_at: Some(now + settled), served, refused: now });
        Some(Turn::InForce(limit as u32))
    }

    /// What a span in force says of the limit.
    fn go_on(&mut self, span: &Span, wait: f64, now: Instant) -> Option<Turn> {
        let Some(force) = &mut self.force else { return None };
        if span.refused > 0 {
            force.refused = now;
        } else if now.saturating_duration_since(force.refused) >= OVER {
            return Some(Turn::Over);
        }
        if force.judged_at.is_some_and(|at| span.begin >= at) {
            force.judged_at = None;
            let seconds = now.saturating_duration_since(span.begin).as_secs_f64();
            if f64::from(span.answered) / seconds.max(1e-6) < force.served * SERVED {
                self.in_doubt = Some(now + DOUBT);
                return Some(Turn::Lifted);
            }
        }
        force.base = force.base.min(wait);
        let gradient = (force.base * BUFFER / wait).clamp(STEEPEST, 1.0);
        let wanted = force.limit * gradient + force.limit.sqrt();
        // A limit that is not reached says nothing about what is beyond it.
        if wanted < force.limit || f64::from(span.peak) >= force.limit / 2.0 {
            force.limit = f64::midpoint(force.limit, wanted).max(LEAST);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::Random;

    /// An application that works on some requests at once, each for a while, in the order they came, and does not hear of
    /// clients that have gone; clients wait for a second.
    struct World {
        begin: Instant,
        /// In milliseconds.
        now: u64,
        slots: usize,
        work: u64,
        patience: u64,
        /// When each came, and whether its client is still there.
        waiting: VecDeque<(u64, bool)>,
        /// When it ends, when it came, whether its client is there.
        working: Vec<(u64, u64, bool)>,
        shedding: Shedding,
        random: Random,
        due: f64,
    }

    #[derive(Debug, Default)]
    struct Outcome {
        good: u64,
        refused: u64,
        gone: u64,
        worst: u64,
        turns: Vec<Turn>,
    }

    impl World {
        fn new(slots: usize, work: u64) -> Self {
            let begin = Instant::now();
            let shedding = Shedding::new(begin);
            let (waiting, working, random) = (VecDeque::new(), Vec::new(), Random::new(7));
            Self { begin, now: 0, slots, work, patience: 1000, waiting, working, shedding, random, due: 0.0 }
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.begin + Duration::from_millis(milliseconds)
        }

        /// Goes on for so many milliseconds with so many requests in each on average.
        fn run(&mut self, milliseconds: u64, rate: f64) -> Outcome {
            let mut outcome = Outcome::default();
            for _ in 0..milliseconds {
                self.now += 1;
                let now = self.at(self.now);
                self.due += rate * f64::from(self.random.next()) / f64::from(u32::MAX) * 2.0;
                while self.due >= 1.0 {
                    self.due -= 1.0;
                    if self.shedding.enter(Criticality::Critical) {
                        self.waiting.push_back((self.now, true));
                    } else {
                        outcome.refused += 1;
                    }
                }
                let (patience, time) = (self.patience, self.now);
                let leaves = |came: u64, there: &mut bool| time - came >= patience && std::mem::replace(there, false);
                let waiting = self.waiting.iter_mut().map(|(came, there)| (*came, there));
                let working = self.working.iter_mut().map(|(_, came, there)| (*came, there));
                for (came, there) in waiting.chain(working) {
                    if leaves(came, there) {
                        outcome.gone += 1;
                        outcome.turns.extend(self.shedding.gave_up(Duration::from_millis(time - came), now));
                    }
                }
                let shedding = &mut self.shedding;
                self.working.retain(|(ends, came, there)| {
                    if *ends <= time && *there {
                        outcome.good += 1;
                        outcome.worst = outcome.worst.max(time - came);
                        outcome.turns.extend(shedding.answered(Duration::from_millis(time - came), now));
                    }
                    *ends > time
                });
                while self.working.len() < self.slots
                    && let Some((came, there)) = self.waiting.pop_front()
                {
                    let chance = f64::from(self.random.next()) / f64::from(u32::MAX) + 0.5;
                    let work = (self.work as f64 * chance).round().max(1.0) as u64;
                    self.working.push((self.now + work, came, there));
                }
            }
            outcome
        }
    }

    #[test]
    fn under_twice_the_load_most_of_what_can_be_done_is_done_for_clients_that_wait() {
        for (slots, work) in [(8, 20), (4, 100), (60, 50)] {
            let mut world = World::new(slots, work);
            let able = slots as f64 / work as f64;
            world.run(3_000, able / 2.0);
            let begun = world.run(6_000, able * 2.0);
            let outcome = world.run(15_000, able * 2.0);
            let most = (able * 15_000.0) as u64;
            assert!(begun.gone > 0 && matches!(begun.turns[..], [Turn::InForce(_), ..]), "{slots}: {begun:?}");
            assert!(outcome.good * 10 >= most * 9, "{slots}: {} of {most}", outcome.good);
            assert!(outcome.gone * 100 < most && outcome.refused > most / 2, "{slots}: {outcome:?}");
            assert!(outcome.turns.is_empty(), "it stays in force: {:?}", outcome.turns);
            // And it ends.
            let after = world.run(20_000, able / 2.0);
            assert_eq!(after.turns, [Turn::Over], "{slots}");
            let calm = world.run(10_000, able * 0.8);
            assert_eq!((calm.refused, calm.gone), (0, 0), "{slots}");
        }
    }

    #[test]
    fn without_it_hardly_anybody_is_answered() {
        let mut world = World::new(8, 20);
        world.shedding.in_doubt = Some(world.at(1_000_000_000));
        world.run(5_000, 0.8);
        let outcome = world.run(15_000, 0.8);
        assert!(outcome.good < 6_000 / 2, "else the other test proves nothing: {}", outcome.good);
    }

    #[test]
    fn below_its_capacity_an_application_never_sees_it() {
        let mut world = World::new(20, 20);
        for round in 0..20 {
            // Bursts of three times what can be done, and quiet between them.
            let burst = world.run(300, 3.0);
            let quiet = world.run(1_500, 0.3);
            let refused = burst.refused + quiet.refused;
            assert_eq!((refused, burst.turns.len() + quiet.turns.len()), (0, 0), "{round}");
        }
        // An application that gets slow, and whose clients wait all the same.
        world.work = 900;
        world.patience = 60_000;
        let slow = world.run(20_000, 0.04);
        assert_eq!((slow.refused, slow.turns.len()), (0, 0));
    }

    #[test]
    fn clients_that_give_up_what_lasts_by_its_nature_are_not_refused() {
        // Long polls: room for all of them, and each ends by the client, now and then by an event.
        let mut world = World::new(100_000, 900);
        let outcome = world.run(300_000, 0.1);
        assert!(outcome.gone * 5 > outcome.good, "{outcome:?}");
        assert_eq!((outcome.refused, outcome.turns.len()), (0, 0));
    }

    #[test]
    fn a_client_that_is_stopped_with_many_requests_is_no_overload() {
        let mut world = World::new(100, 20);
        world.run(5_000, 1.0);
        let now = world.at(world.now);
        (0..500).for_each(|_| assert!(world.shedding.enter(Criticality::Sheddable)));
        let turns: Vec<_> = (0..500).filter_map(|_| world.shedding.gave_up(Duration::from_millis(400), now)).collect();
        assert_eq!(turns, []);
        let after = world.run(5_000, 1.0);
        assert_eq!((after.refused, after.turns.len()), (0, 0));
    }

    #[test]
    fn one_that_does_not_help_is_lifted_and_not_tried_again_soon() {
        // Quick answers among long polls that clients give up: there is no crowd, but it looks like one.
        let begin = Instant::now();
        let mut shedding = Shedding::new(begin);
        let mut polls = VecDeque::new();
        let (mut refused, mut all, mut turns) = (0, 0, Vec::new());
        for step in 0..120_000_u64 {
            let now = begin + Duration::from_millis(step);
            all += 1;
            if !shedding.enter(Criticality::Standard) {
                refused += 1;
            } else if step % 8 == 0 && step > 2_000 {
                polls.push_back(step);
            } else {
                turns.extend(shedding.answered(Duration::from_millis(1), now));
            }
            while polls.front().is_some_and(|came| step - came >= 3_000) {
                polls.pop_front();
                turns.extend(shedding.gave_up(Duration::from_secs(3), now));
            }
        }
        assert!(matches!(turns[..], [Turn::InForce(_), Turn::Lifted]), "{turns:?}");
        assert!(refused * 100 < all * 6, "{refused} of {all}");
    }

    #[test]
    fn what_matters_least_goes_first() {
        let now = Instant::now();
        let mut shedding = Shedding::new(now);
        shedding.force = Some(Force { limit: 10.0, base: 0.01, judged_at: None, served: 0.0, refused: now });
        let take = |shedding: &mut Shedding, criticality| (0..20).filter(|_| shedding.enter(criticality)).count();
        assert_eq!(take(&mut shedding, Criticality::Sheddable), 7);
        assert_eq!(take(&mut shedding, Criticality::Standard), 2);
        assert_eq!(take(&mut shedding, Criticality::Critical), 1);
        (0..10).for_each(|_| shedding.dropped());
        assert_eq!(take(&mut shedding, Criticality::Critical), 10);
    }
}
