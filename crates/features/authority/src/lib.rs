//! A certificate authority for workloads: X.509-SVIDs for who a token proves to be.
//!
//! In: section `authority`; certificate signing requests over Istio's `CreateCertificate` API,
//! each with a token of a Kubernetes service account. Out: certificates of a day or less, the
//! bundle to verify those of others by, an audit record of each decision. Promise: nobody gets
//! another identity than the one that the API server attests for the token and its pod; roots are
//! changed without a moment in which two workloads cannot verify one another.

mod audit;
mod bundles;
mod caller;
mod component;
mod document;
mod error;
mod given;
mod issuer;
mod keeper;
mod kubernetes;
mod message;
mod own;
mod request;
mod roots;
mod service;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod vault;

pub use caller::{Caller, Disbelief, TokenReview};
pub use component::AuthorityComponent;
pub use error::Error;
pub use issuer::{Issuer, Signed};
pub use keeper::{Keeper, RootFacts, Signing};
pub use kubernetes::{Api, KubernetesReview, SecretStore};
pub use message::CreateCertificate;
pub use request::{CertificateRequest, MAX_REQUEST, Refusal};
pub use roots::{Root, Roots, Step, Timing};
pub use store::{Folder, Store, StoreError, Stored};
