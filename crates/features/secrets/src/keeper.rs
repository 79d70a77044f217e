//! Keeps the outputs of one provider as they should be.
//!
//! In: a provider, the outputs that read it, time. Out: files and variables, and reports of
//! how that goes. Promise: one task owns it all; each path is read once per round however
//! many templates name it; a failure leaves the last good state and is tried again; at the
//! end, what was lent is given back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use outrigger_config::Secret;
use outrigger_runtime::{Backoff, FileWatcher, Stop};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::entry::{Entry, time_to_renew};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::output::{Output, OutputSpec, Target};
use crate::provider::{Lease, Provider};
use crate::template::{Rendered, Secrets};
use crate::told::Told;
use crate::vault::Renewal;

/// Reads under way at a time.
const READS_AT_ONCE: usize = 8;
/// Rounds of rendering and reading in which every template must come to its end: paths made from other secrets take one each.
const MOST_ROUNDS: usize = 16;
/// The first wait after a failure is at most this long: at a start Vault is often only just coming up.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// Time to give back leases when nobody presses us.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);
/// Kept of the stop's time, so that we end before we are ended.
const STOP_RESERVE: Duration = Duration::from_millis(100);

/// What a keeper is to do. When its sender is gone, it gives back what was lent and ends.
pub(crate) enum Orders {
    /// Keep these.
    Keep(Vec<OutputSpec>),
    /// Touch nothing any more.
    Rest,
}

/// How a keeper's outputs are.
#[derive(Default)]
pub(crate) struct Report {
    /// Every output has been made at least once.
    pub(crate) settled: bool,
    /// What is wrong, each thing once.
    pub(crate) troubles: Vec<String>,
    pub(crate) variables: Vec<(String, Secret)>,
    /// How outputs and paths are, for operators.
    pub(crate) told: Told,
}

/// What a keeper is given.
pub(crate) struct Desk {
    /// Tells this keeper's reports from others'.
    pub(crate) id: u64,
    pub(crate) orders: watch::Receiver<Orders>,
    pub(crate) reports: mpsc::Sender<(u64, Report)>,
    pub(crate) stop: Stop,
    pub(crate) metrics: Metrics,
    pub(crate) longest_wait: Duration,
}

/// One provider and all that hangs on it.
pub(crate) struct Keeper {
    provider: Provider,
    desk: Desk,
    outputs: Vec<Output>,
    entries: BTreeMap<String, Entry>,
    revisions: u64,
    token_trouble: Option<Error>,
    /// Its provider is no longer in the config; it only holds what was lent.
    resting: bool,
    backoff: Backoff,
    next: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(provider: Provider, desk: Desk) -> Self {
        let backoff = Backoff::new(FIRST_WAIT, desk.longest_wait);
        let mut keeper = Self {
            provider,
            desk,
            outputs: Vec::new(),
            entries: BTreeMap::new(),
            revisions: 0,
            token_trouble: None,
            resting: false,
            backoff,
            next: None,
        };
        keeper.follow_orders();
        keeper
    }

    /// Works until the stop, or until nobody gives orders any more.
    pub(crate) async fn run(mut self) {
        let stop = self.desk.stop.clone();
        let mut watcher = self.watch();
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => break,
                changed = self.desk.orders.changed() => match changed {
                    Ok(()) => self.follow_orders(),
                    Err(_) => break,
                },
                () = changed(&mut watcher) => self.source_changed(),
                () = due(self.next) => tokio::select! {
                    biased;
                    () = stop.requested() => break,
                    () = self.work() => {}
                },
            }
        }
        self.leave().await;
    }

    fn watch(&self) -> Option<FileWatcher> {
        let paths = self.provider.watched();
        if paths.is_empty() {
            return None;
        }
        let failed = |error| tracing::warn!(component = "secrets", %error, "cannot watch for changes of files");
        FileWatcher::new(paths).map_err(failed).ok()
    }

    /// Takes over the orders: outputs that stay as they are keep their state.
    fn follow_orders(&mut self) {
        let orders = self.desk.orders.borrow_and_update();
        let Orders::Keep(specs) = &*orders else {
            (self.resting, self.next) = (true, None);
            return;
        };
        let mut before = std::mem::take(&mut self.outputs);
        for spec in specs {
            let same = before.iter().position(|output| output.spec == *spec);
            let output = same.map(|index| before.swap_remove(index));
            self.outputs.push(output.unwrap_or_else(|| Output::new(spec.clone(), &self.desk.metrics)));
        }
        self.next = Some(Instant::now());
    }

    /// A file that the provider reads has changed.
    fn source_changed(&mut self) {
        if self.resting {
            return;
        }
        let now = Instant::now();
        match &mut self.provider {
            Provider::Folder(_) => self.entries.values_mut().for_each(|entry| entry.due = Some(now)),
            Provider::Vault(vault) => {
                if vault.files_changed() {
                    self.leases_are_void();
                }
            }
        }
        self.next = Some(now);
    }

    /// One pass: refresh what is due, render what has changed, look after the token.
    async fn work(&mut self) {
        self.refresh().await;
        self.render().await;
        self.report().await;
        self.attend().await;
        self.tidy().await;
        self.schedule();
        self.report().await;
    }

    /// Renews leases and reads again what is due, and what made a template fail.
    async fn refresh(&mut self) {
        let now = Instant::now();
        for output in self.outputs.iter().filter(|output| matches!(output.trouble, Some(Error::Render { .. }))) {
            for path in output.used.keys() {
                if let Some(entry) = self.entries.get_mut(path).filter(|entry| entry.lease.is_none()) {
                    entry.due = Some(now);
                }
            }
        }
        let due = |entry: &Entry| entry.due.is_some_and(|due| due <= now);
        let mut due: BTreeSet<String> =
            self.entries.iter().filter(|(_, entry)| due(entry)).map(|(path, _)| path.clone()).collect();
        if due.is_empty() {
            return;
        }
        if self.provider.prepare().await.is_ok() {
            for path in self.renew(&due).await {
                due.remove(&path);
            }
        }
        for (path, error) in self.fetch(due).await {
            if let Some(entry) = self.entries.get_mut(&path) {
                entry.trouble = Some(error);
            }
        }
    }

    /// Renews the leases among these; the paths that need no reading for now.
    async fn renew(&mut self, due: &BTreeSet<String>) -> Vec<String> {
        let Provider::Vault(vault) = &self.provider else { return Vec::new() };
        let leases = due.iter().filter_map(|path| {
            let lease = self.entries.get(path)?.lease.clone().filter(|lease| lease.renewable)?;
            Some((path.clone(), lease))
        });
        let vault = &**vault;
        let renew = |(path, lease): (String, Lease)| async move { (path, vault.renew(&lease).await) };
        let results: Vec<_> =
            stream::iter(leases.collect::<Vec<_>>()).map(renew).buffer_unordered(READS_AT_ONCE).collect().await;
        let mut settled = Vec::new();
        for (path, result) in results {
            let Some(entry) = self.entries.get_mut(&path) else { continue };
            match result {
                Ok(Renewal::Renewed(lease)) => {
                    entry.due = Some(Instant::now() + time_to_renew(&lease));
                    (entry.lease, entry.trouble, entry.at) = (Some(lease), None, SystemTime::now());
                    settled.push(path);
                }
                Ok(Renewal::Over) => {}
                Err(error) => {
                    entry.trouble = Some(error);
                    settled.push(path);
                }
            }
        }
        settled
    }

    /// Renders all that is pending, reading what that takes.
    async fn render(&mut self) {
        let entries = &self.entries;
        let revision = |path: &str| entries.get(path).map(|entry| entry.revision);
        let pending = self.outputs.iter().enumerate().filter(|(_, output)| output.is_pending(revision));
        let mut pending: BTreeSet<usize> = pending.map(|(index, _)| index).collect();
        let mut failures = BTreeMap::new();
        for _ in 0..MOST_ROUNDS {
            let secrets = self.entries.iter().map(|(path, entry)| (path.clone(), entry.value.clone()));
            let secrets: Arc<Secrets> = Arc::new(secrets.collect());
            let mut needed = BTreeSet::new();
            for index in pending.clone() {
                match self.render_one(index, &secrets, &failures).await {
                    Some(paths) => needed.extend(paths),
                    None => _ = pending.remove(&index),
                }
            }
            if needed.is_empty() {
                return;
            }
            failures.extend(self.fetch(needed).await);
        }
        for index in pending {
            let output = &mut self.outputs[index];
            let message = format!("it still asks for further secrets after {MOST_ROUNDS} rounds");
            let (target, at) = (output.spec.label(), output.spec.at.clone());
            output.fail(Error::Render { target, at, line: 1, message });
        }
    }

    /// Renders one output; the paths it needs before it can be.
    async fn render_one(
        &mut self,
        index: usize,
        secrets: &Arc<Secrets>,
        failures: &BTreeMap<String, Error>,
    ) -> Option<BTreeSet<String>> {
        let output = &mut self.outputs[index];
        let rendered = match &output.template {
            Ok(template) => template.render(secrets),
            Err(error) => {
                let error = error.clone();
                output.fail(error);
                return None;
            }
        };
        match rendered {
            Rendered::Needs(paths) => match paths.iter().find_map(|path| failures.get(path)) {
                Some(error) => output.fail(error.clone()),
                None => return Some(paths),
            },
            Rendered::Flawed { flaw, used } => output.flaw(flaw, &used),
            Rendered::Whole { content, used } => {
                let entries = used.iter().filter_map(|path| Some((path, self.entries.get(path)?)));
                let version = entries.clone().map(|(_, entry)| entry.version).max().unwrap_or(1);
                let used = entries.map(|(path, entry)| (path.clone(), entry.revision)).collect();
                output.put(content, used, version).await;
            }
        }
        None
    }

    /// Reads paths side by side; what could not be read, and why.
    async fn fetch(&mut self, paths: BTreeSet<String>) -> BTreeMap<String, Error> {
        if let Err(error) = self.provider.prepare().await {
            return paths.into_iter().map(|path| (path, error.clone())).collect();
        }
        let mut failures = self.read(paths).await;
        let rejected = failures.iter().filter(|(_, error)| matches!(error, Error::TokenRejected { .. }));
        let rejected: BTreeSet<String> = rejected.map(|(path, _)| path.clone()).collect();
        let Provider::Vault(vault) = &mut self.provider else { return failures };
        if rejected.is_empty() || !vault.can_log_in_again() {
            return failures;
        }
        // The token has died before its time; its leases with it.
        vault.forget_session();
        match vault.prepare().await {
            Ok(()) => {
                self.leases_are_void();
                failures.retain(|path, _| !rejected.contains(path));
                failures.extend(self.read(rejected).await);
            }
            Err(error) => failures.extend(rejected.into_iter().map(|path| (path, error.clone()))),
        }
        failures
    }

    async fn read(&mut self, paths: BTreeSet<String>) -> BTreeMap<String, Error> {
        let provider = &self.provider;
        let read = |path: String| async move {
            let result = provider.read(&path).await;
            (path, result)
        };
        let mut results = stream::iter(paths).map(read).buffer_unordered(READS_AT_ONCE);
        let mut failures = BTreeMap::new();
        // Each is kept as it comes, so that a lease is known even if this is cut short.
        while let Some((path, result)) = results.next().await {
            match result {
                Ok(fetched) => {
                    self.revisions += 1;
                    let old = self.entries.get(&path);
                    let entry = Entry::new(fetched, old, self.revisions, provider.refresh());
                    self.entries.insert(path, entry);
                }
                Err(error) => _ = failures.insert(path, error),
            }
        }
        failures
    }

    /// Reads again all that hangs on a token which is no longer ours: it ends when the token does.
    fn leases_are_void(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.lease.is_some()) {
            (entry.lease, entry.due) = (None, Some(Instant::now()));
        }
    }

    /// Looks the token up once everything is in place, and renews it when that is due.
    async fn attend(&mut self) {
        let Provider::Vault(vault) = &mut self.provider else { return };
        if vault.attention().is_none_or(|due| due > Instant::now()) {
            return;
        }
        match vault.attend().await {
            Ok(replaced) => {
                self.token_trouble = None;
                if replaced {
                    self.leases_are_void();
                }
            }
            Err(error) => self.token_trouble = Some(error),
        }
    }

    /// Forgets secrets that no output uses any more, and gives back their leases.
    async fn tidy(&mut self) {
        if self.outputs.iter().any(|output| !output.done || output.trouble.is_some()) {
            return;
        }
        let used: BTreeSet<&String> = self.outputs.iter().flat_map(|output| output.used.keys()).collect();
        let unused: Vec<String> = self.entries.keys().filter(|path| !used.contains(path)).cloned().collect();
        let entries = unused.iter().filter_map(|path| self.entries.remove(path));
        let leases: Vec<Lease> = entries.filter_map(|entry| entry.lease).collect();
        if let (Provider::Vault(vault), false) = (&self.provider, leases.is_empty()) {
            let _ = timeout(LEAVE_WITHIN, vault.revoke(leases)).await;
        }
    }

    /// Decides when the next pass is.
    fn schedule(&mut self) {
        let now = Instant::now();
        let failed = !self.troubles().is_empty();
        let retry = failed.then(|| now + self.backoff.next().max(SHORTEST_WAIT));
        if !failed {
            self.backoff.reset();
        }
        for entry in self.entries.values_mut().filter(|entry| entry.trouble.is_some()) {
            entry.due = retry;
        }
        let token = match &self.provider {
            Provider::Vault(vault) if self.token_trouble.is_none() => vault.attention(),
            _ => None,
        };
        let due = self.entries.values().filter_map(|entry| entry.due);
        self.next = due.chain(retry).chain(token).min();
    }

    fn troubles(&self) -> Vec<String> {
        let outputs = self.outputs.iter().filter_map(|output| output.trouble.as_ref());
        let entries = self.entries.values().filter_map(|entry| entry.trouble.as_ref());
        let mut troubles = Vec::new();
        for trouble in outputs.chain(entries).chain(&self.token_trouble).map(ToString::to_string) {
            if !troubles.contains(&trouble) {
                troubles.push(trouble);
            }
        }
        troubles
    }

    async fn report(&self) {
        let variables = self.outputs.iter().filter_map(|output| match &output.spec.target {
            Target::Variable(name) => Some((name.clone(), output.value.clone()?)),
            Target::File(_) => None,
        });
        let report = Report {
            settled: self.outputs.iter().all(|output| output.done),
            troubles: self.troubles(),
            variables: variables.collect(),
            told: Told::of(&self.outputs, &self.entries),
        };
        // Nobody listens any more once the stop has begun.
        let _ = self.desk.reports.send((self.desk.id, report)).await;
    }

    /// Gives back leases and token, within the time there is.
    async fn leave(self) {
        let Provider::Vault(vault) = self.provider else { return };
        let leases: Vec<Lease> = self.entries.into_values().filter_map(|entry| entry.lease).collect();
        let within = match self.desk.stop.is_requested() {
            true => self.desk.stop.remaining().saturating_sub(STOP_RESERVE),
            false => LEAVE_WITHIN,
        };
        if timeout(within, vault.leave(leases)).await.is_err() {
            tracing::warn!(
                component = "secrets",
                "no time left to revoke what vault has lent us; it expires by itself"
            );
        }
    }
}

async fn changed(watcher: &mut Option<FileWatcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
