//! One pod of the demo: an unmodified program and one Outrigger beside it.
//!
//! In: a name, ports and the demo's folder. Out: a running `outrigger run -c … -- shop …`
//! in its own process group, and its metrics once asked. Promise: the pod ends with its
//! handle, in order where it can and by force where it must.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// What differs between the pods.
pub(super) struct PodSpec {
    pub(super) name: &'static str,
    pub(super) config: &'static str,
    /// SPIFFE ID of whoever calls this pod.
    pub(super) caller: &'static str,
}

/// Ports of a pod; each is free when it is chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) admin: u16,
    health: u16,
    pub(super) inbound: u16,
    outbound: u16,
    pub(super) app: u16,
    pub(super) metrics: u16,
    statsd: u16,
}

impl Ports {
    /// Asks the kernel for free ports, all held at once so that none is given twice.
    pub(super) fn choose() -> anyhow::Result<Self> {
        let tcp = (0..6).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let ports = tcp.iter().map(|l| l.local_addr().map(|a| a.port())).collect::<Result<Vec<_>, _>>()?;
        let [admin, health, inbound, outbound, app, metrics] = ports[..] else { bail!("six ports were asked for") };
        Ok(Self { admin, health, inbound, outbound, app, metrics, statsd: udp.local_addr()?.port() })
    }
}

/// A running pod.
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) ports: Ports,
    pub(super) directory: PathBuf,
    process: Child,
}

impl Pod {
    /// Writes the pod's config and starts it.
    pub(super) fn start(
        spec: PodSpec,
        ports: Ports,
        shop: &Path,
        next: Option<Ports>,
        collector: u16,
    ) -> anyhow::Result<Self> {
        let directory = shop.join(spec.name);
        for folder in ["logs", "secrets", "state"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        let config = directory.join("outrigger.yaml");
        fs::write(&config, spec.config)?;
        let own_output = fs::File::create(directory.join("outrigger.log"))?;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();

        let outrigger = std::env::current_exe().context("cannot find the executable to start the pods with")?;
        let mut command = Command::new(&outrigger);
        command
            // However the demo ends, its pods end too.
            .args(["run", "--die-with-parent", "-c"])
            .arg(&config)
            .arg("--")
            .arg(&outrigger)
            .args(["shop", "--name", spec.name, "--listen", &loopback(ports.app)])
            .arg("--password-file")
            .arg(directory.join("secrets/password"))
            .arg("--log-dir")
            .arg(directory.join("logs"));
        if next.is_some() {
            command.args(["--next", &loopback(ports.outbound)]);
        }
        command
            .env("SHOP_DIR", shop)
            .env("ADMIN_PORT", ports.admin.to_string())
            .env("HEALTH_PORT", ports.health.to_string())
            .env("INBOUND_PORT", ports.inbound.to_string())
            .env("OUTBOUND_PORT", ports.outbound.to_string())
            .env("APP_PORT", ports.app.to_string())
            .env("METRICS_PORT", ports.metrics.to_string())
            .env("STATSD_PORT", ports.statsd.to_string())
            .env("BACKEND_PORT", next.map_or(0, |next| next.inbound).to_string())
            .env("COLLECTOR_PORT", collector.to_string())
            // Ctrl-C reaches the demo alone, which then stops the pods in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(own_output.try_clone()?)
            .stderr(own_output);
        let process = command.spawn().with_context(|| format!("cannot start the pod `{}`", spec.name))?;
        Ok(Self { spec, ports, directory, process })
    }

    /// Asks the pod to stop and waits for its end.
    pub(super) async fn stop(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + within;
        if self.ended()?.is_none() {
            kill_process(pid_of(&self.process)?, Signal::TERM)?;
        }
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > until {
                self.process.kill()?;
                bail!("the pod `{}` did not stop within {within:?}; see {}", self.spec.name, self.own_log().display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The exit status, once the pod has ended.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Process id of the sidecar.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where the sidecar's own log lies.
    pub(super) fn own_log(&self) -> PathBuf {
        self.directory.join("outrigger.log")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Only reached with a live process when the demo itself fails.
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn pid_of(process: &Child) -> anyhow::Result<Pid> {
    i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("the pod has no process id")
}
