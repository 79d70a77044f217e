//! Tells that something happened in a folder.
//!
//! In: a folder. Out: a wake-up after writes, renames and removals in it. Promise: an idle
//! folder costs nothing; without inotify (its limits are per user), and where others may
//! write past this kernel (NFS and its like), it is looked at now and then as well. A wake-up
//! may come for nothing, but none is missed.

use std::fs::{self, Metadata};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// How often a folder is looked at where inotify does not tell everything.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// File systems on which another machine, or another kernel, may write: NFS, SMB (three numbers), 9P, FUSE (virtiofs is
/// one to the kernel), Ceph; from [statfs(2)].
///
/// [statfs(2)]: https://man7.org/linux/man-pages/man2/statfs.2.html
const SHARED: [u32; 7] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x6573_5546, 0x00c3_6400];

/// A watch on one folder.
pub(crate) struct FolderWatch {
    descriptor: Option<AsyncFd<OwnedFd>>,
    /// Inotify tells only a part of what happens.
    is_shared: bool,
    /// Device and inode of the folder.
    folder: Option<(u64, u64)>,
}

impl FolderWatch {
    /// Begins to watch; what happens from here on is told.
    pub(crate) fn new(folder: &Path) -> Self {
        // Asked before the watch: if the folder is exchanged between them, the next comparison sees it.
        let identity = fs::metadata(folder).ok().map(identity);
        let kind = rustix::fs::statfs(folder).map(|system| system.f_type as u32);
        let descriptor = Self::try_new(folder).inspect_err(
            |error| tracing::debug!(component = "logs", folder = %folder.display(), %error, "no inotify, looking now and then"),
        );
        Self { descriptor: descriptor.ok(), is_shared: kind.is_ok_and(|kind| SHARED.contains(&kind)), folder: identity }
    }

    /// Whether this is a watch on the folder that has this name now.
    pub(crate) fn is_on(&self, folder: &Path) -> bool {
        self.folder == fs::metadata(folder).ok().map(identity)
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
        if self.is_shared {
            let _ = tokio::time::timeout(LOOK_EVERY, self.told()).await;
        } else {
            self.told().await;
        }
    }

    async fn told(&mut self) {
        let Some(descriptor) = &self.descriptor else {
            tokio::time::sleep(LOOK_EVERY).await;
            return;
        };
        loop {
            let Ok(mut ready) = descriptor.readable().await else {
                self.descriptor = None;
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

fn identity(folder: Metadata) -> (u64, u64) {
    (folder.dev(), folder.ino())
}
