//! The provider `file`: a folder that stands in for a KV store.
//!
//! In: a path such as `db/creds`. Out: what `db/creds.json` (or `.yaml`, `.yml`) holds,
//! presented as KV version 2 presents it, with a version that grows with each change of
//! content. Promise: nothing outside the folder is named by a path, and no file is read
//! beyond its limit.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use gotmpl::Value;
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::provider::{Fetched, LIST};
use crate::template::to_value;

/// A larger file is refused; Vault refuses secrets beyond 1 MiB too.
const MOST_BYTES: u64 = 1 << 20;
const ENDINGS: [&str; 3] = ["json", "yaml", "yml"];
/// Names listed of one folder.
const MOST_NAMES: usize = 10_000;
/// Paths whose versions we remember.
const MOST_VERSIONS: usize = 10_000;

/// A folder of secrets.
pub(crate) struct Folder {
    name: String,
    directory: PathBuf,
    /// The content last seen of each path, and how often it has changed.
    versions: Mutex<HashMap<String, (Value, u64)>>,
}

impl Folder {
    pub(crate) fn new(name: String, directory: PathBuf) -> Self {
        Self { name, directory, versions: Mutex::default() }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads what is at a path.
    pub(crate) async fn read(&self, path: &str) -> Result<Fetched, Error> {
        if let Some(folder) = path.strip_suffix(LIST) {
            return self.list(path, folder.trim_end_matches('/'));
        }
        let base = self.locate(path)?;
        // One small local file: quicker than handing it to another thread.
        let (file, text, modified) = self.load(path, &base)?;
        let problem = |problem: &str| Error::File { path: file.clone(), problem: problem.to_owned() };
        let json: Option<Json> = if file.extension().is_some_and(|ending| ending == "json") {
            serde_json::from_str(&text).map_err(|error| {
                problem(&format!("not valid JSON at line {} column {}", error.line(), error.column()))
            })?
        } else {
            serde_saphyr::from_str(&text).map_err(|error| match error.location() {
                Some(at) => problem(&format!("not valid YAML at line {} column {}", at.line(), at.column())),
                None => problem("not valid YAML"),
            })?
        };
        let Some(data @ Json::Object(_)) = json else {
            return Err(problem("it must hold an object, such as {\"password\": \"…\"}"));
        };
        let data = to_value(data);
        let version = self.version_of(path, &data);
        let created = modified.and_then(|time| OffsetDateTime::from(time).format(&Rfc3339).ok()).unwrap_or_default();
        let metadata = to_value(json!({
            "version": version, "created_time": created, "deletion_time": "", "destroyed": false, "custom_metadata": null,
        }));
        let lease = [("LeaseID", "".into()), ("LeaseDuration", Value::Int(0)), ("Renewable", Value::Bool(false))];
        let data = Value::from_entries([("data".to_owned(), data), ("metadata".to_owned(), metadata)]);
        let [id, duration, renewable] = lease.map(|(name, value)| (name.to_owned(), value));
        let value = Value::from_entries([("Data".to_owned(), data), id, duration, renewable]);
        Ok(Fetched { value, version: Some(version), lease: None })
    }

    /// The names below a path as Vault lists them: sorted, folders with a `/` at their end.
    fn list(&self, path: &str, folder: &str) -> Result<Fetched, Error> {
        let directory = if folder.is_empty() { self.directory.clone() } else { self.locate(folder)? };
        let entries = std::fs::read_dir(&directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.missing(path, &format!(": {} does not exist", directory.display())),
            _ => Error::File { path: directory.clone(), problem: error.to_string() },
        })?;
        let names: BTreeSet<String> = entries.take(MOST_NAMES).filter_map(|entry| listed(&entry.ok()?)).collect();
        let keys = Value::List(names.into_iter().map(Value::from).collect());
        let data = Value::from_entries([("keys".to_owned(), keys)]);
        let version = self.version_of(path, &data);
        let value = Value::from_entries([("Data".to_owned(), data)]);
        Ok(Fetched { value, version: Some(version), lease: None })
    }

    /// The file's path without its ending.
    fn locate(&self, path: &str) -> Result<PathBuf, Error> {
        let unsafe_part = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains(['\\', '\0']);
        if path.split('/').any(unsafe_part) {
            return Err(self.missing(path, ": it is no path below the provider's folder"));
        }
        Ok(self.directory.join(path))
    }

    fn load(
        &self,
        path: &str,
        base: &Path,
    ) -> Result<(PathBuf, Zeroizing<String>, Option<std::time::SystemTime>), Error> {
        for ending in ENDINGS {
            let mut file = base.as_os_str().to_owned();
            file.push(".");
            file.push(ending);
            let file = PathBuf::from(file);
            match read_file(&file) {
                Ok((text, modified)) => return Ok((file, text, modified)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::File { path: file, problem: error.to_string() }),
            }
        }
        let hint = format!(": {}.json (or .yaml, .yml) does not exist", base.display());
        Err(self.missing(path, &hint))
    }

    fn missing(&self, path: &str, hint: &str) -> Error {
        Error::Missing { provider: format!("provider {}", self.name), path: path.to_owned(), hint: hint.to_owned() }
    }

    fn version_of(&self, path: &str, data: &Value) -> u64 {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.len() >= MOST_VERSIONS && !versions.contains_key(path) {
            versions.clear();
        }
        let (known, version) = versions.entry(path.to_owned()).or_insert_with(|| (data.clone(), 1));
        if known != data {
            *known = data.clone();
            *version += 1;
        }
        *version
    }
}

/// The name of a secret or of a folder of them; none for what the kubelet or an editor hides.
fn listed(entry: &std::fs::DirEntry) -> Option<String> {
    let name = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
    // Of what a link leads to, for the kubelet's files are links.
    if std::fs::metadata(entry.path()).ok()?.is_dir() {
        return Some(format!("{name}/"));
    }
    let (name, ending) = name.rsplit_once('.')?;
    ENDINGS.contains(&ending).then(|| name.to_owned())
}

fn read_file(path: &Path) -> io::Result<(Zeroizing<String>, Option<std::time::SystemTime>)> {
    // Without waiting, should it be a pipe that nobody writes to.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if meta.len() > MOST_BYTES {
        return Err(io::Error::other(format!("it is larger than {MOST_BYTES} bytes")));
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(meta.len()).unwrap_or_default() + 1));
    file.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok((text, meta.modified().ok()))
}
