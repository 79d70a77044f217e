//! The components of the process under test: each does what its name says.

use std::fs;
use std::io::Write;
use std::time::Duration;

use outrigger_config::{Config, Secret};
use outrigger_runtime::{AdminResponse, AdminRoutes, BoxError, BoxFuture, Component, Context, StopPhase};

/// A component that does what its name says.
pub(crate) struct Actor {
    name: &'static str,
    phase: StopPhase,
    needs: &'static [&'static str],
}

pub(crate) const ACTORS: [Actor; 12] = [
    Actor { name: "inbound", phase: StopPhase::Inbound, needs: &["secrets"] },
    Actor { name: "outbound", phase: StopPhase::Outbound, needs: &[] },
    Actor { name: "secrets", phase: StopPhase::Secrets, needs: &[] },
    Actor { name: "slow", phase: StopPhase::Logs, needs: &[] },
    Actor { name: "failing", phase: StopPhase::Logs, needs: &[] },
    Actor { name: "panicking", phase: StopPhase::Logs, needs: &[] },
    Actor { name: "stubborn", phase: StopPhase::Inbound, needs: &[] },
    Actor { name: "worker", phase: StopPhase::Outbound, needs: &[] },
    Actor { name: "server", phase: StopPhase::Inbound, needs: &[] },
    Actor { name: "hoarder", phase: StopPhase::Secrets, needs: &[] },
    Actor { name: "chatty", phase: StopPhase::Identity, needs: &[] },
    Actor { name: "metrics", phase: StopPhase::Metrics, needs: &[] },
];

/// Appends a line to the diary of the test, for the order of things.
fn note(line: &str) {
    let path = std::env::var_os("TEST_DIARY").unwrap();
    let mut diary = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    diary.write_all(format!("{line}\n").as_bytes()).unwrap();
}

impl Component for Actor {
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
        let cast = std::env::var("TEST_CAST").unwrap_or_default();
        if self.name == "metrics" { config.metrics.is_some() } else { cast.split(',').any(|name| name == self.name) }
    }
    fn check(&self, old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        match new.runtime.flush_budget.0.as_millis() {
            1313 if old.is_some() => Err("flushBudget is unlucky".into()),
            1414 => panic!("flushBudget is unheard of"),
            _ => Ok(()),
        }
    }
    fn run(&self, mut ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            note(&format!("{} begins", self.name));
            match self.name {
                "slow" => {
                    ctx.status.waiting("a tortoise");
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                "failing" => return Err("the dog ate it".into()),
                "panicking" => panic!("a mouse"),
                "server" => return crate::server::run(&ctx, note).await,
                "stubborn" | "hoarder" => {
                    ctx.status.ready();
                    return std::future::pending().await;
                }
                "worker" => {
                    let count = ctx.workers.count();
                    assert_eq!(ctx.workers.spawn(count - 1, || async { 1 }).await, Ok(1));
                }
                "secrets" => ctx.environment.set(vec![("DB_PASSWORD".to_owned(), Secret::new("s3cret".to_owned()))]),
                _ => {}
            }
            let hello = |_| -> BoxFuture<'static, AdminResponse> {
                Box::pin(async { AdminRoutes::text(http::StatusCode::OK, "hello\n") })
            };
            let _route = (self.name == "outbound").then(|| ctx.admin.register("/hello", "says hello", hello));
            note(&format!("{} ready", self.name));
            ctx.status.ready();
            loop {
                tokio::select! {
                    () = ctx.stop.requested() => break,
                    changed = ctx.config.changed() => {
                        changed?;
                        let level = ctx.config.borrow().telemetry.log.rate_limit;
                        note(&format!("{} sees {level}", self.name));
                    }
                }
            }
            for word in ["so", "long", "and", "thanks"].into_iter().filter(|_| self.name == "chatty") {
                tracing::warn!("{word}");
            }
            note(&format!("{} stopped", self.name));
            Ok(())
        })
    }
}
