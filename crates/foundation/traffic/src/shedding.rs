//! A limit on requests at once that comes into force when clients give up waiting, and not before.
//!
//! In: how requests end, and after how long. Out: whether another one may begin. Promise: while clients wait for
//! their answers nobody is refused, however many there are and however long they take. When they give up, because
//! answers take several times as long as they do without a crowd, the limit tends to what is worked on at once: answers
//! a second times how long one takes without a crowd, and as [`crate::Gradient`] moves it; should fewer clients get
//! answers by it than before, it was no overload, and the limit is lifted. How long answers take is learned from
//! answers only: who was late when we saw it gives up within milliseconds, and tells nothing.

use std::time::{Duration, Instant};

use crate::Criticality;

/// So much is looked at together, or longer, until this many requests have ended.
const SPAN: Duration = Duration::from_millis(100);
const LEAST_SAMPLE: u32 = 10;
/// So many of them must have been answered to tell how long answers take.
const LEAST_ANSWERED: u32 = 5;
/// Answers a second are counted over so long, or longer.
const SECOND: Duration = Duration::from_secs(1);
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
/// The limit is not lower than what is worked on at once and so much more, else the application would rest between answers.
const ROOM: f64 = 1.25;
/// What the application can do is forgotten by this factor in each span, should it do less.
const FORGET: f64 = 0.99;
/// The limit is judged once what was begun in vain is worked off, when answers come soon again: not before so many of the
/// waits that brought it into force, within bounds, and without that as soon as anybody is answered after so many times that.
const WAITS: u32 = 2;
const LATEST: u32 = 4;
const SETTLED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// It stays in force only if at least this share of those who got answers before still do.
const SERVED: f64 = 0.75;
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
    /// The most answers a second, likewise.
    most: [f64; 2],
    turns: Instant,
    /// The last known average wait of those who were answered, in seconds.
    wait: f64,
    /// Answers since then, and answers a second in the second before.
    second: (Instant, u32),
    rate: f64,
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
    /// Of all who were answered, and of all who gave up.
    waited: Duration,
    wasted: Duration,
}

#[derive(Debug)]
struct Force {
    limit: f64,
    /// The wait without a crowd, in seconds.
    base: f64,
    /// Answers a second that the application can give.
    able: f64,
    /// Until it is judged.
    trial: Option<Trial>,
    /// When somebody was refused last.
    refused: Instant,
}

#[derive(Debug)]
struct Trial {
    /// When it begins at the soonest, and at the latest.
    from: Instant,
    latest: Instant,
    /// Answers a second before the limit came into force.
    served: f64,
    /// Since when it goes on, how many were answered and refused.
    since: Option<Instant>,
    answered: u32,
    refused: u32,
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
        Self {
            begin,
            answered: 0,
            gave_up: 0,
            refused: 0,
            peak: under_way,
            waited: Duration::ZERO,
            wasted: Duration::ZERO,
        }
    }
}

impl Shedding {
    /// No limit is in force.
    pub fn new(now: Instant) -> Self {
        Self {
            under_way: 0,
            span: Span::new(now, 0),
            shortest: [None; 2],
            most: [0.0; 2],
            turns: now + MEMORY,
            wait: 0.0,
            second: (now, 0),
            rate: 0.0,
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
        self.span.waited += waited;
        self.ended(now)
    }

    /// The client has gone, or was told that it took too long.
    pub fn gave_up(&mut self, waited: Duration, now: Instant) -> Option<Turn> {
        self.span.gave_up += 1;
        self.span.wasted += waited;
        self.ended(now)
    }

    /// It ended in a way that tells nothing.
    pub fn dropped(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn ended(&mut self, now: Instant) -> Option<Turn> {
        self.under_way = self.under_way.saturating_sub(1);
        let count = self.span.answered + self.span.gave_up;
        if count < LEAST_SAMPLE || now.saturating_duration_since(self.span.begin) < SPAN {
            return None;
        }
        let span = std::mem::replace(&mut self.span, Span::new(now, self.under_way));
        let wait =
            (span.answered >= LEAST_ANSWERED).then(|| (span.waited.as_secs_f64() / f64::from(span.answered)).max(1e-6));
        self.learn(&span, wait, now);
        let turn = if self.force.is_some() { self.go_on(&span, wait, now) } else { self.look(&span, now) };
        if matches!(turn, Some(Turn::Lifted | Turn::Over)) {
            self.force = None;
        }
        turn
    }

    /// Remembers how long answers take without a crowd, and how many of them come in a second.
    fn learn(&mut self, span: &Span, wait: Option<f64>, now: Instant) {
        if now >= self.turns {
            self.turns = now + MEMORY;
            self.shortest = [None, self.shortest[0]];
            self.most = [0.0, self.most[0]];
        }
        if let Some(wait) = wait {
            self.wait = wait;
            self.shortest[0] = Some(self.shortest[0].map_or(wait, |shortest| shortest.min(wait)));
        }
        self.second.1 += span.answered;
        let took = now.saturating_duration_since(self.second.0);
        if took >= SECOND {
            self.rate = f64::from(self.second.1) / took.as_secs_f64();
            self.most[0] = self.most[0].max(self.rate);
            self.second = (now, 0);
        }
    }

    /// Whether what happened in a span is an overload.
    fn look(&mut self, span: &Span, now: Instant) -> Option<Turn> {
        // Without a single answer there is nothing to go by.
        let base = self.shortest.into_iter().flatten().reduce(f64::min)?;
        let count = span.answered + span.gave_up;
        // Where the last come first, answers are quick in the worst crowd; where the first do, hardly any comes.
        let wait = self.wait.max((span.waited + span.wasted).as_secs_f64() / f64::from(count));
        let sign = span.gave_up * ONE_OF >= count && wait >= base * LONG;
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
        let able = self.most[0].max(self.most[1]).max(served);
        let limit = (able * base * BUFFER).max(LEAST);
        let settled = Duration::from_secs_f64(wait * f64::from(WAITS)).clamp(SETTLED.0, SETTLED.1);
        let (from, latest) = (now + settled, now + settled * LATEST);
        let trial = Trial { from, latest, served, since: None, answered: 0, refused: 0 };
        self.force = Some(Force { limit, base, able, trial: Some(trial), refused: now });
        Some(Turn::InForce(limit as u32))
    }

    /// What a span in force says of the limit, and how long those waited who were answered in it, if enough were.
    fn go_on(&mut self, span: &Span, wait: Option<f64>, now: Instant) -> Option<Turn> {
        let force = self.force.as_mut()?;
        if span.refused > 0 {
            force.refused = now;
        } else if now.saturating_duration_since(force.refused) >= OVER {
            return Some(Turn::Over);
        }
        force.able = force.able.max(self.rate);
        if let Some(trial) = &mut force.trial {
            let soon = wait.is_some_and(|wait| wait < force.base * LONG);
            match trial.go_on(span, soon, now) {
                Some(true) => force.trial = None,
                Some(false) => {
                    self.in_doubt = Some(now + DOUBT);
                    return Some(Turn::Lifted);
                }
                None => {}
            }
        } else {
            force.able = (force.able * FORGET).max(self.rate);
        }
        let wait = wait?;
        force.base = force.base.min(wait);
        let gradient = (force.base * BUFFER / wait).clamp(STEEPEST, 1.0);
        let wanted = force.limit * gradient + force.limit.sqrt();
        // A limit that is not reached says nothing about what is beyond it.
        if wanted < force.limit || f64::from(span.peak) >= force.limit / 2.0 {
            let least = (force.able * force.base * ROOM).max(LEAST);
            force.limit = f64::midpoint(force.limit, wanted).max(least);
        }
        None
    }
}

impl Trial {
    /// Whether the limit is right, as soon as that is known; `soon` tells that answers come as if there were no crowd.
    fn go_on(&mut self, span: &Span, soon: bool, now: Instant) -> Option<bool> {
        let begins = (soon && span.begin >= self.from) || (span.answered > 0 && now >= self.latest);
        if self.since.is_none() && begins {
            self.since = Some(span.begin);
        }
        let since = self.since?;
        self.answered += span.answered;
        self.refused += span.refused;
        let took = now.saturating_duration_since(since);
        let right = || f64::from(self.answered) / took.as_secs_f64() >= self.served * SERVED;
        // Where nobody is refused, who is not answered has not asked.
        (took >= SECOND).then(|| self.refused == 0 || right())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::Random;

    /// An application that works on some requests at once, each for a while, in the order they came, and does not hear of
    /// clients that have gone; clients wait for a second from the moment they ask. In a crowd what they ask is seen late,
    /// for connections must be made and sockets be read, and the application's work takes longer, for those who wait cost
    /// it something, too.
    struct World {
        begin: Instant,
        /// In milliseconds.
        now: u64,
        slots: usize,
        work: u64,
        patience: u64,
        /// How late requests are seen in a crowd at most, and how many more that wait make the work twice as long.
        late: u64,
        weight: f64,
        /// When each is seen.
        coming: Vec<(u64, Request)>,
        waiting: VecDeque<Request>,
        /// When each ends.
        working: Vec<(u64, Request)>,
        shedding: Shedding,
        random: Random,
        due: f64,
    }

    struct Request {
        asked: u64,
        seen: u64,
        /// Whether its client is still there.
        there: bool,
    }

    #[derive(Debug, Default)]
    struct Outcome {
        good: u64,
        refused: u64,
        gone: u64,
        worst: u64,
        turns: Vec<Turn>,
    }

    /// More than so many that wait are a crowd.
    const CROWD: usize = 100;

    impl World {
        fn new(slots: usize, work: u64) -> Self {
            let begin = Instant::now();
            Self {
                begin,
                now: 0,
                slots,
                work,
                patience: 1000,
                late: 0,
                weight: f64::INFINITY,
                coming: Vec::new(),
                waiting: VecDeque::new(),
                working: Vec::new(),
                shedding: Shedding::new(begin),
                random: Random::new(7),
                due: 0.0,
            }
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.begin + Duration::from_millis(milliseconds)
        }

        /// From 0 to 1.
        fn chance(&mut self) -> f64 {
            f64::from(self.random.next()) / f64::from(u32::MAX)
        }

        /// Goes on for so many milliseconds with so many requests in each on average.
        fn run(&mut self, milliseconds: u64, rate: f64) -> Outcome {
            let mut outcome = Outcome::default();
            for _ in 0..milliseconds {
                self.now += 1;
                self.due += rate * self.chance() * 2.0;
                while self.due >= 1.0 {
                    self.due -= 1.0;
                    let late = if self.waiting.len() > CROWD { self.late as f64 * self.chance() } else { 0.0 };
                    let request = Request { asked: self.now, seen: self.now + late as u64, there: true };
                    self.coming.push((request.seen, request));
                }
                self.step(&mut outcome);
            }
            outcome
        }

        fn step(&mut self, outcome: &mut Outcome) {
            let (now, time, patience) = (self.at(self.now), self.now, self.patience);
            for (_, request) in self.coming.extract_if(.., |(seen, _)| *seen <= time) {
                if self.shedding.enter(Criticality::Critical) {
                    self.waiting.push_back(request);
                } else if time - request.asked < patience {
                    outcome.refused += 1;
                } else {
                    outcome.gone += 1;
                }
            }
            let working = self.working.iter_mut().map(|(_, request)| request);
            for request in self.waiting.iter_mut().chain(working) {
                if time - request.asked >= patience && std::mem::replace(&mut request.there, false) {
                    outcome.gone += 1;
                    outcome.turns.extend(self.shedding.gave_up(Duration::from_millis(time - request.seen), now));
                }
            }
            for (_, request) in self.working.extract_if(.., |(ends, _)| *ends <= time) {
                if request.there {
                    outcome.good += 1;
                    outcome.worst = outcome.worst.max(time - request.asked);
                    outcome.turns.extend(self.shedding.answered(Duration::from_millis(time - request.seen), now));
                }
            }
            while self.working.len() < self.slots
                && let Some(request) = self.waiting.pop_front()
            {
                let slower = 1.0 + self.waiting.len() as f64 / self.weight;
                let work = (self.work as f64 * (self.chance() + 0.5) * slower).round().max(1.0) as u64;
                self.working.push((self.now + work, request));
            }
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
    fn requests_that_are_seen_late_do_not_hide_what_answers_take_without_a_crowd() {
        for (late, weight, times) in
            [(1_000, 1_000.0, 2.0), (1_500, 200.0, 2.0), (900, 2_000.0, 4.0), (1_200, 2_000.0, 8.0)]
        {
            let mut world = World::new(8, 20);
            (world.late, world.weight) = (late, weight);
            world.run(6_000, 0.38);
            world.run(4_000, 0.4 * times);
            world.run(3_000 * times as u64, 0.4 * times);
            let outcome = world.run(12_000, 0.4 * times);
            assert!(outcome.good * 10 >= 4_800 * 9, "{late} {weight} {times}: {outcome:?}");
            assert!(outcome.worst < 250, "the queue is short: {outcome:?}");
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
        shedding.force = Some(Force { limit: 10.0, base: 0.01, able: 0.0, trial: None, refused: now });
        let take = |shedding: &mut Shedding, criticality| (0..20).filter(|_| shedding.enter(criticality)).count();
        assert_eq!(take(&mut shedding, Criticality::Sheddable), 7);
        assert_eq!(take(&mut shedding, Criticality::Standard), 2);
        assert_eq!(take(&mut shedding, Criticality::Critical), 1);
        (0..10).for_each(|_| shedding.dropped());
        assert_eq!(take(&mut shedding, Criticality::Critical), 10);
    }
}
