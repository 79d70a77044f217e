//! The component `probes`: endpoints on the health port, as long as the process lives.
//!
//! In: the environment. Out: one endpoint per probe. Promise: without probes to ask it is off and
//! costs nothing; probes are answered until the application has gone.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::StatusCode;
use http::header::USER_AGENT;
use outrigger_config::Config;
use outrigger_http::Resolver;
use outrigger_runtime::{AdminRequest, AdminRoute, AdminRoutes, BoxError, BoxFuture, Component, Context, StopPhase};

use crate::ask::Asker;
use crate::plan::{Plan, PlanError, Probe};
use crate::verifier;

/// The variable that says what to ask.
const PROBES: &str = "OUTRIGGER_PROBES";
/// The variable with the pod's address, where the kubelet would ask; without it the loopback address is asked.
const ADDRESS: &str = "POD_IP";

/// The component `probes`.
pub struct ProbesComponent {
    plan: Result<Plan, PlanError>,
    address: IpAddr,
    resolver: Resolver,
}

impl ProbesComponent {
    /// A component that asks what the environment says.
    pub fn from_environment(resolver: Resolver) -> Self {
        let address = std::env::var(ADDRESS).ok().and_then(|text| text.parse().ok());
        let text = std::env::var(PROBES).unwrap_or_default();
        let plan = if text.is_empty() { Ok(Plan::default()) } else { Plan::parse(&text) };
        Self::new(plan, address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), resolver)
    }

    /// A component that asks this of the application at `address`.
    pub fn new(plan: Result<Plan, PlanError>, address: IpAddr, resolver: Resolver) -> Self {
        Self { plan, address, resolver }
    }

    fn register(&self, routes: &AdminRoutes) -> Result<Vec<AdminRoute>, BoxError> {
        let plan = self.plan.as_ref().map_err(PlanError::clone)?;
        let asker = Asker { address: self.address, tls: verifier::client()?, resolver: self.resolver.clone() };
        let asker = Arc::new(asker);
        let one = |(path, probe): &(String, Probe)| {
            let (asker, probe, container) = (Arc::clone(&asker), probe.clone(), path.clone());
            routes.register(path, "a probe of the application", move |request| {
                let (asker, probe, path) = (Arc::clone(&asker), probe.clone(), container.clone());
                Box::pin(async move { answer(&asker, &probe, &path, &request).await })
            })
        };
        Ok(plan.probes.iter().map(one).collect())
    }
}

async fn answer(asker: &Asker, probe: &Probe, path: &str, request: &AdminRequest) -> outrigger_runtime::AdminResponse {
    match asker.ask(probe, request.headers.get(USER_AGENT)).await {
        // The kubelet would follow a redirect to the application's own host; to ours it must not.
        Ok(status) if status.is_redirection() => AdminRoutes::text(StatusCode::OK, "ok\n"),
        Ok(status) => AdminRoutes::text(status, format!("{status}\n")),
        Err(why) => {
            tracing::debug!(component = "probes", path, %why, "the application does not answer a probe");
            AdminRoutes::text(StatusCode::SERVICE_UNAVAILABLE, "the application does not answer\n")
        }
    }
}

impl Component for ProbesComponent {
    fn name(&self) -> &'static str {
        "probes"
    }

    /// While the application ends it is still asked.
    fn stop_phase(&self) -> StopPhase {
        StopPhase::Metrics
    }

    fn enabled(&self, _: &Config) -> bool {
        self.plan.as_ref().map_or(true, |plan| !plan.probes.is_empty())
    }

    fn check(&self, _: Option<&Config>, _: &Config) -> Result<(), BoxError> {
        self.plan.as_ref().map(drop).map_err(|error| error.clone().into())
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            let routes = self.register(&ctx.admin)?;
            ctx.status.ready();
            ctx.stop.requested().await;
            drop(routes);
            Ok(())
        })
    }
}
