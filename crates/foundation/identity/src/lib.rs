//! Who this workload is, and whom it talks to: X.509-SVIDs and the TLS made of them.
//!
//! In: PEM files, an authority that is asked over the network or is this very process, an agent that serves the SPIFFE
//! Workload API, or a development authority in a shared folder. Out: [`Snapshot`]s, each
//! one identity with ready-made rustls configs, swapped whole when a certificate rotates.
//! Promise: no peer passes that is not a valid X.509-SVID ([X509-SVID]) of the trust domain
//! and one of those expected, nor one that is revoked; a half-written or unusable certificate never replaces a good
//! one; key material is in no output and is overwritten when it is no longer needed.
//!
//! [X509-SVID]: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md

mod authority;
mod component;
mod development;
mod enrolment;
mod error;
mod files;
mod handle;
mod handshake;
mod known;
mod material;
mod own;
mod pem;
mod public;
mod revocation;
mod server;
mod snapshot;
mod source;
mod svid;
#[cfg(test)]
mod tests;
mod verifier;
mod workload;

pub use component::IdentityComponent;
pub use enrolment::{Asked, Enrolled, Enrolment};
pub use error::{Error, Part};
pub use handle::Identities;
pub use handshake::{tls_error_reason, tls_error_text};
pub use outrigger_config::{SpiffeId, SpiffePattern, TrustDomain};
pub use own::OwnAuthority;
pub use pem::write_pem;
pub use public::{
    ConfigDigest, PemOf, client_config_of_pem, client_config_with_roots, ordinary_client_config, public_client_config,
};
pub use server::{server_config_with_certificates, server_config_with_key};
pub use snapshot::{PeerPolicy, Snapshot};
pub use svid::{PeerError, certificate_hash, peer_id};
pub use workload::{SvidStream, WorkloadApi, X509Svid, X509Svids};
