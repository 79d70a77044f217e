//! One identity at one time, and the TLS configs made of it.
//!
//! In: checked material. Out: rustls configs, built once per policy and ALPN list, then
//! handed out as cheap clones. Promise: all of a config is of one generation, key, chain
//! and bundle alike; a TLS session is resumed only under the very config that began it, so
//! never under another policy, and not after a rotation.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_config::{SpiffeId, SpiffePattern, TlsVersion, TrustDomain};
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::GetRandomFailed;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use rustls::ticketer::TicketRotator;
use rustls::{ClientConfig, ServerConfig};

use crate::error::Error;
use crate::material::Material;
use crate::public::{algorithms, provider, versions};
use crate::verifier::SpiffeVerifier;

/// Configs kept per snapshot and end; there is one per listener or cluster. Beyond it they are built each time.
const MOST_CONFIGS: usize = 1024;
/// Sessions a client keeps per config, for servers it has talked to.
const CLIENT_SESSIONS: usize = 128;
/// A ticket's key is renewed after so many seconds and dropped after twice as many: the longest that a peer whose
/// certificate has expired can still resume a session. One that is revoked cannot: with the list all keys are new.
const TICKET_SECONDS: u32 = 300;

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerPolicy {
    /// Every workload of our trust domain.
    TrustDomain,
    /// Only these.
    Only(Vec<SpiffePattern>),
}

impl PeerPolicy {
    /// The policy of a list in the config, where an empty list means the whole trust domain.
    pub fn allowing(peers: &[SpiffePattern]) -> Self {
        if peers.is_empty() { Self::TrustDomain } else { Self::Only(peers.to_vec()) }
    }
}

type Cache<P, C> = Mutex<HashMap<(P, TlsVersion, Vec<Vec<u8>>), Arc<C>>>;

/// One identity at one time.
pub struct Snapshot {
    /// Who we are.
    pub spiffe_id: SpiffeId,
    /// The trust domain we belong to, and the only one whose peers we accept.
    pub trust_domain: TrustDomain,
    /// When the SVID began to be valid.
    pub not_before: SystemTime,
    /// When the SVID ends.
    pub not_after: SystemTime,
    /// Counts from 1, one more with every rotation and every change of the trust bundle or the revocation lists.
    pub generation: u64,
    material: Material,
    servers: Cache<PeerPolicy, ServerConfig>,
    clients: Cache<Vec<SpiffePattern>, ClientConfig>,
}

impl Snapshot {
    pub(crate) fn new(material: Material, trust_domain: TrustDomain, generation: u64) -> Self {
        Self {
            spiffe_id: material.leaf.id.clone(),
            trust_domain,
            not_before: material.leaf.not_before,
            not_after: material.leaf.not_after,
            generation,
            material,
            servers: Mutex::default(),
            clients: Mutex::default(),
        }
    }

    /// A server's mTLS config: a client must present an X.509-SVID that `peers` admits. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`Error::NoPeer`] for an empty list, [`Error::ForeignPeer`] for one of another trust domain.
    pub fn server_config(&self, peers: &PeerPolicy, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
        self.server_config_since(TlsVersion::Tls12, peers, alpn)
    }

    /// The same without versions of TLS older than `least`.
    ///
    /// # Errors
    /// As [`Self::server_config`].
    pub fn server_config_since(
        &self,
        least: TlsVersion,
        peers: &PeerPolicy,
        alpn: &[&[u8]],
    ) -> Result<Arc<ServerConfig>, Error> {
        if let PeerPolicy::Only(ids) = peers {
            self.check_expected(ids)?;
        }
        cached(&self.servers, peers.clone(), least, alpn, |alpn| self.build_server(least, peers, alpn))
    }

    /// A client's mTLS config: the server must present an X.509-SVID with one of the `expected` IDs; the name that is
    /// dialled is of no meaning. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`Error::NoPeer`] for an empty list, [`Error::ForeignPeer`] for one of another trust domain.
    pub fn client_config(&self, expected: &[SpiffePattern], alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        self.client_config_since(TlsVersion::Tls12, expected, alpn)
    }

    /// The same without versions of TLS older than `least`.
    ///
    /// # Errors
    /// As [`Self::client_config`].
    pub fn client_config_since(
        &self,
        least: TlsVersion,
        expected: &[SpiffePattern],
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, Error> {
        self.check_expected(expected)?;
        cached(&self.clients, expected.to_vec(), least, alpn, |alpn| self.build_client(least, expected, alpn))
    }

    /// Our own certificates, the leaf first.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.material.credentials.cert
    }

    /// The authorities peers must chain to.
    pub fn trust_bundle(&self) -> &[CertificateDer<'static>] {
        &self.material.bundle
    }

    pub(crate) fn material(&self) -> &Material {
        &self.material
    }

    fn check_expected(&self, ids: &[SpiffePattern]) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::NoPeer);
        }
        match ids.iter().find(|id| id.trust_domain() != self.trust_domain.as_str()) {
            Some(id) => Err(Error::ForeignPeer { id: id.clone(), trust_domain: self.trust_domain.clone() }),
            None => Ok(()),
        }
    }

    fn verifier(&self, policy: PeerPolicy) -> Arc<SpiffeVerifier> {
        let anchors = self.material.anchors.clone();
        let revocation = Arc::clone(&self.material.revocation);
        Arc::new(SpiffeVerifier::new(anchors, revocation, algorithms(), self.trust_domain.clone(), policy))
    }

    fn build_server(&self, least: TlsVersion, peers: &PeerPolicy, alpn: Vec<Vec<u8>>) -> Result<ServerConfig, Error> {
        let own = SingleCertAndKey::from(self.material.credentials.clone());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(least))
            .map_err(Error::Tls)?
            .with_client_cert_verifier(self.verifier(peers.clone()))
            .with_cert_resolver(Arc::new(own));
        config.alpn_protocols = alpn;
        // Peers of the mesh are machines like ours; OpenSSL's would ask for AES-256 first.
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(TicketRotator::new(TICKET_SECONDS, short_ticketer).map_err(Error::Tls)?);
        Ok(config)
    }

    fn build_client(
        &self,
        least: TlsVersion,
        expected: &[SpiffePattern],
        alpn: Vec<Vec<u8>>,
    ) -> Result<ClientConfig, Error> {
        let own = SingleCertAndKey::from(self.material.credentials.clone());
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions(least))
            .map_err(Error::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(PeerPolicy::Only(expected.to_vec())))
            .with_client_cert_resolver(Arc::new(own));
        config.alpn_protocols = alpn;
        config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
        Ok(config)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("spiffe_id", &self.spiffe_id.as_str())
            .field("not_after", &crate::error::date(self.not_after))
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn cached<P: Eq + Hash, C>(
    cache: &Cache<P, C>,
    policy: P,
    least: TlsVersion,
    alpn: &[&[u8]],
    build: impl FnOnce(Vec<Vec<u8>>) -> Result<C, Error>,
) -> Result<Arc<C>, Error> {
    let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let key = (policy, least, alpn);
    let mut cache = cache.lock();
    if let Some(config) = cache.get(&key) {
        return Ok(config.clone());
    }
    let config = Arc::new(build(key.2.clone())?);
    if cache.len() < MOST_CONFIGS {
        cache.insert(key, config.clone());
    }
    Ok(config)
}

/// The library's ticketer, whose own rotation takes six hours, under our shorter one.
#[derive(Debug)]
struct ShortTicketer(Arc<dyn ProducesTickets>);

fn short_ticketer() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let ticketer = Ticketer::new().map_err(|_| GetRandomFailed)?;
    Ok(Box::new(ShortTicketer(ticketer)))
}

impl ProducesTickets for ShortTicketer {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        TICKET_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}
