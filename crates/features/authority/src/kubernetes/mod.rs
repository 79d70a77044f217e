//! The API server, as far as an authority needs it.
//!
//! In: section `authority.kubernetes`. Out: a client, and the audience that tokens must be for.

mod review;
mod secret;

use outrigger_config::AuthorityKubernetes;
use outrigger_http::Resolver;
use outrigger_kubernetes::{Access, Client, Options};

pub use review::KubernetesReview;
pub use secret::SecretStore;

/// One API server.
#[derive(Clone)]
pub struct Api {
    client: Client,
    audience: String,
}

impl Api {
    /// The API server that the settings name; nothing is read or connected yet.
    pub fn new(settings: &AuthorityKubernetes, resolver: Resolver) -> Self {
        let AuthorityKubernetes { server, ca_file, token_file, audience, timeout } = settings.clone();
        let access = Access::with_files(server, ca_file, token_file);
        // Whoever asks for a certificate waits for the answer, so a busy server is not waited for here.
        let options = Options { timeout: timeout.into(), retries: 0, manager: "outrigger-authority" };
        Self { client: Client::new(access, resolver, options), audience }
    }
}
