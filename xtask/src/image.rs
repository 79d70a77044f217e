//! The container image: the static executable and nothing else.
//!
//! In: the release executable. Out: `target/image/outrigger.tar`, to be loaded by
//! docker, podman or kind. Promise: it holds one file and runs as no privileged user,
//! and it has been started once.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::command::{Cmd, find_program};
use crate::{test, ui};

/// The user of distroless images' `nonroot`.
const USER: &str = "65532:65532";
/// Outbound, inbound, merged metrics and health; the admin API listens on loopback only.
const PORTS: &[&str] = &["15001/tcp", "15006/tcp", "15020/tcp", "15021/tcp", "8125/udp"];

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    args.done()?;
    if find_program("buildah").is_none() {
        bail!("`buildah` is missing; `cargo xtask setup` installs it");
    }
    test::release()?;
    run()
}

/// Makes the image of the release executable and starts it.
pub(crate) fn run() -> Result<()> {
    let folder = crate::root().join("target/image");
    fs::create_dir_all(&folder).context("cannot make target/image")?;
    let tar = folder.join("outrigger.tar");
    ui::step("image: build it from scratch", || build(&folder, &tar))?;
    ui::step("image: start it", || start(&folder, &tar))
}

fn build(folder: &Path, tar: &Path) -> Result<()> {
    let executable = test::executable("release");
    if !executable.exists() {
        bail!("{} is missing; build it first (`cargo xtask test --only release`)", executable.display());
    }
    let revision = Cmd::new("git").args(["rev-parse", "HEAD"]).output().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let container = buildah(folder).args(["from", "scratch"]).output()?;
    let container = container.trim();
    let made = (|| {
        buildah(folder)
            .args(["copy", "--quiet", "--chmod", "0555", container])
            .arg(&executable)
            .arg("/outrigger")
            .quiet("buildah copy")?;
        let mut config = buildah(folder).args(["config", "--user", USER, "--entrypoint", r#"["/outrigger"]"#]);
        config = config.args(["--cmd", "run", "--stop-signal", "SIGTERM"]);
        for port in PORTS {
            config = config.args(["--port", port]);
        }
        for (key, value) in [
            ("title", "Outrigger"),
            ("description", "Every Kubernetes sidecar in one static binary"),
            ("licenses", "Apache-2.0"),
            ("version", version),
            ("revision", revision.trim()),
        ] {
            config = config.args(["--label", &format!("org.opencontainers.image.{key}={value}")]);
        }
        config.arg(container).quiet("buildah config")?;
        if tar.exists() {
            fs::remove_file(tar).with_context(|| format!("cannot replace {}", tar.display()))?;
        }
        buildah(folder)
            .args(["commit", "--quiet", container])
            .arg(format!("docker-archive:{}:outrigger:{version}", tar.display()))
            .quiet("buildah commit")
    })();
    buildah(folder).args(["rm", container]).quiet("buildah rm")?;
    made
}

/// Runs `outrigger version` in a container made of the archive, which proves that the
/// image is whole and that the executable needs nothing around it.
fn start(folder: &Path, tar: &Path) -> Result<()> {
    let container = buildah(folder).args(["from", &format!("docker-archive:{}", tar.display())]).output()?;
    let container = container.trim();
    // chroot isolation needs neither a container runtime nor namespaces, so it works within containers.
    let said =
        buildah(folder).args(["run", "--isolation", "chroot", container, "--", "/outrigger", "version"]).output();
    buildah(folder).args(["rm", container]).quiet("buildah rm")?;
    buildah(folder).args(["rmi", "--all", "--force"]).quiet("buildah rmi")?;
    let said = said?;
    if !said.contains(env!("CARGO_PKG_VERSION")) {
        bail!("the image started but did not tell its version; it said: {said}");
    }
    ui::note(&format!("{} says: {}", tar.display(), said.lines().next().unwrap_or_default()));
    Ok(())
}

/// buildah with storage of its own, so that neither the user's images nor kernel features matter.
fn buildah(folder: &Path) -> Cmd {
    Cmd::new("buildah")
        .arg("--root")
        .arg(folder.join("storage"))
        .arg("--runroot")
        .arg(folder.join("run"))
        .args(["--storage-driver", "vfs"])
        .with_tools()
}
