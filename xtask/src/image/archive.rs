//! Writes a container image into one file.
//!
//! In: files, and how they are run. Out: an archive in OCI's image layout that is docker's format as well, so that
//! containerd, podman, docker and buildah read it. Promise: the same input gives the same bytes, and so the same
//! digest, on any machine: no times, no owners, sorted folders.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image of one layer.
pub(crate) struct Image {
    /// `NAME:TAG`.
    pub(crate) name: String,
    /// OCI's config: `Entrypoint`, `User`, and so on.
    pub(crate) config: Value,
    pub(crate) entries: Vec<Entry>,
}

/// A file in it.
pub(crate) struct Entry {
    path: String,
    content: Content,
}

enum Content {
    Program(Vec<u8>),
    Text(Vec<u8>),
    /// A symbolic link to this path.
    Link(String),
}

impl Entry {
    /// An executable of this machine.
    pub(crate) fn program(path: &str, source: &Path) -> Result<Self> {
        let bytes = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
        Ok(Self { path: path.to_owned(), content: Content::Program(bytes) })
    }

    /// A file that all may read.
    pub(crate) fn text(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Text(text.as_bytes().to_vec()) }
    }

    /// A symbolic link.
    pub(crate) fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Link(target.to_owned()) }
    }
}

impl Image {
    /// An image that runs `entrypoint` as root.
    pub(crate) fn of(name: &str, entrypoint: &[&str], entries: Vec<Entry>) -> Self {
        let config = json!({ "Entrypoint": entrypoint, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] });
        Self { name: name.to_owned(), config, entries }
    }

    /// Writes the archive; gives the manifest's digest, by which a registry knows the image.
    pub(crate) fn write(&self, file: &Path) -> Result<String> {
        let layer = self.layer()?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
        }))?;
        let kind = |what: &str| format!("application/vnd.oci.image.{what}");
        let descriptor =
            |media: String, blob: &[u8]| json!({ "mediaType": media, "digest": digest(blob), "size": blob.len() });
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": kind("manifest.v1+json"),
            "config": descriptor(kind("config.v1+json"), &config),
            "layers": [descriptor(kind("layer.v1.tar"), &layer)],
        }))?;
        let mut listed = descriptor(kind("manifest.v1+json"), &manifest);
        // containerd takes the whole name from the first, others the tag from the second.
        listed["annotations"] = json!({
            "io.containerd.image.name": full_name(&self.name),
            "org.opencontainers.image.ref.name": self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
        });
        let index =
            json!({ "schemaVersion": 2, "mediaType": kind("index.v1+json"), "manifests": [listed] }).to_string();
        let docker =
            json!([{ "Config": blob(&config), "RepoTags": [self.name], "Layers": [blob(&layer)] }]).to_string();

        let part = file.with_extension("part");
        let target = fs::File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        let mut tar = Tar { out: BufWriter::new(target) };
        tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.file("index.json", 0o644, index.as_bytes())?;
        tar.file("manifest.json", 0o644, docker.as_bytes())?;
        for bytes in [&config, &manifest, &layer] {
            tar.file(&blob(bytes), 0o644, bytes)?;
        }
        tar.end()?.flush()?;
        fs::rename(&part, file).with_context(|| format!("cannot replace {}", file.display()))?;
        Ok(digest(&manifest))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut folders = BTreeSet::from(["tmp/".to_owned()]);
        for entry in &self.entries {
            let path = entry.path.trim_start_matches('/');
            folders.extend(path.match_indices('/').map(|(at, _)| path[..=at].to_owned()));
        }
        let mut tar = Tar { out: Vec::new() };
        for folder in folders {
            tar.header(&folder, if folder == "tmp/" { 0o1777 } else { 0o755 }, b'5', 0, "")?;
        }
        for entry in &self.entries {
            let path = entry.path.trim_start_matches('/');
            match &entry.content {
                Content::Program(bytes) => tar.file(path, 0o755, bytes)?,
                Content::Text(bytes) => tar.file(path, 0o644, bytes)?,
                Content::Link(target) => tar.header(path, 0o777, b'2', 0, target)?,
            }
        }
        tar.end()
    }
}

/// As registries name it: what has no host is docker's.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host == "localhost" || host.contains(['.', ':']) => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn blob(bytes: &[u8]) -> String {
    digest(bytes).replacen("sha256:", "blobs/sha256/", 1)
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The POSIX format (ustar) of tar archives.
struct Tar<W> {
    out: W,
}

const BLOCK: usize = 512;

impl<W: Write> Tar<W> {
    fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.header(path, mode, b'0', bytes.len(), "")?;
        self.out.write_all(bytes)?;
        Ok(self.out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])?)
    }

    fn header(&mut self, path: &str, mode: u32, kind: u8, size: usize, target: &str) -> Result<()> {
        let mut block = [0_u8; BLOCK];
        let mut field = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        if path.len() > 100 || target.len() > 100 {
            bail!("`{path}` is too long for a tar archive of the simple format");
        }
        field(0, path.as_bytes());
        field(100, format!("{mode:07o}\0{:07o}\0{:07o}\0{size:011o}\0{:011o}\0        ", 0, 0, 0).as_bytes());
        field(156, &[kind]);
        field(157, target.as_bytes());
        field(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Ok(self.out.write_all(&block)?)
    }

    fn end(mut self) -> Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Cmd;

    fn image() -> Image {
        let entries = vec![
            Entry::text("/etc/a/release", "1\n"),
            Entry { path: "/bin/program".to_owned(), content: Content::Program(vec![7; 513]) },
            Entry::link("/bin/other", "/bin/program"),
        ];
        Image::of("localhost/test:1", &["/bin/program"], entries)
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let folder = std::env::temp_dir().join(format!("outrigger-archive-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (first, second) = (folder.join("1.tar"), folder.join("2.tar"));
        let digest = image().write(&first).unwrap();
        assert_eq!(image().write(&second).unwrap(), digest);
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
        // Any change is another digest.
        let mut other = image();
        other.config["User"] = "1".into();
        assert_ne!(other.write(&second).unwrap(), digest);
        let mut other = image();
        other.entries[0] = Entry::text("/etc/a/release", "2\n");
        assert_ne!(other.write(&second).unwrap(), digest);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn tar_reads_it() {
        let folder = std::env::temp_dir().join(format!("outrigger-tar-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("layer.tar");
        fs::write(&file, image().layer().unwrap()).unwrap();
        let listed = Cmd::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc", "--file"])
            .arg(&file)
            .output()
            .unwrap();
        let lines: Vec<String> =
            listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 bin/",
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 etc/",
                "drwxr-xr-x 0/0 0 1970-01-01 00:00 etc/a/",
                "drwxrwxrwt 0/0 0 1970-01-01 00:00 tmp/",
                "-rw-r--r-- 0/0 2 1970-01-01 00:00 etc/a/release",
                "-rwxr-xr-x 0/0 513 1970-01-01 00:00 bin/program",
                "lrwxrwxrwx 0/0 0 1970-01-01 00:00 bin/other -> /bin/program",
            ]
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn names_are_those_of_registries() {
        for (name, full) in [
            ("outrigger:1", "docker.io/library/outrigger:1"),
            ("shop/app:1", "docker.io/shop/app:1"),
            ("localhost/app:1", "localhost/app:1"),
            ("registry.example/a/b:1", "registry.example/a/b:1"),
            ("host:5000/a:1", "host:5000/a:1"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }
}
