//! Keeps the webhook's certificate good, and the API server's trust in it.
//!
//! In: the Secret with the authorities, or files of somebody else; the webhook configuration. Out: TLS for the port; the
//! Secret and the `caBundle`, written by whoever leads. Promise: a certificate is shown that the API server trusts, as far
//! as one can be; what cannot be done is told, and what is in memory goes on being shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_config::{TlsVersion, WebhookCertificate};
use outrigger_identity::server_config_with_certificates;
use outrigger_kubernetes::resources::{MUTATING_WEBHOOKS, SECRETS, VALIDATING_WEBHOOKS};
use outrigger_kubernetes::{
    ApiError, Client, Informer, Key, Leadership, Patch, Resource, Selection, Store, Write, informer,
};
use outrigger_runtime::FileWatcher;
use outrigger_telemetry::Gauge;
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::certificate::authorities::{Authorities, Timing};
use crate::certificate::trust::Configured;

const DOCUMENT: &str = "authorities.json";
const BUNDLE: &str = "ca.crt";
/// What is due is looked at so often, and at each change.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure to write.
const PAUSE: Duration = Duration::from_secs(2);

/// What the port shows; none before there is a certificate.
pub(crate) type Shown = Arc<Mutex<Option<Arc<ServerConfig>>>>;

/// Keeps it, for as long as it is run.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) names: Vec<String>,
    pub(crate) configuration: String,
    /// The configuration that has profiles judged, where there are any.
    pub(crate) judging: Option<String>,
    pub(crate) certificate: WebhookCertificate,
    pub(crate) leadership: Leadership,
    pub(crate) shown: Shown,
    pub(crate) not_after: Gauge,
    /// What is wrong, for the status.
    pub(crate) problem: Arc<Mutex<Option<String>>>,
}

/// The document, as it was read.
type Document = Zeroizing<Vec<u8>>;

/// What is shown now.
struct Showing {
    authority: String,
    renew_at: SystemTime,
}

impl Keeper {
    /// Runs until it is dropped. Cancel-safe.
    pub(crate) async fn run(self) {
        let (following, configured) = self.configured(MUTATING_WEBHOOKS, &self.configuration);
        match &self.judging {
            None => {
                tokio::select! {
                    () = following.run() => {}
                    () = self.keep(&configured, None) => {}
                }
            }
            Some(name) => {
                let (following_too, judging) = self.configured(VALIDATING_WEBHOOKS, name);
                tokio::select! {
                    () = following.run() => {}
                    () = following_too.run() => {}
                    () = self.keep(&configured, Some(&judging)) => {}
                }
            }
        }
    }

    async fn keep(&self, configured: &Store<Configured>, judging: Option<&Store<Configured>>) {
        match self.certificate.directory.clone() {
            Some(folder) => {
                self.serve_files(&folder, configured, judging).await;
            }
            None => {
                let (reading, document) = self.document();
                tokio::select! {
                    () = reading.run() => {}
                    () = self.serve_own(&document, configured, judging) => {}
                }
            }
        }
    }

    fn configured(&self, kind: Resource, name: &str) -> (Informer<Configured>, Store<Configured>) {
        let only = Selection::fields(format!("metadata.name={name}"));
        informer(self.client.clone(), kind.all(), only, |found| Some(Configured::of(found)))
    }

    fn document(&self) -> (Informer<Document>, Store<Document>) {
        let only = Selection::fields(format!("metadata.name={}", self.certificate.secret.as_str()));
        let project = |secret: &Value| Some(Zeroizing::new(STANDARD.decode(secret["data"][DOCUMENT].as_str()?).ok()?));
        informer(self.client.clone(), SECRETS.within(&self.namespace), only, project)
    }

    /// With authorities of our own.
    async fn serve_own(
        &self,
        document: &Store<Document>,
        configured: &Store<Configured>,
        judging: Option<&Store<Configured>>,
    ) {
        let (mut documents, mut configurations) = (document.changes(), configured.changes());
        let mut showing = None;
        loop {
            let problem = self.look(document, configured, judging, &mut showing).await.err();
            let pause = if problem.is_some() { PAUSE } else { LOOK };
            self.tell(problem);
            tokio::select! {
                _ = documents.next() => {}
                _ = configurations.next() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn look(
        &self,
        document: &Store<Document>,
        configured: &Store<Configured>,
        judging: Option<&Store<Configured>>,
        showing: &mut Option<Showing>,
    ) -> Result<(), String> {
        if !document.is_synced() {
            return Err(document.problem().unwrap_or_else(|| format!("the Secret {} is not read yet", self.secret())));
        }
        let key = Key::new(&*self.namespace, self.certificate.secret.as_str());
        let text = document.get(&key);
        let known = match &text {
            None => Authorities::default(),
            Some(text) => Authorities::read(text).map_err(|problem| {
                format!("the Secret {} cannot be used: {problem}; remove it to have a new one made", self.secret())
            })?,
        };
        let (now, timing) = (SystemTime::now(), self.timing());
        let now_configured = configured.get(&Key::new("", &*self.configuration));
        // First, so that a failure to write keeps nobody from answering.
        self.show(&known, now_configured.as_deref(), now, showing)?;
        if self.leadership.leads() {
            if let Some(step) = known.step(now, timing) {
                let next = known.after(step, now, timing)?;
                self.write(text.as_deref(), &next).await?;
                tracing::info!(secret = %self.secret(), ?step, "the webhook's authorities changed");
                // What was written comes back by the watch.
                return Ok(());
            }
            if !known.0.is_empty() {
                self.have_all_trust(configured, judging, &known.bundle()).await?;
            }
        }
        if known.0.is_empty() {
            return Err(format!("the Secret {} has no authority yet; whoever leads makes it", self.secret()));
        }
        let mistrust = || self.mistrust(configured, now_configured.as_deref(), &known);
        document.problem().or_else(mistrust).or_else(|| self.unjudged(judging)).map_or(Ok(()), Err)
    }

    /// Why profiles are not judged as they are made.
    fn unjudged(&self, judging: Option<&Store<Configured>>) -> Option<String> {
        let (name, store) = (self.judging.as_deref()?, judging?);
        let missing = store.is_synced() && store.get(&Key::new("", name)).is_none();
        store.problem().or_else(|| {
            missing.then(|| {
                format!("there is no webhook configuration `{name}`, so profiles are not judged as they are made; `outrigger install` makes it")
            })
        })
    }

    fn mistrust(
        &self,
        configured: &Store<Configured>,
        now: Option<&Configured>,
        known: &Authorities,
    ) -> Option<String> {
        if !configured.is_synced() {
            let unread = || format!("the webhook configuration `{}` is not read yet", self.configuration);
            return Some(configured.problem().unwrap_or_else(unread));
        }
        let Some(now) = now else {
            let name = &self.configuration;
            return Some(format!(
                "there is no webhook configuration `{name}`, so no pod is injected; `outrigger install` makes it"
            ));
        };
        let trusted =
            known.signing(SystemTime::now(), |one| now.trusts(one)).is_some_and(|one| now.trusts(&one.certificate));
        (!trusted).then(|| {
            format!(
                "the webhook configuration `{}` does not trust us yet; whoever leads writes its `caBundle`",
                self.configuration
            )
        })
    }

    /// Shows a certificate of whoever signs now.
    fn show(
        &self,
        known: &Authorities,
        configured: Option<&Configured>,
        now: SystemTime,
        showing: &mut Option<Showing>,
    ) -> Result<(), String> {
        let trusts = |certificate: &str| configured.is_some_and(|configured| configured.trusts(certificate));
        let Some(signing) = known.signing(now, trusts) else { return Ok(()) };
        if showing
            .as_ref()
            .is_some_and(|now_shown| now_shown.authority == signing.certificate && now < now_shown.renew_at)
        {
            return Ok(());
        }
        let (config, ends) = signing.serve(&self.names, now)?;
        *self.shown.lock() = Some(config);
        let left = ends.duration_since(now).unwrap_or_default();
        *showing = Some(Showing { authority: signing.certificate.clone(), renew_at: now + left / 2 });
        self.not_after.set(ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        tracing::info!(names = ?self.names, "the webhook has a new certificate");
        Ok(())
    }

    /// Puts the next document in the place of the one that it was made of.
    async fn write(&self, before: Option<&Document>, next: &Authorities) -> Result<(), String> {
        let failed = |error: ApiError| error.to_string();
        let path = SECRETS.named(&self.namespace, self.certificate.secret.as_str());
        let found = self.client.find(path).await.map_err(failed)?;
        let there =
            found.as_ref().and_then(|secret| secret["data"][DOCUMENT].as_str()).map(|text| STANDARD.decode(text));
        match (&there, before) {
            (None, None) => {}
            (Some(Ok(there)), Some(before)) if there == &**before => {}
            // Somebody was faster; the watch tells.
            _ => return Ok(()),
        }
        let exists = found.is_some();
        let mut secret = found.unwrap_or_else(|| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": { "name": self.certificate.secret.as_str(), "namespace": self.namespace },
            })
        });
        secret["data"][DOCUMENT] = Value::String(STANDARD.encode(&*next.write()));
        secret["data"][BUNDLE] = Value::String(STANDARD.encode(next.bundle()));
        let written = match exists {
            true => self.client.update(path, &secret, Write::Real).await,
            false => self.client.create(path, &secret, Write::Real).await,
        };
        match written {
            Err(error) if !error.is_conflict() => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Has the API server trust a bundle, whatever it asks about.
    async fn have_all_trust(
        &self,
        configured: &Store<Configured>,
        judging: Option<&Store<Configured>>,
        bundle: &str,
    ) -> Result<(), String> {
        self.have_trusted(MUTATING_WEBHOOKS, &self.configuration, configured, bundle).await?;
        match self.judging.as_deref().zip(judging) {
            Some((name, judging)) => self.have_trusted(VALIDATING_WEBHOOKS, name, judging, bundle).await,
            None => Ok(()),
        }
    }

    async fn have_trusted(
        &self,
        kind: Resource,
        name: &str,
        configured: &Store<Configured>,
        bundle: &str,
    ) -> Result<(), String> {
        let now = configured.get(&Key::new("", name));
        let Some(patch) = now.and_then(|configured| configured.patch(bundle)) else { return Ok(()) };
        let path = kind.global(name);
        match self.client.patch(path, Patch::Json, &patch, Write::Real).await {
            Ok(_) => {
                tracing::info!(configuration = name, "wrote the caBundle of the webhook configuration");
                Ok(())
            }
            // Changed in between: the watch tells, and it is looked at again. A failed `test` is 422.
            Err(error) if error.is_conflict() || error.status().is_some_and(|status| status.code == 422) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// With files that somebody else keeps.
    async fn serve_files(&self, folder: &Path, configured: &Store<Configured>, judging: Option<&Store<Configured>>) {
        let (certificate, key, ca) = (folder.join("tls.crt"), folder.join("tls.key"), folder.join(BUNDLE));
        let mut configurations = configured.changes();
        let mut watcher = match FileWatcher::new([&certificate, &key, &ca]) {
            Ok(watcher) => watcher,
            Err(error) => {
                self.tell(Some(format!("cannot watch {}: {error}", folder.display())));
                return std::future::pending().await;
            }
        };
        let mut shown = None;
        loop {
            let problem = self.look_at_files([&certificate, &key, &ca], &mut shown, configured, judging).await.err();
            self.tell(problem);
            tokio::select! {
                () = watcher.changed() => {}
                _ = configurations.next() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn look_at_files(
        &self,
        [certificate, key, ca]: [&PathBuf; 3],
        shown: &mut Option<outrigger_identity::ConfigDigest>,
        configured: &Store<Configured>,
        judging: Option<&Store<Configured>>,
    ) -> Result<(), String> {
        let pairs = [(certificate, key)];
        let (config, digest) = server_config_with_certificates(&pairs, &[b"http/1.1"], TlsVersion::default())
            .map_err(|error| error.to_string())?;
        if shown.as_ref() != Some(&digest) {
            *self.shown.lock() = Some(config);
            *shown = Some(digest);
            tracing::info!(certificate = %certificate.display(), "the webhook has a new certificate");
        }
        // Without it cert-manager's ca-injector writes the bundle.
        if let Ok(bundle) = std::fs::read_to_string(ca)
            && self.leadership.leads()
        {
            self.have_all_trust(configured, judging, &bundle).await?;
        }
        configured.problem().or_else(|| self.unjudged(judging)).map_or(Ok(()), Err)
    }

    fn tell(&self, problem: Option<String>) {
        let mut told = self.problem.lock();
        if let Some(problem) = &problem
            && told.as_ref() != Some(problem)
        {
            tracing::debug!(%problem, "the webhook's certificate is not as it should be");
        }
        *told = problem;
    }

    fn timing(&self) -> Timing {
        Timing { lifetime: self.certificate.lifetime.into(), propagation: self.certificate.propagation.into() }
    }

    fn secret(&self) -> String {
        format!("{}/{}", self.namespace, self.certificate.secret.as_str())
    }
}
