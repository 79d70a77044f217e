//! A real Kubernetes of one node on this machine: API server, controllers, scheduler, kubelet, containerd,
//! kube-proxy and CoreDNS, and pods in containers.
//!
//! In: what `setup` installed, root. Out: a kubeconfig, and processes on free ports whose state lies in one folder.
//! Promise: `down` leaves nothing, also after a crash or a kill -9 of anything; a process is ended by its id and
//! start time, so never a stranger; one full cluster per machine, any number of API servers alone.

mod calls;
mod checks;
mod clean;
mod control;
pub(crate) mod demo;
mod dns;
mod network;
mod node;
mod pki;
mod pods;
mod ports;
mod process;
mod start;
mod verb;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{find_program, tools_dir};
use network::Network;
use ports::Ports;
use process::Processes;

pub use calls::{Calls, Counts};
pub(crate) use checks::PROGRAMS;
pub(crate) use verb::{USAGE, tests, verb};

/// The release that `xtask/kubernetes/go.mod` names.
pub(crate) const VERSION: &str = "1.34.4";

/// A running cluster, or a folder to run one in.
#[derive(Debug, Clone)]
pub struct Cluster {
    state: PathBuf,
}

/// How much of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// etcd, API server and controllers: no node, no pods.
    ApiOnly,
    /// With a node that runs pods.
    Full,
}

impl Cluster {
    /// The cluster whose state lies, or is to lie, in `state`.
    pub fn at(state: impl Into<PathBuf>) -> Self {
        Self { state: state.into() }
    }

    /// The machine's one: its folder is the same for every copy of the repository.
    pub fn shared() -> Self {
        Self::at(std::env::temp_dir().join("outrigger-cluster"))
    }

    /// Starts what is not running yet, and waits until it serves. Remains of a crashed one are removed first.
    ///
    /// # Errors
    /// When something is missing or does not start; what was started is ended again.
    pub fn up(&self, extent: Extent) -> Result<()> {
        self.up_with(extent, Network::default(), &mut |_| {})
    }

    fn up_with(&self, extent: Extent, network: Network, say: &mut dyn FnMut(&str)) -> Result<()> {
        if self.is_up(extent) {
            return Ok(());
        }
        if extent == Extent::Full && self.is_up(Extent::ApiOnly) && !self.has_node() {
            bail!(
                "an API server alone runs in {}; end it first, or choose another folder with `--state`",
                self.state.display()
            );
        }
        self.down()?;
        checks::before(extent, network)?;
        let begun = Instant::now();
        let started =
            self.start(extent, network, &mut |what| say(&format!("{:4.1} s  {what}", begun.elapsed().as_secs_f32())));
        if started.is_err() {
            // What went wrong is told; that the remains cannot be removed would only hide it.
            let _ = self.down();
        }
        started
    }

    fn start(&self, extent: Extent, network: Network, say: &mut dyn FnMut(&str)) -> Result<()> {
        for folder in ["logs", "pids", "pki"] {
            let folder = self.state.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        network.save(&self.state)?;
        let ports = Ports::choose(&self.state)?;
        pki::make(&self.state, network, ports.api)?;
        if extent == Extent::Full {
            network.make(&self.state)?;
        }
        control::start(self, extent, network, &ports)?;
        say("the API server serves");
        if extent == Extent::Full {
            node::start(self, network, &ports)?;
            dns::start(self, network, &ports)?;
            node::wait_ready(self)?;
            say("the node takes pods");
        }
        Ok(())
    }

    /// Ends everything that it consists of, and removes what it made. Nothing to end is no error.
    ///
    /// # Errors
    /// When something does not end, or cannot be removed.
    pub fn down(&self) -> Result<()> {
        if self.state.exists() { clean::down(self) } else { Ok(()) }
    }

    /// Whether its parts run.
    pub fn is_up(&self, extent: Extent) -> bool {
        let parts: &[&str] = match extent {
            Extent::ApiOnly => &["etcd", "apiserver", "controllers"],
            Extent::Full => {
                &["etcd", "apiserver", "controllers", "scheduler", "containerd", "kubelet", "proxy", "coredns"]
            }
        };
        parts.iter().all(|part| self.processes().alive(part).is_some())
    }

    /// Takes the images of an archive (OCI or docker). Pods use them with `imagePullPolicy: Never`.
    ///
    /// # Errors
    /// When there is no such file, or no node.
    pub fn load(&self, archive: &Path) -> Result<()> {
        if !archive.exists() {
            bail!("there is no {}; `cargo xtask image` makes Outrigger's", archive.display());
        }
        if self.processes().alive("containerd").is_none() {
            bail!("no cluster with a node runs in {}; `cargo xtask cluster up` starts one", self.state.display());
        }
        output(
            self.ctr()
                .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", node::snapshotter(&self.state)?])
                .arg(archive),
        )?;
        Ok(())
    }

    /// Gives an image of the node, by its full name, a further one.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn tag(&self, image: &str, further: &str) -> Result<()> {
        output(self.ctr().args(["--namespace", "k8s.io", "images", "tag", "--force", image, further])).map(drop)
    }

    /// Ends the API server of [`Extent::ApiOnly`], as a crash would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_api(&self) -> Result<()> {
        self.processes().stop(&["apiserver"])
    }

    /// Starts it again.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn start_api(&self) -> Result<()> {
        control::start_api(self, Extent::ApiOnly, Network::default(), &Ports::read(&self.state)?)
    }

    /// Has etcd forget all versions but the newest, so that no watch can begin with an older one.
    ///
    /// # Errors
    /// When etcd does not answer as it should.
    pub fn compact(&self) -> Result<()> {
        let ports = Ports::read(&self.state)?;
        let ask = |path: &str, body: &str| {
            let url = format!("http://127.0.0.1:{}/v3/kv/{path}", ports.etcd);
            output(program("curl").args(["--silent", "--fail", "--max-time", "20", "--data", body, &url]))
        };
        let answer = ask("range", r#"{"key":"AA=="}"#)?;
        let revision = answer.split_once(r#""revision":""#).and_then(|(_, rest)| rest.split_once('"'));
        let (revision, _) = revision.with_context(|| format!("etcd names no revision: {answer}"))?;
        ask("compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).map(drop)
    }

    /// The file for `KUBECONFIG`; its user may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.conf")
    }

    /// `kubectl`, of the cluster's version, for this cluster.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(tools_dir().join("bin/kubectl"));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// What a part wrote, such as `kubelet`.
    pub fn log(&self, part: &str) -> PathBuf {
        self.state.join("logs").join(format!("{part}.log"))
    }

    /// Whether it was started with a node, which may have gone.
    fn has_node(&self) -> bool {
        self.state.join("cni").exists()
    }

    fn processes(&self) -> Processes<'_> {
        Processes { state: &self.state }
    }

    fn ctr(&self) -> Command {
        let mut command = program("ctr");
        command.arg("--address").arg(self.socket());
        command
    }

    /// containerd's.
    fn socket(&self) -> PathBuf {
        self.state.join("containerd/containerd.sock")
    }

    /// Asks the API server, as its administrator.
    fn ask(&self, path: &str) -> Result<String> {
        output(self.curl(path)?.arg("--fail"))
    }

    /// Gives the API server an object, as YAML.
    fn post(&self, path: &str, object: &str) -> Result<()> {
        let file = self.state.join("object.yaml");
        fs::write(&file, object)?;
        let mut curl = self.curl(path)?;
        curl.args(["--fail", "--header", "Content-Type: application/yaml", "--data-binary"]);
        output(curl.arg(format!("@{}", file.display()))).map(drop)
    }

    fn curl(&self, path: &str) -> Result<Command> {
        let ports = Ports::read(&self.state)?;
        let mut curl = program("curl");
        curl.args(["--silent", "--max-time", "5", "--cacert"]).arg(self.state.join("pki/ca.crt"));
        curl.args(["--header", &format!("Authorization: Bearer {}", pki::ADMIN_TOKEN)]);
        curl.arg(format!("https://127.0.0.1:{}{path}", ports.api));
        Ok(curl)
    }

    /// Asks `probe` until it succeeds; gives up at once when a part has ended.
    fn wait(&self, what: &str, patience: Duration, mut probe: impl FnMut() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let error = match probe() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.processes().all_alive()?;
            if begun.elapsed() > patience {
                return Err(error.context(format!(
                    "waited {} s in vain for {what}; its logs lie in {}",
                    patience.as_secs(),
                    self.state.join("logs").display()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A program of the system or of ours.
fn program(name: &str) -> Command {
    let ours = tools_dir().join("bin").join(name);
    Command::new(if ours.exists() { ours } else { find_program(name).unwrap_or_else(|| name.into()) })
}

/// Runs a program to its end; gives what it printed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
