//! kubeconfig files, merged as kubectl merges them.
//!
//! In: files, the name of a context. Out: how to reach its cluster. Promise: of the same name in several files the first
//! counts; relative paths start at the file that names them; every error says which file and which entry.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use outrigger_config::Secret;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::access::{Access, AccessError, Credentials, Pem};
use crate::exec::Exec;

/// No kubeconfig is as large.
const MAX_FILE: u64 = 4 << 20;

/// The files that kubectl would read.
pub(crate) fn usual_files() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        return std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")).into_iter().collect()
}

/// Reads and merges files. One that does not exist is passed over, unless it was named.
pub(crate) fn load(files: &[PathBuf], named: bool, context: Option<&str>) -> Result<Access, AccessError> {
    let mut merged = Vec::new();
    for file in files {
        match read(file) {
            Ok(config) => merged.push((file.clone(), config)),
            Err(None) if !named => {}
            Err(None) => return Err(AccessError::new(format!("the kubeconfig {} does not exist", file.display()))),
            Err(Some(problem)) => {
                return Err(AccessError::new(format!("the kubeconfig {}: {problem}", file.display())));
            }
        }
    }
    access(&merged, context)
}

fn read(path: &Path) -> Result<File, Option<String>> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => None,
        _ => Some(error.to_string()),
    })?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| Some(error.to_string()))?;
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    // The message shows lines of the file, which may hold a token; the place is enough.
    serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|at| format!("line {}, column {}: ", at.line(), at.column()));
        Some(format!("{}it cannot be read as one; `kubectl config view` tells more", place.unwrap_or_default()))
    })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    current_context: Option<String>,
    clusters: Option<Vec<Named<NamedCluster>>>,
    users: Option<Vec<Named<NamedUser>>>,
    contexts: Option<Vec<Named<NamedContext>>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(flatten)]
    value: T,
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedUser {
    user: Option<User>,
}

#[derive(Deserialize)]
struct NamedContext {
    context: Option<Context>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<Secret>,
    token: Option<Secret>,
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    username: Option<String>,
    password: Option<Secret>,
    exec: Option<ExecFile>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecFile {
    command: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    install_hint: Option<String>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

/// The entry of a name, and the file that it is in.
fn entry<'a, T>(
    files: &'a [(PathBuf, File)],
    kind: &str,
    name: &str,
    list: impl Fn(&'a File) -> Option<&'a Vec<Named<T>>>,
) -> Result<(&'a Path, &'a T), AccessError> {
    for (path, file) in files {
        if let Some(found) = list(file).into_iter().flatten().find(|entry| entry.name == name) {
            return Ok((path, &found.value));
        }
    }
    let known: Vec<_> = files.iter().flat_map(|(_, file)| list(file).into_iter().flatten()).collect();
    let known: Vec<_> = known.iter().map(|entry| format!("`{}`", entry.name)).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(AccessError::new(format!("there is no {kind} `{name}` in {}; there is {known}", shown(files))))
}

fn shown(files: &[(PathBuf, File)]) -> String {
    files.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn access(files: &[(PathBuf, File)], context: Option<&str>) -> Result<Access, AccessError> {
    let current = || files.iter().find_map(|(_, file)| file.current_context.as_deref().filter(|name| !name.is_empty()));
    let Some(name) = context.or_else(current) else {
        let help = "name one, or choose it with `kubectl config use-context NAME`";
        return Err(AccessError::new(format!("no current context is set in {}; {help}", shown(files))));
    };
    let (path, context) = entry(files, "context", name, |file| file.contexts.as_ref())?;
    let place = format!("the context `{name}` of {}", path.display());
    let Some(context) = &context.context else { return Err(AccessError::new(format!("{place} is empty"))) };
    let in_context = |error: AccessError| AccessError::new(format!("{place}: {error}"));
    let (at, cluster) = entry(files, "cluster", &context.cluster, |file| file.clusters.as_ref()).map_err(in_context)?;
    let place = format!("the cluster `{}` of {}", context.cluster, at.display());
    let wrong = |what: &str| AccessError::new(format!("{place}: {what}"));
    let cluster = cluster.cluster.as_ref().ok_or_else(|| wrong("it is empty"))?;
    let server =
        cluster.server.as_deref().filter(|server| !server.is_empty()).ok_or_else(|| wrong("it has no `server`"))?;
    if !server.starts_with("https://") {
        return Err(wrong("its `server` is no https URL; credentials are not sent in clear text"));
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(wrong(
            "`insecure-skip-tls-verify` would give our credentials to anybody; name the `certificate-authority` instead",
        ));
    }
    if cluster.tls_server_name.is_some() || cluster.proxy_url.is_some() {
        return Err(wrong(
            "`tls-server-name` and `proxy-url` are not supported; write a `server` that can be reached by its name",
        ));
    }
    let authority = (&cluster.certificate_authority_data, &cluster.certificate_authority);
    let ca = pem(at, "certificate-authority", authority.0.as_deref(), authority.1.as_deref()).map_err(|e| wrong(&e))?;
    let (certificate, credentials) = user(files, &context.user)?;
    Ok(Access {
        server: server.trim_end_matches('/').to_owned(),
        ca,
        certificate,
        credentials,
        namespace: context.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
    })
}

type Who = (Option<(Pem, Pem)>, Credentials);

fn user(files: &[(PathBuf, File)], name: &str) -> Result<Who, AccessError> {
    if name.is_empty() {
        return Ok((None, Credentials::None));
    }
    let (at, user) = entry(files, "user", name, |file| file.users.as_ref())?;
    let place = format!("the user `{name}` of {}", at.display());
    let wrong = |what: &str| AccessError::new(format!("{place}: {what}"));
    let Some(user) = &user.user else { return Ok((None, Credentials::None)) };
    if user.auth_provider.is_some() {
        return Err(wrong("`auth-provider` was removed from Kubernetes in 1.26; use an `exec` plugin"));
    }
    let one =
        pem(at, "client-certificate", user.client_certificate_data.as_deref(), user.client_certificate.as_deref());
    let key = pem(at, "client-key", user.client_key_data.as_ref().map(Secret::expose), user.client_key.as_deref());
    let certificate = match (one.map_err(|e| wrong(&e))?, key.map_err(|e| wrong(&e))?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(wrong("`client-certificate` and `client-key` belong together, and one of them is absent")),
    };
    let credentials = if let Some(file) = &user.token_file {
        Credentials::TokenFile(beside(at, file))
    } else if let Some(token) = &user.token {
        Credentials::Token(token.clone())
    } else if let Some(exec) = &user.exec {
        Credentials::Exec(Arc::new(plugin(at, exec).map_err(|problem| wrong(&problem))?))
    } else if let (Some(user), Some(password)) = (&user.username, &user.password) {
        Credentials::Basic { user: user.clone(), password: password.clone() }
    } else {
        Credentials::None
    };
    Ok((certificate, credentials))
}

fn plugin(at: &Path, exec: &ExecFile) -> Result<Exec, String> {
    let api_version = exec.api_version.clone().unwrap_or_default();
    if !matches!(api_version.as_str(), "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1") {
        return Err(format!("`exec.apiVersion` is `{api_version}`; `client.authentication.k8s.io/v1` is known"));
    }
    // A command without a slash is looked for in PATH.
    let command = if exec.command.contains('/') { beside(at, &exec.command) } else { PathBuf::from(&exec.command) };
    let env = exec.env.iter().flatten().map(|variable| (variable.name.clone(), variable.value.clone())).collect();
    Ok(Exec {
        command,
        args: exec.args.clone().unwrap_or_default(),
        env,
        api_version,
        install_hint: exec.install_hint.clone(),
        known: tokio::sync::Mutex::default(),
    })
}

/// What is given in base64, or else in a file.
fn pem(at: &Path, key: &str, data: Option<&str>, file: Option<&str>) -> Result<Option<Pem>, String> {
    if let Some(data) = data.filter(|data| !data.is_empty()) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
        let bytes = Zeroizing::new(bytes.map_err(|_| format!("`{key}-data` is not base64"))?);
        return Ok(Some(Pem::Given { place: at.to_owned(), bytes }));
    }
    Ok(file.filter(|file| !file.is_empty()).map(|file| Pem::File(beside(at, file))))
}

/// A path as a kubeconfig means it.
fn beside(at: &Path, path: &str) -> PathBuf {
    at.parent().unwrap_or(Path::new("")).join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    const FIRST: &str = "
apiVersion: v1
kind: Config
current-context: home
preferences: {}
clusters:
- { name: c1, cluster: { server: 'https://one:6443/', certificate-authority: pki/ca.pem, extensions: [] } }
contexts:
- { name: home, context: { cluster: c1, user: u1, namespace: shop } }
- { name: lost, context: { cluster: nowhere, user: u1 } }
- { name: half, context: { cluster: c1, user: half } }
- { name: old, context: { cluster: c1, user: old } }
- { name: open, context: { cluster: open, user: u1 } }
users:
- { name: u1, user: { token: abc } }
- { name: half, user: { client-certificate-data: QUJD } }
- { name: old, user: { auth-provider: { name: gcp } } }
";

    const SECOND: &str = "
current-context: other
clusters:
- { name: c1, cluster: { server: 'https://shadowed' } }
- { name: c2, cluster: { server: 'https://two', certificate-authority-data: '*' } }
- { name: open, cluster: { server: 'https://three', insecure-skip-tls-verify: true } }
contexts:
- { name: other, context: { cluster: c2, user: u2 } }
- { name: plugin, context: { cluster: c1, user: u3 } }
users:
- { name: u2, user: {} }
- { name: u3, user: { exec: { apiVersion: client.authentication.k8s.io/v1, command: ./login, args: [a], env: [{ name: A, value: b }] } } }
";

    #[test]
    fn files_are_merged_and_the_first_counts() {
        let folder = tempfile::tempdir().unwrap();
        let files = [write(folder.path(), "a", FIRST), folder.path().join("absent"), write(folder.path(), "b", SECOND)];
        let found = load(&files, false, None).unwrap();
        assert_eq!((found.server.as_str(), found.namespace.as_str()), ("https://one:6443", "shop"));
        assert!(matches!(&found.ca, Some(Pem::File(path)) if *path == folder.path().join("pki/ca.pem")));
        assert!(matches!(&found.credentials, Credentials::Token(token) if token.expose() == "abc"));
        let plugin = load(&files, false, Some("plugin")).unwrap();
        let Credentials::Exec(exec) = &plugin.credentials else { panic!("{plugin:?}") };
        assert_eq!((&exec.command, exec.env[0].1.as_str()), (&folder.path().join("./login"), "b"));
        assert_eq!(plugin.server, "https://one:6443");
    }

    #[test]
    fn mistakes_say_what_and_where() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (write(folder.path(), "a", FIRST), write(folder.path(), "b", SECOND));
        let broken = write(folder.path(), "broken", "users:\n- {name: x, user: {token: [secret]}}\n");
        let files = [a.clone(), b.clone()];
        let named = |context| load(&files, false, Some(context)).unwrap_err().to_string();
        let rows = [
            ("a context that is not there", named("none"), vec!["no context `none`", "`home`", "/a, ", "/b"]),
            (
                "a cluster that is not there",
                named("lost"),
                vec!["context `lost`", "/a", "no cluster `nowhere`", "`c2`"],
            ),
            ("half a pair", named("half"), vec!["user `half`", "client-key", "absent"]),
            ("a removed way", named("old"), vec!["user `old`", "auth-provider", "exec"]),
            ("an unverified server", named("open"), vec!["cluster `open`", "/b", "insecure-skip-tls-verify"]),
            ("no base64", named("other"), vec!["cluster `c2`", "certificate-authority-data", "base64"]),
            (
                "a file that was named",
                load(&[folder.path().join("x")], true, None).unwrap_err().to_string(),
                vec!["/x does not exist"],
            ),
            (
                "no context",
                load(&[write(folder.path(), "e", "")], true, None).unwrap_err().to_string(),
                vec!["no current context", "/e"],
            ),
            ("broken YAML", load(&[broken], true, None).unwrap_err().to_string(), vec!["/broken: line 2"]),
        ];
        for (name, error, parts) in rows {
            for part in parts {
                assert!(error.contains(part), "{name}: {part} in {error}");
            }
            assert!(!error.contains("secret"), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn a_plugin_is_asked_once_until_its_token_is_refused_or_ends() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\necho x >> \"$LOG\"\ntest -n \"$KUBERNETES_EXEC_INFO\" || exit 9\n\
            echo '{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{\"token\":\"'$1'\"}}'\n";
        let path = write(folder.path(), "login", script);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let log = folder.path().join("log");
        let text = SECOND.replace("{ name: A, value: b }", &format!("{{ name: LOG, value: {} }}", log.display()));
        let files = [write(folder.path(), "a", FIRST), write(folder.path(), "b", &text)];
        let access = load(&files, false, Some("plugin")).unwrap();
        let runs = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        for _ in 0..3 {
            assert_eq!(access.authorization().await.unwrap().unwrap(), "Bearer a");
        }
        assert_eq!(runs(), 1);
        assert!(access.refused());
        access.authorization().await.unwrap();
        assert_eq!(runs(), 2);
    }
}
