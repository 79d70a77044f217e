//! Tells that something happened in a folder.
//!
//! In: a folder. Out: a wake-up after writes, renames and removals in it. Promise: an idle
//! folder costs nothing; without inotify (its limits are per user) it is looked at now and
//! then instead. A wake-up may come for nothing, but none is missed.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// How often a folder is looked at without inotify.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A watch on one folder.
pub(crate) struct FolderWatch(Option<AsyncFd<OwnedFd>>);

impl FolderWatch {
    /// Begins to watch; what happens from here on is told.
    pub(crate) fn new(folder: &Path) -> Self {
        match Self::try_new(folder) {
            Ok(descriptor) => Self(Some(descriptor)),
            Err(error) => {
                tracing::debug!(component = "logs", folder = %folder.display(), %error, "no inotify, looking now and then");
                Self(None)
            }
        }
    }

    fn try_new(folder: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&descriptor, folder, events)?;
        // SAFETY: the descriptor is owned by the `AsyncFd`, which gives it out by shared reference only, so it stays
        // open and the same for as long as it is registered.
        #[expect(unsafe_code, reason = "tokio asks for the promise that the descriptor is not exchanged")]
        let registered = unsafe { AsyncFd::register(descriptor) };
        Ok(registered?)
    }

    /// Waits for something to happen. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let Some(descriptor) = &self.0 else {
            tokio::time::sleep(LOOK_EVERY).await;
            return;
        };
        loop {
            let Ok(mut ready) = descriptor.readable().await else {
                self.0 = None;
                return;
            };
            // What exactly happened does not matter: the folder is looked at as it is.
            let mut seen = false;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            while rustix::io::read(descriptor.get_ref(), &mut buffer).is_ok_and(|(read, _)| !read.is_empty()) {
                seen = true;
            }
            ready.clear_ready();
            if seen {
                return;
            }
        }
    }
}
