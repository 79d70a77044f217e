//! The life of the pillar: a keeper per provider, followed through reloads.
//!
//! In: section `secrets` of each config. Out: keepers that match it, one status of them all,
//! and the application's variables. Promise: ready means that every file is written and
//! every variable set; a provider that fails holds up only what reads it; a provider that
//! a reload takes away gives its leases back only when its successors are in place.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_config::{Config, SecretProvider, Secrets as Section};
use outrigger_http::Resolver;
use outrigger_runtime::{AdminRoute, AdminRoutes, BoxError, BoxFuture, Component, Context, StopPhase};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::keeper::{Desk, Keeper, Orders, Report};
use crate::metrics::Metrics;
use crate::output::OutputSpec;
use crate::provider::Provider;
use crate::told;

/// Reports on their way; a keeper with one more waits.
const REPORTS: usize = 16;

/// The component `secrets`.
pub struct SecretsComponent {
    resolver: Resolver,
}

impl SecretsComponent {
    /// A component that is not running yet; `resolver` finds Vault.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver }
    }
}

impl Component for SecretsComponent {
    fn name(&self) -> &'static str {
        "secrets"
    }

    fn stop_phase(&self) -> StopPhase {
        StopPhase::Secrets
    }

    fn enabled(&self, config: &Config) -> bool {
        config.secrets.is_some()
    }

    fn check(&self, _old: Option<&Config>, new: &Config) -> Result<(), BoxError> {
        let flaws: Vec<String> = new
            .secrets
            .iter()
            .flat_map(OutputSpec::all)
            .filter_map(|spec| spec.compile().err())
            .map(|error| error.to_string())
            .collect();
        if flaws.is_empty() { Ok(()) } else { Err(flaws.join("\n").into()) }
    }

    fn run(&self, ctx: Context) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { House::new(ctx, self.resolver.clone()).run().await })
    }
}

/// One run of the component.
struct House {
    metrics: Metrics,
    ctx: Context,
    resolver: Resolver,
    section: Arc<Config>,
    wards: Vec<Ward>,
    /// Without a place in the config; they hold leases until the others are settled.
    retiring: Vec<watch::Sender<Orders>>,
    tasks: JoinSet<()>,
    reporting: mpsc::Sender<(u64, Report)>,
    reports: mpsc::Receiver<(u64, Report)>,
    ids: u64,
    /// What `/secrets` answers.
    shown: Arc<Mutex<Value>>,
    _route: AdminRoute,
}

/// A keeper as seen from here.
struct Ward {
    id: u64,
    config: SecretProvider,
    orders: watch::Sender<Orders>,
    report: Option<Report>,
}

impl House {
    fn new(mut ctx: Context, resolver: Resolver) -> Self {
        let metrics = Metrics::new(&ctx.registry);
        let section = ctx.config.borrow_and_update().clone();
        let (wards, retiring, tasks) = (Vec::new(), Vec::new(), JoinSet::new());
        let (reporting, reports) = mpsc::channel(REPORTS);
        let shown = Arc::new(Mutex::new(Value::Null));
        let answer = Arc::clone(&shown);
        let about = "providers, files and variables: versions, ages, ends of leases, and no value, as JSON";
        let route = ctx.admin.register("/secrets", about, move |_| {
            let answer = AdminRoutes::json(&answer.lock().unwrap_or_else(PoisonError::into_inner));
            Box::pin(std::future::ready(answer))
        });
        Self {
            metrics,
            ctx,
            resolver,
            section,
            wards,
            retiring,
            tasks,
            reporting,
            reports,
            ids: 0,
            shown,
            _route: route,
        }
    }

    async fn run(mut self) -> Result<(), BoxError> {
        self.reconcile();
        let stop = self.ctx.stop.clone();
        // Whoever stops us may drop the config's sender first.
        let mut follow_config = true;
        loop {
            tokio::select! {
                () = stop.requested() => break,
                changed = self.ctx.config.changed(), if follow_config => match changed {
                    Ok(()) => self.config_changed(),
                    Err(_) => follow_config = false,
                },
                Some((id, report)) = self.reports.recv() => {
                    if let Some(ward) = self.wards.iter_mut().find(|ward| ward.id == id) {
                        ward.report = Some(report);
                        self.judge();
                    }
                }
                Some(ended) = self.tasks.join_next() => ended?,
            }
        }
        drop(self.reports);
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }

    fn config_changed(&mut self) {
        let new = self.ctx.config.borrow_and_update().clone();
        if new.secrets == self.section.secrets || new.secrets.is_none() {
            return;
        }
        let labels = |config: &Config| -> BTreeSet<String> {
            config.secrets.iter().flat_map(OutputSpec::all).map(|spec| spec.label()).collect()
        };
        for gone in labels(&self.section).difference(&labels(&new)) {
            self.metrics.forget(gone);
        }
        self.section = new;
        self.reconcile();
    }

    /// Makes the keepers match the section.
    fn reconcile(&mut self) {
        let config = self.section.clone();
        let Some(section) = &config.secrets else { return };
        let specs = OutputSpec::all(section);
        self.retire(section);
        for provider in &section.providers {
            let name = provider.name.to_string();
            let own: Vec<OutputSpec> = specs.iter().filter(|spec| spec.provider == name).cloned().collect();
            match self.wards.iter_mut().find(|ward| ward.config == *provider) {
                Some(ward) => {
                    ward.report = None;
                    ward.orders.send_replace(Orders::Keep(own));
                }
                None => self.engage(provider, own),
            }
        }
        self.judge();
    }

    /// Stops the keepers whose providers have changed or are gone.
    fn retire(&mut self, section: &Section) {
        let (kept, gone) = std::mem::take(&mut self.wards)
            .into_iter()
            .partition::<Vec<_>, _>(|ward| section.providers.contains(&ward.config));
        self.wards = kept;
        for ward in gone {
            ward.orders.send_replace(Orders::Rest);
            self.retiring.push(ward.orders);
        }
    }

    fn engage(&mut self, config: &SecretProvider, outputs: Vec<OutputSpec>) {
        let Some(provider) = Provider::new(config, &self.resolver, &self.metrics) else { return };
        self.ids += 1;
        let (orders, receiver) = watch::channel(Orders::Keep(outputs));
        let desk = Desk {
            id: self.ids,
            orders: receiver,
            reports: self.reporting.clone(),
            stop: self.ctx.stop.clone(),
            metrics: self.metrics.clone(),
            longest_wait: self.ctx.backoff.max,
        };
        self.tasks.spawn(Keeper::new(provider, desk).run());
        self.wards.push(Ward { id: self.ids, config: config.clone(), orders, report: None });
    }

    /// One status from all reports.
    fn judge(&mut self) {
        let providers = self.wards.iter().map(|ward| told::provider(&ward.config, ward.report.as_ref()));
        let shown = json!({ "providers": providers.collect::<Vec<_>>() });
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        let reports: Vec<&Report> = self.wards.iter().filter_map(|ward| ward.report.as_ref()).collect();
        let settled = reports.len() == self.wards.len() && reports.iter().all(|report| report.settled);
        let troubles: Vec<&String> = reports.iter().flat_map(|report| &report.troubles).collect();
        let reason = match troubles.as_slice() {
            [] => None,
            [only] => Some((*only).clone()),
            [first, rest @ ..] => Some(format!("{first} (and {} more)", rest.len())),
        };
        if settled {
            self.set_variables();
            // Their successors are in place.
            self.retiring.clear();
        }
        match (settled, reason) {
            (true, None) => self.ctx.status.ready(),
            (true, Some(reason)) => self.ctx.status.degraded(format!("serving the last good secrets: {reason}")),
            (false, Some(reason)) => self.ctx.status.waiting(reason),
            // A reload that adds a file does not take readiness away before something is wrong.
            (false, None) if self.ctx.status.is_ready() => {}
            (false, None) => self.ctx.status.waiting("reading the first secrets"),
        }
    }

    /// Hands the variables over, in the config's order.
    fn set_variables(&self) {
        let reports = self.wards.iter().filter_map(|ward| ward.report.as_ref());
        let known: Vec<_> = reports.flat_map(|report| &report.variables).collect();
        let wanted = self.section.secrets.iter().flat_map(|section| &section.env);
        let variables = wanted.filter_map(|wanted| known.iter().find(|(name, _)| *name == wanted.name));
        self.ctx.environment.set(variables.map(|(name, value)| (name.clone(), value.clone())).collect());
    }
}
