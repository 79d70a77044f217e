//! The document as a file in a folder that several controllers may share.
//!
//! In: a folder. Out: `roots.json` (readable by its owner only), and `bundle.pem` for whoever
//! wants to know whom to trust. Promise: writers hold one another off by a lock that ends with
//! its process; a version is the content's digest.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use outrigger_runtime::BoxFuture;
use zeroize::Zeroizing;

use super::{Store, StoreError, Stored};

const DOCUMENT: &str = "roots.json";
const BUNDLE: &str = "bundle.pem";
const LOCK: &str = ".lock";
/// Some roots with their keys have a few KiB.
const MAX_DOCUMENT: u64 = 1 << 20;
/// How long we wait for another controller that writes; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// A folder that holds the document.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The document in this folder, which is made when it is absent.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    fn read_now(&self) -> Result<Option<Stored>, StoreError> {
        match read(&self.0.join(DOCUMENT)) {
            Ok(document) => Ok(Some(Stored { version: version(&document), document })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read roots.json", &error)),
        }
    }

    fn replace_now(&self, expected: Option<&str>, document: &[u8]) -> Result<bool, StoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.0).map_err(|error| failed("create the folder", &error))?;
        let _lock = lock(&self.0)?;
        let found = self.read_now()?.map(|stored| stored.version);
        if found.as_deref() != expected {
            return Ok(false);
        }
        write(&self.0, DOCUMENT, document, 0o600).map_err(|error| failed("write roots.json", &error))?;
        Ok(true)
    }

    fn publish_now(&self, bundle: &str) -> Result<(), StoreError> {
        if read(&self.0.join(BUNDLE)).is_ok_and(|there| *there == bundle.as_bytes()) {
            return Ok(());
        }
        let _lock = lock(&self.0)?;
        write(&self.0, BUNDLE, bundle.as_bytes(), 0o644).map_err(|error| failed("write bundle.pem", &error))
    }
}

impl Store for Folder {
    fn place(&self) -> String {
        self.0.display().to_string()
    }

    fn read(&self) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        let folder = self.clone();
        Box::pin(blocking("read roots.json", move || folder.read_now()))
    }

    fn replace<'a>(&'a self, version: Option<&'a str>, document: &'a [u8]) -> BoxFuture<'a, Result<bool, StoreError>> {
        let (folder, version) = (self.clone(), version.map(str::to_owned));
        let document = Zeroizing::new(document.to_vec());
        Box::pin(blocking("write roots.json", move || folder.replace_now(version.as_deref(), &document)))
    }

    fn publish<'a>(&'a self, bundle: &'a str) -> BoxFuture<'a, Result<(), StoreError>> {
        let (folder, bundle) = (self.clone(), bundle.to_owned());
        Box::pin(blocking("write bundle.pem", move || folder.publish_now(&bundle)))
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError { action, problem: error.to_string() }))
}

fn failed(action: &'static str, error: &io::Error) -> StoreError {
    StoreError { action, problem: error.to_string() }
}

fn version(document: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, document);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file in one piece, so that no copy of a key stays behind.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_DOCUMENT {
        return Err(io::Error::other(format!("it is larger than {MAX_DOCUMENT} bytes")));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or_default() + 1));
    file.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Holds off other controllers until it is dropped.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let failed = |error: io::Error| failed("lock the folder", &error);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(folder.join(LOCK)).map_err(failed)?;
    let begin = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => {
                return Err(failed(io::Error::other("another process has held the lock for 10s")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Puts a file in place as a whole, and makes it last.
fn write(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    // What a crash left may have any mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
    // The umask may have taken more than we want taken.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    File::open(folder)?.sync_all()
}
