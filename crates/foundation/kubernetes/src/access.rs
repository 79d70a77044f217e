//! Where the API server is, whom it must be, and who we are to it.
//!
//! In: the pod's own service account, files that a config names, or a kubeconfig. Out: TLS and credentials for requests.
//! Promise: a token in a file is read again for each request, so that one that the kubelet renews is never old; nothing
//! here shows a secret.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::header::HeaderValue;
use outrigger_config::Secret;
use outrigger_identity::client_config_of_pem;
use rustls::ClientConfig;
use zeroize::Zeroizing;

use crate::exec::Exec;
use crate::kubeconfig;

/// A token is below 2 KiB.
const MAX_TOKEN: u64 = 64 << 10;
/// Bundles are far smaller.
const MAX_PEM: u64 = 4 << 20;
/// Where the kubelet puts the pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why we cannot ask.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(pub(crate) String);

impl AccessError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// PEM in a file, or in a kubeconfig itself.
#[derive(Debug, Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Given { place: PathBuf, bytes: Zeroizing<Vec<u8>> },
}

/// Who we are.
#[derive(Debug, Clone)]
pub(crate) enum Credentials {
    /// A certificate alone, or nobody.
    None,
    Token(Secret),
    TokenFile(PathBuf),
    Basic {
        user: String,
        password: Secret,
    },
    Exec(Arc<Exec>),
}

/// How to reach an API server.
#[derive(Debug, Clone)]
pub struct Access {
    pub(crate) server: String,
    pub(crate) ca: Option<Pem>,
    pub(crate) certificate: Option<(Pem, Pem)>,
    pub(crate) credentials: Credentials,
    /// The namespace that is meant when none is named.
    pub namespace: String,
}

impl Access {
    /// As the service account of the pod that we run in.
    ///
    /// # Errors
    /// When this is no pod.
    pub fn in_cluster() -> Result<Self, AccessError> {
        let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let (Some(host), Some(port)) = (of("KUBERNETES_SERVICE_HOST"), of("KUBERNETES_SERVICE_PORT")) else {
            return Err(AccessError::new(
                "this is no pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set)",
            ));
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let folder = Path::new(SERVICE_ACCOUNT);
        let mut access =
            Self::with_files(format!("https://{host}:{port}"), folder.join("ca.crt"), folder.join("token"));
        if let Ok(namespace) = std::fs::read_to_string(folder.join("namespace")) {
            access.namespace = namespace.trim().to_owned();
        }
        Ok(access)
    }

    /// By a URL, the authorities it must chain to, and a token.
    pub fn with_files(server: String, ca_file: PathBuf, token_file: PathBuf) -> Self {
        Self {
            server: server.trim_end_matches('/').to_owned(),
            ca: Some(Pem::File(ca_file)),
            certificate: None,
            credentials: Credentials::TokenFile(token_file),
            namespace: "default".to_owned(),
        }
    }

    /// As kubectl finds it: the file that is named, or those of `KUBECONFIG`, or `~/.kube/config`; without any of these, as
    /// the pod that we run in. The context is the one named, or the current one.
    ///
    /// # Errors
    /// What is wrong, and in which file.
    pub fn find(file: Option<&Path>, context: Option<&str>) -> Result<Self, AccessError> {
        let files = match file {
            Some(file) => vec![file.to_owned()],
            None => kubeconfig::usual_files(),
        };
        if file.is_none() && !files.iter().any(|file| file.exists()) {
            let looked = files.iter().map(|file| format!("`{}`", file.display())).collect::<Vec<_>>().join(", ");
            return Self::in_cluster().map_err(|error| {
                AccessError::new(format!("there is no kubeconfig ({looked}), and {error}; set KUBECONFIG"))
            });
        }
        kubeconfig::load(&files, file.is_some(), context)
    }

    /// The API server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// TLS as the files are now. Reads them off the async threads.
    pub(crate) async fn tls(&self) -> Result<Arc<ClientConfig>, AccessError> {
        let (ca, mut certificate) = (self.ca.clone(), self.certificate.clone());
        if let Credentials::Exec(exec) = &self.credentials
            && let Some(given) = exec.certificate().await?
        {
            certificate = Some(given);
        }
        blocking(move || {
            let ca = ca.as_ref().map(Pem::read).transpose()?;
            let own = certificate.as_ref().map(|(one, key)| Ok((one.read()?, key.read()?))).transpose()?;
            let config = client_config_of_pem(
                ca.as_ref().map(|(path, bytes)| (path.as_path(), bytes.as_slice())),
                own.as_ref()
                    .map(|(one, key)| ((one.0.as_path(), one.1.as_slice()), (key.0.as_path(), key.1.as_slice()))),
            );
            config.map_err(|error| AccessError::new(error.to_string()))
        })
        .await
    }

    /// What goes into the header `Authorization`; nothing when a certificate says it all.
    pub(crate) async fn authorization(&self) -> Result<Option<HeaderValue>, AccessError> {
        let text = match &self.credentials {
            Credentials::None => return Ok(None),
            Credentials::Token(token) => bearer(token.expose()),
            Credentials::TokenFile(path) => {
                let path = path.clone();
                let token = blocking(move || read_token(&path)).await?;
                bearer(token.expose())
            }
            Credentials::Basic { user, password } => {
                use base64::Engine;
                let pair = Zeroizing::new(format!("{user}:{}", password.expose()));
                Zeroizing::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair.as_bytes())))
            }
            Credentials::Exec(exec) => match exec.token().await? {
                Some(token) => bearer(token.expose()),
                None => return Ok(None),
            },
        };
        let mut value = HeaderValue::from_str(&text)
            .map_err(|_| AccessError::new(format!("the token for {} holds what no token holds", self.server)))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The API server did not accept what we said; whether there may be something newer to say.
    pub(crate) fn refused(&self) -> bool {
        match &self.credentials {
            Credentials::Exec(exec) => exec.forget(),
            Credentials::TokenFile(_) | Credentials::None | Credentials::Token(_) | Credentials::Basic { .. } => false,
        }
    }
}

fn bearer(token: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("Bearer {token}"))
}

impl Pem {
    fn read(&self) -> Result<(PathBuf, Zeroizing<Vec<u8>>), AccessError> {
        match self {
            Self::Given { place, bytes } => Ok((place.clone(), bytes.clone())),
            Self::File(path) => Ok((path.clone(), read_file(path, MAX_PEM)?)),
        }
    }
}

fn read_token(path: &Path) -> Result<Secret, AccessError> {
    let bytes = read_file(path, MAX_TOKEN)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if text.is_empty() {
        return Err(AccessError::new(format!("there is no token in {}", path.display())));
    }
    Ok(Secret::new(text.to_owned()))
}

fn read_file(path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, AccessError> {
    let failed = |error: std::io::Error| AccessError::new(format!("cannot read {}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > most {
        return Err(failed(std::io::Error::other(format!("it is larger than {most} bytes"))));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1));
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Runs work on files off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AccessError> + Send + 'static,
) -> Result<T, AccessError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(AccessError::new(error.to_string())))
}
