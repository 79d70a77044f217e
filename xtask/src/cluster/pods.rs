//! The images that pods of tests are made of; none comes from a registry.
//!
//! In: programs of this machine. Out: `localhost/pause:1`, `localhost/app:1` and `:2` (a server, a client and a
//! shell), `localhost/redis:1`, in the node. Promise: the same programs give the same digests.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Cluster, output, program};
use crate::command::{find_program, tools_dir};
use crate::image::archive::{Entry, Image};

/// Holds a pod's namespaces.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// Makes them and gives them to the node.
pub(super) fn load(cluster: &Cluster) -> Result<()> {
    let folder = cluster.state.join("images");
    std::fs::create_dir_all(&folder)?;
    let pause = folder.join("pause");
    let source = crate::root().join("xtask/src/cluster/pause.c");
    output(program("cc").args(["-static", "-Os", "-o"]).arg(&pause).arg(&source)).context("cannot compile pause.c")?;
    let pause = Image::of(PAUSE, &["/pause"], vec![Entry::program("/pause", &pause)?]);
    let mut images = vec![pause, app("1")?, app("2")?, redis()?];
    for image in images.drain(..) {
        let file = folder.join("image.tar");
        image.write(&file)?;
        cluster.load(&file)?;
    }
    Ok(())
}

/// Two releases, to be told apart by `/etc/release`.
fn app(release: &str) -> Result<Image> {
    let mut entries = vec![
        Entry::program("/app", &tools_dir().join("bin/podapp"))?,
        Entry::text("/etc/release", &format!("{release}\n")),
    ];
    entries.extend(busybox()?);
    Ok(Image::of(&format!("localhost/app:{release}"), &["/app"], entries))
}

fn busybox() -> Result<Vec<Entry>> {
    let path = find_program("busybox").context("busybox is there")?;
    let names = output(program("busybox").arg("--list"))?;
    let links = names
        .lines()
        .filter(|name| *name != "busybox")
        .map(|name| Entry::link(&format!("/bin/{name}"), "/bin/busybox"));
    Ok([Entry::program("/bin/busybox", &path)?].into_iter().chain(links).collect())
}

/// Debian's, with the libraries that it needs.
fn redis() -> Result<Image> {
    let mut entries = busybox()?;
    let mut libraries = std::collections::BTreeSet::new();
    for name in ["redis-server", "redis-cli"] {
        let path = find_program(name).with_context(|| format!("{name} is missing; `cargo xtask setup` installs it"))?;
        entries.push(Entry::program(&format!("/usr/bin/{name}"), &path)?);
        let needed = output(program("ldd").arg(&path))?;
        libraries.extend(needed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for library in &libraries {
        entries.push(Entry::program(library, Path::new(library))?);
    }
    Ok(Image::of("localhost/redis:1", &["/usr/bin/redis-server"], entries))
}
