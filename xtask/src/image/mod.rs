//! The container image: the static executable, and the list of what it is made of.
//!
//! In: the release or debug executable. Out: `target/image/outrigger.tar` (or `outrigger-debug.tar`), to be loaded by
//! docker, podman, kind or `cargo xtask cluster load`, and `outrigger.spdx.json` beside it. Promise: from scratch, no
//! shell, no privileged user, nothing written to; the same executable gives the same digest; it has been started once.

pub(crate) mod archive;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::args::Args;
use crate::command::{Cmd, cargo, find_program};
use crate::{test, ui};
use archive::{Entry, Image};

pub(crate) const USAGE: &str = "cargo xtask image [--debug]

Builds the release executable first, makes the image `outrigger:VERSION` of it, and starts it once.

  --debug   of the debug executable instead, quicker to build, as `outrigger:VERSION-debug`: for tests

Out: target/image/outrigger.tar, both an OCI archive and one of `docker load`; outrigger.spdx.json beside and in it.";

/// The user of distroless images' `nonroot`.
const USER: &str = "65532:65532";
/// Outbound, inbound, merged metrics and health; the admin API listens on loopback only.
const PORTS: &[&str] = &["15001/tcp", "15006/tcp", "15020/tcp", "15021/tcp", "8125/udp"];
/// Where scanners look for it.
const SBOM: &str = "/usr/share/sbom/outrigger.spdx.json";

/// Which executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    Release,
    Debug,
}

impl Variant {
    pub(crate) fn profile(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Debug => "debug",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Release => "",
            Self::Debug => "-debug",
        }
    }
}

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let variant = if args.flag("--debug") { Variant::Debug } else { Variant::Release };
    args.done()?;
    make(variant)
}

/// Builds the executable and makes its image.
pub(crate) fn make(variant: Variant) -> Result<()> {
    if find_program("buildah").is_none() {
        bail!("`buildah` is missing; `cargo xtask setup` installs it");
    }
    match variant {
        Variant::Release => test::release()?,
        Variant::Debug => ui::step("debug: build the executable", || {
            cargo("build").args(["--package", "outrigger", "--locked"]).run()
        })?,
    }
    run(variant)
}

/// Makes the image of an executable that was built, and starts it.
pub(crate) fn run(variant: Variant) -> Result<()> {
    fs::create_dir_all(folder()).context("cannot make target/image")?;
    let tar = archive_path(variant);
    let digest = ui::step("image: build it from scratch", || build(variant, &tar))?;
    ui::note(&format!("{} {digest}", name(variant)));
    ui::step("image: start it", || start(&tar))
}

/// Where the image of an executable lies.
pub(crate) fn archive_path(variant: Variant) -> PathBuf {
    folder().join(format!("outrigger{}.tar", variant.suffix()))
}

fn folder() -> PathBuf {
    crate::root().join("target/image")
}

/// As pods name it.
pub(crate) fn name(variant: Variant) -> String {
    format!("outrigger:{}{}", env!("CARGO_PKG_VERSION"), variant.suffix())
}

/// Writes the image twice: whatever makes the second differ is found here, not by who compares digests.
fn build(variant: Variant, tar: &Path) -> Result<String> {
    let built = test::executable(variant.profile());
    if !built.exists() {
        bail!("{} is missing; `cargo xtask image` builds it", built.display());
    }
    let executable = match variant {
        Variant::Release => built,
        Variant::Debug => {
            // Only symbols: of them a debug build is mostly made.
            let stripped = folder().join("outrigger-debug");
            Cmd::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(&built).quiet("strip")?;
            stripped
        }
    };
    let sbom = sbom::spdx()?;
    fs::write(folder().join("outrigger.spdx.json"), &sbom)?;
    let image = || -> Result<Image> {
        let entries = vec![Entry::program("/outrigger", &executable)?, Entry::text(SBOM, &sbom)];
        Ok(Image { name: name(variant), config: config(), entries })
    };
    let digest = image()?.write(tar)?;
    let again = image()?.write(&tar.with_extension("again"))?;
    fs::remove_file(tar.with_extension("again"))?;
    if digest != again {
        bail!("the image is not reproducible: {digest}, then {again}");
    }
    Ok(digest)
}

fn config() -> serde_json::Value {
    let revision = Cmd::new("git").args(["rev-parse", "HEAD"]).output().unwrap_or_default();
    let mut labels = serde_json::Map::new();
    for (key, value) in [
        ("title", "Outrigger"),
        ("description", "Every Kubernetes sidecar in one static binary"),
        ("licenses", "Apache-2.0"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", revision.trim()),
        ("vendor", "Outrigger"),
        ("base.name", "scratch"),
    ] {
        labels.insert(format!("org.opencontainers.image.{key}"), value.into());
    }
    let ports: serde_json::Map<_, _> = PORTS.iter().map(|port| ((*port).to_owned(), json!({}))).collect();
    json!({
        "User": USER, "Entrypoint": ["/outrigger"], "Cmd": ["run"], "StopSignal": "SIGTERM",
        "ExposedPorts": ports, "Labels": labels,
    })
}

/// Runs `outrigger version` in a container made of the archive, which proves that others can read the image, that
/// it is whole, and that the executable needs nothing around it.
fn start(tar: &Path) -> Result<()> {
    let container = buildah().args(["from", &format!("docker-archive:{}", tar.display())]).output()?;
    let container = container.trim();
    let image = buildah().args(["inspect", "--type", "container", container]).output();
    // chroot isolation needs neither a container runtime nor namespaces, so it works within containers.
    let said = buildah().args(["run", "--isolation", "chroot", container, "--", "/outrigger", "version"]).output();
    buildah().args(["rm", container]).quiet("buildah rm")?;
    buildah().args(["rmi", "--all", "--force"]).quiet("buildah rmi")?;
    let (image, said) = (image?, said?);
    if !said.contains(env!("CARGO_PKG_VERSION")) {
        bail!("the image started but did not tell its version; it said: {said}");
    }
    let image: serde_json::Value = serde_json::from_str(&image).context("buildah describes images in JSON")?;
    let config = &image["OCIv1"]["config"];
    if config["User"] != USER || config["Labels"]["org.opencontainers.image.title"] != "Outrigger" {
        bail!("buildah reads another user or other labels from the image: {config}");
    }
    ui::note(&format!("{} says: {}", tar.display(), said.lines().next().unwrap_or_default()));
    Ok(())
}

/// buildah with storage of its own, so that neither the user's images nor kernel features matter.
fn buildah() -> Cmd {
    Cmd::new("buildah")
        .arg("--root")
        .arg(folder().join("storage"))
        .arg("--runroot")
        .arg(folder().join("run"))
        .args(["--storage-driver", "vfs"])
        .with_tools()
}
