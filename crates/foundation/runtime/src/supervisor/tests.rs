//! The supervisor's promises, on scripted components and a paused clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::board::Entry;
use crate::component::BoxFuture;

/// A component whose runs follow a script.
struct Scripted {
    name: &'static str,
    needs: &'static [&'static str],
    phase: StopPhase,
    runs: AtomicUsize,
    act: fn(usize, Context) -> BoxFuture<'static, Result<(), BoxError>>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Component for Scripted {
    fn name(&self) -> &'static str {
        self.name
    }
    fn needs(&self) -> &'static [&'static str] {
        self.needs
    }
    fn stop_phase(&self) -> StopPhase {
        self.phase
    }
    fn enabled(&self, config: &Config) -> bool {
        self.name != "optional" || config.metrics.is_some()
    }
    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.told.lock().push(format!("{} begins", self.name));
        let act = (self.act)(run, ctx);
        Box::pin(async move {
            let outcome = act.await;
            self.told.lock().push(format!("{} ends", self.name));
            outcome
        })
    }
}

/// Ready at once, and stops when asked.
fn good(_: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
    Box::pin(async move {
        ctx.status.ready();
        ctx.stop.requested().await;
        Ok(())
    })
}

/// Ready after a second.
fn slow(_: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
    Box::pin(async move {
        ctx.status.waiting("warming up");
        tokio::time::sleep(Duration::from_secs(1)).await;
        ctx.status.ready();
        ctx.stop.requested().await;
        Ok(())
    })
}

struct House {
    supervisor: Supervisor,
    board: Board,
    config: watch::Sender<Arc<Config>>,
    registry: Registry,
    told: Arc<Mutex<Vec<String>>>,
}

type Act = fn(usize, Context) -> BoxFuture<'static, Result<(), BoxError>>;
type Row = (&'static str, &'static [&'static str], StopPhase, Act);

impl House {
    fn new(rows: &[Row]) -> Self {
        let (config, receiver) = watch::channel(Arc::new(Config::default()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let component = |(name, needs, phase, act): &Row| -> Arc<dyn Component> {
            let (name, needs, phase, act) = (*name, *needs, *phase, *act);
            Arc::new(Scripted { name, needs, phase, act, runs: AtomicUsize::new(0), told: Arc::clone(&told) })
        };
        let components: Vec<_> = rows.iter().map(component).collect();
        let registry = Registry::new(&config.borrow().telemetry.registry, 1);
        let board = Board::new(&registry, components.iter().map(|c| (c.name(), c.needs(), c.stop_phase())));
        let shared = Shared {
            config: receiver,
            workers: Workers::new(1),
            registry: registry.clone(),
            sockets: Sockets::new(),
            environment: AppEnvironment::new(),
            admin: AdminRoutes::new(),
        };
        let mut supervisor = Supervisor::new(components, board.clone(), shared);
        supervisor.follow_config();
        Self { supervisor, board, config, registry, told }
    }

    /// Steps until `enough`, for at most an hour of the paused clock.
    async fn until(&mut self, enough: impl Fn(&Board) -> bool) {
        let steps = async {
            while !enough(&self.board) {
                self.supervisor.step().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), steps).await.expect("it comes to pass within an hour");
    }

    /// Steps for a while.
    async fn pass(&mut self, time: Duration) {
        let steps = async {
            loop {
                self.supervisor.step().await;
            }
        };
        let _: Result<(), _> = tokio::time::timeout(time, steps).await;
    }

    async fn stop(&mut self, phase: StopPhase, patience: Duration) {
        self.supervisor.stop_phase(phase, Instant::now() + patience);
        while !self.supervisor.at_rest(phase) {
            self.supervisor.step().await;
        }
    }

    fn entry(&self, name: &str) -> Entry {
        self.board.entries().into_iter().find(|entry| entry.name == name).unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = Vec::new();
        self.registry.encode(outrigger_telemetry::Format::Text, &mut text);
        String::from_utf8(text).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn components_start_in_the_order_of_their_needs_and_independent_ones_at_once() {
    let mut house = House::new(&[
        ("proxy", &["identity", "secrets"], StopPhase::Inbound, good),
        ("secrets", &["identity"], StopPhase::Secrets, slow),
        ("identity", &[], StopPhase::Identity, slow),
        ("logs", &["absent-from-this-build"], StopPhase::Logs, good),
    ]);
    let begun = Instant::now();
    house.pass(Duration::from_millis(10)).await;
    assert_eq!(*house.told.lock(), ["identity begins", "logs begins"]);
    assert_eq!(house.entry("proxy").reason, "needs identity, secrets");
    assert_eq!(house.entry("identity").reason, "warming up");
    assert!(!house.board.all_ready());
    house.until(Board::all_ready).await;
    assert_eq!(begun.elapsed().as_secs(), 2, "two warm-ups, one after the other");
    assert_eq!(*house.told.lock(), ["identity begins", "logs begins", "secrets begins", "proxy begins"]);
    assert!(house.metrics().contains("outrigger_component_ready{component=\"proxy\"} 1"));
}

#[tokio::test(start_paused = true)]
async fn a_component_that_fails_is_not_ready_says_why_and_is_tried_again() {
    fn third_time_lucky(run: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move {
            ctx.status.ready();
            tokio::time::sleep(Duration::from_secs(1)).await;
            match run {
                0 => Err("no luck".into()),
                1 => panic!("bad luck"),
                2 => Ok(()),
                _ => good(run, ctx).await,
            }
        })
    }
    let mut house = House::new(&[("logs", &[], StopPhase::Logs, third_time_lucky)]);
    for (failures, why) in [(1, "no luck"), (2, "bad luck"), (3, "nobody asked it to stop")] {
        house.until(|board| board.entry(0).failures == failures).await;
        let entry = house.entry("logs");
        assert_eq!(entry.state, State::Failed);
        assert!(entry.reason.contains(why), "{}", entry.reason);
        assert!(house.metrics().contains("outrigger_component_ready{component=\"logs\"} 0"));
    }
    house.until(|board| board.entry(0).runs == 4).await;
    house.until(Board::all_ready).await;
    assert_eq!(house.entry("logs").last_failure, None);
    assert!(house.metrics().contains("outrigger_component_restarts_total{component=\"logs\"} 3"));
}

#[tokio::test(start_paused = true)]
async fn waits_between_runs_grow_up_to_the_cap_and_start_over_after_a_long_good_run() {
    fn hopeless(run: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move {
            if run == 20 {
                ctx.status.ready();
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            Err("hopeless".into())
        })
    }
    let mut house = House::new(&[("logs", &[], StopPhase::Logs, hopeless)]);
    let mut longest = Duration::ZERO;
    for failures in 1..=20 {
        house.until(|board| board.entry(0).failures == failures).await;
        let wait = house.supervisor.units[0].retry_at.unwrap() - Instant::now();
        assert!(wait <= Duration::from_secs(30));
        longest = longest.max(wait);
    }
    assert!(longest > Duration::from_secs(1), "{longest:?}");
    house.until(|board| board.entry(0).failures == 21).await;
    let wait = house.supervisor.units[0].retry_at.unwrap() - Instant::now();
    assert!(wait <= Duration::from_millis(200), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_report_of_an_earlier_run_and_one_during_the_stop_change_nothing() {
    static KEPT: Mutex<Option<crate::Status>> = Mutex::new(None);
    fn keeps(run: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move {
            if run == 0 {
                *KEPT.lock() = Some(ctx.status.clone());
                return Err("first".into());
            }
            ctx.status.waiting("second");
            ctx.stop.requested().await;
            ctx.status.ready();
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        })
    }
    let mut house = House::new(&[("logs", &[], StopPhase::Logs, keeps)]);
    house.until(|board| board.entry(0).failures == 1).await;
    let stale = KEPT.lock().take().unwrap();
    stale.ready();
    assert_eq!(house.entry("logs").state, State::Failed);
    house.until(|board| board.entry(0).state == State::Waiting).await;
    stale.ready();
    assert_eq!(house.entry("logs").state, State::Waiting);
    house.supervisor.stop_phase(StopPhase::Logs, Instant::now() + Duration::from_secs(5));
    house.pass(Duration::from_millis(100)).await;
    assert_eq!(house.entry("logs").state, State::Stopping);
}

#[tokio::test(start_paused = true)]
async fn a_component_that_does_not_stop_in_time_is_aborted_and_reported() {
    fn stubborn(_: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move {
            ctx.status.ready();
            std::future::pending().await
        })
    }
    let mut house = House::new(&[("stubborn", &[], StopPhase::Logs, stubborn), ("logs", &[], StopPhase::Logs, good)]);
    house.until(Board::all_ready).await;
    let begun = Instant::now();
    house.stop(StopPhase::Logs, Duration::from_secs(3)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!(house.entry("stubborn").state, State::Stopped);
    let metrics = house.metrics();
    assert!(metrics.contains("outrigger_component_stops_overdue_total{component=\"stubborn\"} 1"), "{metrics}");
    assert!(metrics.contains("outrigger_component_stops_overdue_total{component=\"logs\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn a_component_that_fails_while_another_phase_stops_is_still_started_again() {
    fn fails_once(run: usize, ctx: Context) -> BoxFuture<'static, Result<(), BoxError>> {
        Box::pin(async move {
            ctx.status.ready();
            if run == 0 {
                tokio::time::sleep(Duration::from_secs(2)).await;
                return Err("once".into());
            }
            good(run, ctx).await
        })
    }
    let mut house =
        House::new(&[("inbound", &[], StopPhase::Inbound, good), ("outbound", &[], StopPhase::Outbound, fails_once)]);
    house.until(Board::all_ready).await;
    house.stop(StopPhase::Inbound, Duration::from_secs(1)).await;
    house.until(|board| board.entry(1).runs == 2 && board.entry(1).state.is_ready()).await;
    assert_eq!(house.entry("inbound").state, State::Stopped);
    house.stop(StopPhase::Outbound, Duration::from_secs(1)).await;
    house.pass(Duration::from_secs(300)).await;
    assert_eq!(house.entry("outbound").runs, 2, "what was stopped stays stopped");
}

#[tokio::test(start_paused = true)]
async fn a_reload_starts_what_it_turns_on_and_stops_what_it_turns_off() {
    let mut house =
        House::new(&[("optional", &[], StopPhase::Metrics, good), ("proxy", &["optional"], StopPhase::Inbound, good)]);
    house.until(Board::all_ready).await;
    assert_eq!(*house.told.lock(), ["proxy begins"], "one that is off is not run, and counts as ready");
    assert!(!house.metrics().contains("optional"));
    let publish = |house: &mut House, metrics: bool| {
        let config = Config { metrics: metrics.then(Default::default), ..Config::default() };
        house.config.send_replace(Arc::new(config));
        house.supervisor.follow_config();
    };
    publish(&mut house, true);
    house.until(Board::all_ready).await;
    assert_eq!(house.entry("optional").state, State::Ready);
    publish(&mut house, false);
    house.until(|board| board.entry(0).state == State::Disabled).await;
    assert!(!house.metrics().contains("component=\"optional\"} 1"));
    // Off and on again before it could stop: it stops, and begins anew.
    publish(&mut house, true);
    house.until(Board::all_ready).await;
    publish(&mut house, false);
    publish(&mut house, true);
    house.until(|board| board.entry(0).runs == 3 && board.entry(0).state.is_ready()).await;
}

#[test]
fn needs_that_lead_back_to_themselves_are_found() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let component = |name, needs| -> Arc<dyn Component> {
        let (phase, act) = (StopPhase::Logs, good as Act);
        Arc::new(Scripted { name, needs, phase, act, runs: AtomicUsize::new(0), told: Arc::clone(&told) })
    };
    let fine = [component("a", &["b", "c"]), component("b", &["c"]), component("c", &["elsewhere"])];
    assert_eq!(cycle(&fine), None);
    let bad = [component("d", &["a"]), component("a", &["b"]), component("b", &["c"]), component("c", &["a"])];
    assert_eq!(cycle(&bad).as_deref(), Some("a needs b needs c needs a"));
    assert_eq!(cycle(&[component("a", &["a"])]).as_deref(), Some("a needs a"));
}

#[test]
fn an_error_is_told_with_its_causes_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);
    assert_eq!(chain(&Outer(std::io::Error::other("no disk"))), "cannot start: no disk");
}
