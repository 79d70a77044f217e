//! Secrets for an application that knows nothing of them: in files, or in its environment, before it starts.
//!
//! In: section `secrets` of the config, and the providers it names: Vault or OpenBao, or a
//! folder of files. Out: rendered files, variables for the command. Promise: the component is
//! ready only when every file is written and every variable is set; a file is replaced whole
//! or not at all; when a provider fails, the last good content stays and the status says so;
//! leases and tokens that were given to us are given back; no value is ever shown.

mod component;
mod entry;
mod error;
mod folder;
mod keeper;
mod metrics;
mod output;
mod provider;
mod template;
mod told;
mod vault;
mod writer;

pub use component::SecretsComponent;
pub use error::Error;
