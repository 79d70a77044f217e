//! Section `secrets`: providers, and the files and variables rendered from them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, FileMode, Name, Secret};

/// Secrets written to files, or given to the application's environment, before it starts.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secrets {
    /// Where secrets come from.
    #[schemars(length(min = 1))]
    pub providers: Vec<SecretProvider>,
    /// Files to write.
    #[serde(default)]
    pub files: Vec<SecretFile>,
    /// Variables for the command that `outrigger run -- CMD` starts; changing one later does not change a running process.
    #[serde(default)]
    pub env: Vec<SecretEnv>,
}

/// Where secrets come from. Exactly one kind: `file` or `vault`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretProvider {
    /// Unique among providers.
    pub name: Name,
    /// A folder that stands in for a KV store: `secret "db/creds"` reads `db/creds.json` (or `.yaml`) below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileProvider>,
    /// Vault or OpenBao.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultProvider>,
}

/// A folder that stands in for a KV store. Templates read it as they read Vault's KV version 2.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileProvider {
    /// The folder; watched for changes.
    #[schemars(extend("format" = "path"))]
    pub directory: PathBuf,
}

/// Vault or OpenBao, over its HTTP API.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VaultProvider {
    /// `http://` or `https://`, without a path.
    #[schemars(extend("format" = "http-origin"))]
    pub address: String,
    /// How we log in.
    pub auth: VaultAuth,
    /// Sent as `X-Vault-Namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// PEM bundle for `https://`; absent means the public authorities built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub ca_file: Option<PathBuf>,
    /// Time for one request.
    #[serde(default = "default_vault_timeout")]
    pub timeout: Duration,
    /// How often secrets without a lease (KV) are read again.
    #[serde(default = "default_refresh")]
    pub refresh: Duration,
}

fn default_vault_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_refresh() -> Duration {
    Duration::from_secs(300)
}

/// How we log in to Vault. Exactly one method: `token`, `appRole` or `kubernetes`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VaultAuth {
    /// A token that exists already; renewed when it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenAuth>,
    /// AppRole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_role: Option<AppRoleAuth>,
    /// The pod's service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesAuth>,
}

/// A token that exists already. Exactly one of `file` and `value`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TokenAuth {
    /// A file that holds the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "path"))]
    pub file: Option<PathBuf>,
    /// The token itself, best as `${VAULT_TOKEN}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Secret>,
}

/// AppRole.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppRoleAuth {
    /// The role's ID.
    pub role_id: String,
    /// A file that holds the secret ID.
    #[schemars(extend("format" = "path"))]
    pub secret_id_file: PathBuf,
    /// Where the method is mounted.
    #[serde(default = "default_approle_mount")]
    pub mount: String,
}

fn default_approle_mount() -> String {
    "approle".to_owned()
}

/// The pod's service account, by the Kubernetes auth method.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesAuth {
    /// The role at Vault.
    pub role: String,
    /// The service account's token; read again at each login, for Kubernetes renews it.
    #[serde(default = "default_service_account_token")]
    #[schemars(extend("format" = "path"))]
    pub token_file: PathBuf,
    /// Where the method is mounted.
    #[serde(default = "default_kubernetes_mount")]
    pub mount: String,
}

fn default_service_account_token() -> PathBuf {
    PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/token")
}

fn default_kubernetes_mount() -> String {
    "kubernetes".to_owned()
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretFile {
    /// Where it is written, whole or not at all.
    #[schemars(extend("format" = "absolute-path"))]
    pub path: PathBuf,
    /// The provider; may be left out when there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Name>,
    /// The content, in consul-template's language: `{{ with secret "secret/data/db" }}{{ .Data.data.password }}{{ end }}`.
    pub template: String,
    /// Permission bits.
    #[serde(default = "default_secret_mode")]
    pub mode: FileMode,
    /// Owner, as a number; absent means the process's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group, as a number; absent means the process's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

fn default_secret_mode() -> FileMode {
    FileMode(0o400)
}

/// A variable for the application's environment.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretEnv {
    /// The variable's name.
    #[schemars(extend("format" = "variable-name"))]
    pub name: String,
    /// The provider; may be left out when there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Name>,
    /// The value, in consul-template's language.
    pub template: String,
}
