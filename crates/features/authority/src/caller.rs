//! Who calls: what a token proves.
//!
//! In: a token, from whoever sent it. Out: the service account and the pod it is bound to, or why
//! it is not believed. A trait, so that those who sign need not know who attests.

use outrigger_config::{Secret, SpiffeId, TrustDomain};
use outrigger_runtime::BoxFuture;

/// Whom a token proves its bearer to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The namespace of the service account and the pod.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// The node that the pod runs on, as far as it is known.
    pub node: Option<String>,
}

impl Caller {
    /// Its SPIFFE ID.
    ///
    /// # Errors
    /// When a name cannot stand in one.
    pub fn spiffe_id(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, String> {
        let id = format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account);
        id.parse().map_err(|_| format!("`{}` of `{}` cannot be a SPIFFE ID", self.service_account, self.namespace))
    }
}

/// Why a token is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// It proves nothing.
    #[error("{text}")]
    Refused {
        /// Why, in a word.
        reason: &'static str,
        /// Why, in a sentence. Never the token.
        text: String,
    },
    /// Nobody could be asked.
    #[error("cannot check the token: {0}")]
    Unavailable(String),
}

impl Disbelief {
    pub(crate) fn refused(reason: &'static str, text: impl Into<String>) -> Self {
        Self::Refused { reason, text: text.into() }
    }
}

/// Tells whose a token is.
pub trait TokenReview: Send + Sync {
    /// Whose it is, now. Cancel-safe.
    fn review<'a>(&'a self, token: &'a Secret) -> BoxFuture<'a, Result<Caller, Disbelief>>;
}
