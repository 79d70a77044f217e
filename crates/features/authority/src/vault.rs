//! An authority in a PKI secrets engine of Vault or OpenBao, below which we sign.
//!
//! In: where Vault is, the passing of time. Out: [`Signing`] by an intermediate that Vault signed. Promise: the
//! intermediate's key is made here, stays in memory and is in no output; Vault is asked when the intermediate is half over,
//! not for each certificate, and while it is away what it signed serves until its end; what it gives is taken only when a
//! certificate made with it verifies by the bundle, which has the roots of all issuers in the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Method;
use outrigger_config::{AuthorityVault, TrustDomain};
use outrigger_http::Resolver;
use outrigger_runtime::jittered;
use outrigger_vault::{Answer, Call, Error as VaultError, Observer, Session, VaultClient, VaultSettings};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value as Json, json};
use tokio::time::Instant;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::document::{authority_ends, belong_together, to_pem};
use crate::error::Error;
use crate::issuer::{Issuer, OwnKey, random_serial};
use crate::keeper::{RootFacts, Signing};

/// After a failure Vault is asked again so soon while there is an intermediate, and so soon while there is none.
const RETRY: Duration = Duration::from_secs(30);
const RETRY_WITHOUT: Duration = Duration::from_secs(3);
/// Issuers of one engine whose roots we trust; few have more than two.
const MOST_ISSUERS: usize = 64;

/// Keeps an intermediate below Vault's authority.
pub(crate) struct Vaulted {
    settings: AuthorityVault,
    trust_domain: TrustDomain,
    max_ttl: Duration,
    known: Mutex<Option<Known>>,
    /// One talks to Vault at a time.
    talk: tokio::sync::Mutex<Talk>,
}

struct Talk {
    client: VaultClient,
    /// Of a token that was given to us, which we keep alive.
    session: Option<Session>,
}

#[derive(Clone)]
struct Known {
    signing: Signing,
    certificate: CertificateDer<'static>,
    /// What the intermediate leads to.
    root: CertificateDer<'static>,
    not_after: SystemTime,
    renew_at: SystemTime,
}

/// What Vault signed.
struct Signed {
    certificate: CertificateDer<'static>,
    /// Those above it, the root last.
    above: Vec<CertificateDer<'static>>,
}

impl Vaulted {
    pub(crate) fn new(
        settings: &AuthorityVault,
        trust_domain: TrustDomain,
        max_ttl: Duration,
        resolver: Resolver,
        observer: Observer,
    ) -> Self {
        let client = VaultClient::new("authority", VaultSettings::from(settings), resolver, observer);
        let talk = tokio::sync::Mutex::new(Talk { client, session: None });
        Self { settings: settings.clone(), trust_domain, max_ttl, known: Mutex::new(None), talk }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let token = self.settings.auth.token.as_ref().and_then(|token| token.file.clone());
        token.into_iter().chain(self.settings.ca_file.clone()).collect()
    }

    /// Takes up what has changed in the engine, and has a new intermediate signed when that is due. Cancel-safe; what was
    /// known stays when Vault does not do what it is asked for.
    pub(crate) async fn tend(&self, now: SystemTime) -> Result<(), Error> {
        let mut talk = self.talk.lock().await;
        // The CA bundle may be another one by now.
        talk.client.forget_tls();
        talk.client.prepare()?;
        talk.keep_alive().await;
        let listed = self.roots(&talk.client).await?;
        let known = self.known.lock().clone();
        let known = match known.filter(|known| now < known.renew_at) {
            Some(known) => self.rebundled(known, listed),
            None => self.renewed(&mut talk, listed, now).await?,
        };
        *self.known.lock() = Some(known);
        Ok(())
    }

    /// Who signs.
    pub(crate) fn signing(&self, now: SystemTime) -> Result<Signing, Error> {
        let known = self.known.lock().clone().filter(|known| now < known.not_after);
        let none = || Error::NoIntermediate { address: self.settings.address.clone() };
        known.map(|known| known.signing).ok_or_else(none)
    }

    /// When to tend again, unless a file changes before; `soon` at the latest.
    pub(crate) fn look_again(&self, soon: SystemTime) -> SystemTime {
        self.known.lock().as_ref().map_or(soon, |known| known.renew_at.min(soon))
    }

    /// When to tend again after a failure. Each try may be a login.
    pub(crate) fn retry(&self, now: SystemTime) -> Duration {
        if self.signing(now).is_ok() { RETRY } else { RETRY_WITHOUT }
    }

    /// The intermediate's: when it ends is what matters.
    pub(crate) fn facts(&self, now: SystemTime) -> Vec<RootFacts> {
        let known = self.known.lock();
        let facts = known.iter().map(|known| RootFacts {
            hash: outrigger_identity::certificate_hash(&known.certificate),
            not_after: known.not_after,
            signs_from: now,
            state: "signing",
        });
        facts.collect()
    }

    /// The same intermediate, with the roots that there are now.
    fn rebundled(&self, mut known: Known, listed: Vec<CertificateDer<'static>>) -> Known {
        let bundle = with(listed, &known.root);
        if *known.signing.bundle != *bundle {
            tracing::info!(component = "authority", roots = bundle.len(), "the bundle has changed at vault");
            known.signing.bundle_pem = to_pem(&bundle).into();
            known.signing.bundle = bundle.into();
        }
        known
    }

    /// A new intermediate.
    async fn renewed(
        &self,
        talk: &mut Talk,
        listed: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Known, Error> {
        let key = OwnKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Sign)?);
        // Two must not share a name: verifiers look for an issuer by it.
        let number: String = random_serial()?[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("intermediate {number} of {}", self.trust_domain);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(Error::Sign)?;
        let answer = self.ask(talk, &name, &request).await?;
        let known = self.taken(&talk.client, answer, key, listed, now)?;
        tracing::info!(component = "authority", name, not_after = ?known.not_after, "intermediate signed by vault");
        Ok(known)
    }

    /// Has Vault sign; the token is given back at once where it was issued to us.
    async fn ask(&self, talk: &mut Talk, name: &str, request: &str) -> Result<Answer, Error> {
        let mount = self.settings.mount.trim_matches('/');
        let path = match &self.settings.issuer {
            Some(issuer) => format!("{mount}/issuer/{issuer}/sign-intermediate"),
            None => format!("{mount}/root/sign-intermediate"),
        };
        let session = match talk.session.take() {
            Some(session) => session,
            None => Session::begin(&talk.client).await?,
        };
        let body = json!({
            "csr": request,
            "common_name": name,
            "exclude_cn_from_sans": true,
            "uri_sans": format!("spiffe://{}", self.trust_domain),
            "max_path_length": 0,
            "ttl": format!("{}s", Duration::from(self.settings.lifetime).as_secs()),
            "format": "pem",
        });
        let (operation, token) = ("sign_intermediate", Some(session.token()));
        let call = Call { operation, method: Method::POST, path: &path, token, body: Some(body) };
        let answer = talk.client.call(call).await;
        let accepted = answer.as_ref().is_ok_and(|answer| answer.status != 403);
        match self.settings.auth.token.is_some() {
            true if accepted => talk.session = Some(session),
            // It is read again from its file next time.
            true => {}
            false => session.end(&talk.client).await,
        }
        let answer = answer?;
        let words = answer.words();
        let problem = match answer.status {
            200 => return Ok(answer),
            403 => format!(
                "denies `{path}` (403): the token is not valid, or its policies do not allow `update` there{words}"
            ),
            404 => format!("has nothing at `{path}` (404); check `mount` and `issuer`{words}"),
            status => format!("signs no intermediate at `{path}` ({status}){words}"),
        };
        Err(talk.client.refused(problem).into())
    }

    fn taken(
        &self,
        client: &VaultClient,
        answer: Answer,
        key: OwnKey,
        listed: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<Known, Error> {
        let bad = |problem: String| client.refused(format!("gives an intermediate that is of no use: {problem}"));
        let data = answer.json.as_ref().and_then(|json| json.get("data"));
        let Signed { certificate, above } =
            data.and_then(signed).ok_or_else(|| bad("there are no certificates as PEM".to_owned()))?;
        if !belong_together(&certificate, &key) {
            return Err(bad("it is for another key".to_owned()).into());
        }
        let root = above.last().cloned().ok_or_else(|| bad("what signed it is not told".to_owned()))?;
        let bundle = with(listed, &root);
        let chain: Vec<_> =
            [&certificate].into_iter().chain(&above).filter(|one| !bundle.contains(one)).cloned().collect();
        let mut not_after = authority_ends(&certificate).map_err(&bad)?;
        for above in &above {
            not_after = not_after.min(authority_ends(above).map_err(&bad)?);
        }
        let issuer = Issuer::new(&certificate, key, chain, not_after)?;
        issuer
            .prove(&self.trust_domain, &bundle, now)
            .map_err(|error| bad(format!("what it signs does not verify ({error})")))?;
        let left = not_after.duration_since(now).unwrap_or_default();
        if left < self.max_ttl * 2 {
            tracing::warn!(
                component = "authority",
                seconds = left.as_secs(),
                "vault gives intermediates that live for less than twice `maxTtl`, so workloads' certificates will be shorter; raise the engine's `max_lease_ttl`"
            );
        }
        let bundle_pem = to_pem(&bundle).into();
        let signing = Signing { issuer: Arc::new(issuer), bundle_pem, bundle: bundle.into() };
        // Spread, for several authorities may have begun together.
        Ok(Known { signing, certificate, root, not_after, renew_at: now + jittered(left, 0.45, 0.5) })
    }

    /// The roots of all issuers in the engine: one that is to sign next is known before it does.
    async fn roots(&self, client: &VaultClient) -> Result<Vec<CertificateDer<'static>>, Error> {
        let mount = self.settings.mount.trim_matches('/');
        // Anybody may ask for these.
        let get = async |path: &str| {
            let call = Call { operation: "issuers", method: Method::GET, path, token: None, body: None };
            let answer = client.call(call).await?;
            match answer.status {
                200 | 404 => Ok::<_, VaultError>(answer),
                // So it answers for what is not there, too.
                403 => Err(client
                    .refused(format!("shows nobody `{path}` (403); is a PKI secrets engine mounted at `{mount}`?"))),
                status => Err(client.refused(format!("answers {status} to a read of `{path}`{}", answer.words()))),
            }
        };
        let list = get(&format!("{mount}/issuers?list=true")).await?;
        let keys = list.json.as_ref().and_then(|json| json.pointer("/data/keys")).and_then(Json::as_array);
        let mut roots = Vec::new();
        for id in keys.into_iter().flatten().filter_map(Json::as_str).take(MOST_ISSUERS) {
            let answer = get(&format!("{mount}/issuer/{id}/json")).await?;
            let data = answer.json.as_ref().and_then(|json| json.get("data"));
            let certificate = data.and_then(|data| certificate(data.get("certificate")?));
            roots.extend(certificate.filter(is_root));
        }
        Ok(roots)
    }
}

impl Talk {
    /// Renews a token that was given to us, when that is due. One that does not live on is read again from its file.
    async fn keep_alive(&mut self) {
        let due = |session: &&mut Session| session.attention().is_some_and(|at| at <= Instant::now());
        let Some(session) = self.session.as_mut().filter(due) else { return };
        match session.attend(&self.client).await {
            Ok(()) | Err(VaultError::Unavailable { .. }) => {}
            Err(error) => {
                tracing::warn!(component = "authority", %error, "the vault token is not renewed");
                self.session = None;
            }
        }
    }
}

/// The certificate that was signed and those above it, as Vault tells them.
fn signed(data: &Json) -> Option<Signed> {
    let certificate_of = |json: Option<&Json>| certificate(json?);
    let own = certificate_of(data.get("certificate"))?;
    let chain = data.get("ca_chain").and_then(Json::as_array);
    let mut above: Vec<_> = chain.into_iter().flatten().filter_map(certificate).filter(|one| *one != own).collect();
    if above.is_empty() {
        above.extend(certificate_of(data.get("issuing_ca")));
    }
    // Nothing stands above a root, in whatever order they are told.
    above.sort_by_key(is_root);
    Some(Signed { certificate: own, above })
}

fn certificate(json: &Json) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(json.as_str()?.as_bytes()).ok()
}

/// Whether it is signed by itself, as far as its names tell.
fn is_root(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject().as_raw() == parsed.issuer().as_raw())
}

fn with(mut roots: Vec<CertificateDer<'static>>, root: &CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
    if !roots.contains(root) {
        roots.push(root.clone());
    }
    roots.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
    roots.dedup();
    roots
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_answer_panics(text in ".{0,40}", number in any::<i64>()) {
            for value in [json!(text), json!(number), json!([text]), json!({ "x": number })] {
                for json in [json!({ "certificate": value, "ca_chain": value, "issuing_ca": value }), value.clone()] {
                    prop_assert!(signed(&json).is_none());
                }
            }
        }
    }
}
