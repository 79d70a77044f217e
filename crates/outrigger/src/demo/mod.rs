//! `outrigger demo`: the main job, shown and then checked.
//!
//! In: a rate, perhaps a duration. Out: two pods of a small shop under traffic, a live
//! view, and a table that says whether what was shown is true. Promise: nothing but this
//! executable is needed, and everything started here ends here.

mod collector;
mod metrics;
mod pod;
mod verify;
mod view;
mod visitor;

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Request;
use outrigger_config::{Config, DevelopmentAuthority, Identity};
use outrigger_http::{Client, ClientOptions, Resolver};
use outrigger_identity::IdentityComponent;
use outrigger_runtime::{Component, Context as RuntimeContext};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::DemoArgs;
use crate::output;
use collector::Collector;
use metrics::PodMetrics;
use pod::{Pod, PodSpec, Ports};
use verify::Check;
use view::{PodRow, View};
use visitor::{Seen, Visitor};

const TRUST_DOMAIN: &str = "shop.example";
const VISITOR: &str = "spiffe://shop.example/ns/shop/sa/visitor";
const FRONTEND: &str = "spiffe://shop.example/ns/shop/sa/frontend";
const START_WITHIN: Duration = Duration::from_secs(15);
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long the last requests may take to be counted, and how often that is looked at.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The secret is rotated so long after the start, or half-way when that is earlier.
const ROTATE_AFTER: Duration = Duration::from_secs(10);

/// Runs the demo; 0 when every claim held, 1 when not.
pub(crate) fn run(args: DemoArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(demo(args))
}

async fn demo(args: DemoArgs) -> anyhow::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = CancellationToken::new();

    let folder = working_folder(args.dir)?;
    let mut shop = Shop::open(&folder).await?;
    shop.announce()?;

    let mut tasks = JoinSet::new();
    tasks.spawn(shop.visitor(args.rate).await?.run(stop.clone()));

    let began = Instant::now();
    let rotate_at = args.duration.map_or(ROTATE_AFTER, |whole| ROTATE_AFTER.min(whole / 2));
    let mut view = View::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    let mut rotated = false;
    let mut failure = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
        if !rotated && began.elapsed() >= rotate_at {
            write_store(&folder, 2)?;
            rotated = true;
        }
        if let Err(error) = shop.observe().await {
            failure = Some(error);
            break;
        }
        shop.show(&mut view, began.elapsed())?;
        if args.duration.is_some_and(|whole| began.elapsed() >= whole) {
            break;
        }
    }

    stop.cancel();
    while tasks.join_next().await.is_some() {}
    let checks = shop.close(rotated).await;
    let mut checks = checks?;
    if let Some(error) = failure {
        checks.push(Check::new("both pods answered throughout", false, format!("{error:#}")));
    }
    view::print_checks(&checks)?;
    let held = checks.iter().all(|check| check.held);
    let verdict = if held { "everything shown held" } else { "not everything shown held" };
    output::print(&format!("\n{verdict}; logs, configs and secrets lie in {}\n", folder.display()))?;
    Ok(u8::from(!held))
}

/// The running shop.
struct Shop {
    folder: PathBuf,
    /// Frontend first: traffic runs in this order, and the stop follows it.
    pods: [Pod; 2],
    collector: JoinSet<()>,
    collector_stop: CancellationToken,
    client: Client,
    now: [PodMetrics; 2],
    before: [PodMetrics; 2],
    observed: Instant,
    elapsed: Duration,
    seen: Arc<Seen>,
    first_secret: [Option<SystemTime>; 2],
    program_start: [Option<SystemTime>; 2],
}

impl Shop {
    /// Starts collector, backend and frontend, and waits until both are ready.
    async fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("shipped"))?;
        write_store(folder, 1)?;
        let listening = Collector::bind(&folder.join("shipped/backend.ndjson")).await?;
        let collector_port = listening.port()?;
        let collector_stop = CancellationToken::new();
        let mut collector = JoinSet::new();
        collector.spawn(listening.run(collector_stop.clone()));

        let backend_spec = PodSpec {
            name: "backend",
            config: include_str!("../../../../examples/shop/backend.yaml"),
            caller: FRONTEND,
        };
        let frontend_spec = PodSpec {
            name: "frontend",
            config: include_str!("../../../../examples/shop/frontend.yaml"),
            caller: VISITOR,
        };
        let backend_ports = Ports::choose()?;
        let backend = Pod::start(backend_spec, backend_ports, folder, None, collector_port)?;
        let frontend = Pod::start(frontend_spec, Ports::choose()?, folder, Some(backend_ports), collector_port)?;
        let client = Client::new(ClientOptions::default(), Resolver::from_system());
        let mut shop = Self {
            folder: folder.to_owned(),
            pods: [frontend, backend],
            collector,
            collector_stop,
            client,
            now: Default::default(),
            before: Default::default(),
            observed: Instant::now(),
            elapsed: Duration::ZERO,
            seen: Arc::default(),
            first_secret: [None; 2],
            program_start: [None; 2],
        };
        for index in 0..2 {
            shop.wait_ready(index).await?;
        }
        Ok(shop)
    }

    fn announce(&self) -> anyhow::Result<()> {
        let mut text = String::new();
        for pod in &self.pods {
            text.push_str(&format!("{:<9} {}\n", pod.spec.name, view::urls(pod.ports)));
        }
        text.push_str(&format!("files     {}\n\n", self.folder.display()));
        output::print(&text)
    }

    /// A visitor with an identity of its own, issued by the shop's development authority.
    async fn visitor(&self, rate: u32) -> anyhow::Result<Visitor> {
        let identity = Identity {
            trust_domain: TRUST_DOMAIN.parse()?,
            files: None,
            authority: None,
            own_authority: None,
            workload_api: None,
            development: Some(DevelopmentAuthority {
                directory: self.folder.join("authority"),
                namespace: "shop".parse()?,
                service_account: "visitor".parse()?,
                ttl: outrigger_config::Duration::from_secs(24 * 3600),
            }),
        };
        let config = Config { identity: Some(identity), ..Config::default() };
        let (component, identities) = IdentityComponent::new();
        let (ctx, _standalone) = RuntimeContext::standalone(config, 1);
        // The certificate outlives any demo, so the component is needed for the first one only.
        let snapshot = tokio::select! {
            snapshot = identities.first() => snapshot.context("the visitor got no identity")?,
            ended = component.run(ctx) => bail!("the visitor got no identity: {ended:?}"),
            () = tokio::time::sleep(START_WITHIN) => bail!("the visitor got no identity within {START_WITHIN:?}"),
        };
        let tls = snapshot.client_config(&[FRONTEND.parse()?], &[b"http/1.1"])?;
        Ok(Visitor { frontend: self.pods[0].ports.inbound, tls, rate, seen: Arc::clone(&self.seen) })
    }

    /// Waits until a pod says that it is ready and its program takes connections.
    async fn wait_ready(&mut self, index: usize) -> anyhow::Result<()> {
        let until = Instant::now() + START_WITHIN;
        let mut reason = String::from("no answer from its admin port");
        loop {
            let pod = &mut self.pods[index];
            if let Some(status) = pod.ended()? {
                let log = fs::read_to_string(pod.own_log()).unwrap_or_default();
                bail!("the pod `{}` ended at once with {status}; its sidecar said:\n{log}", pod.spec.name);
            }
            let ports = pod.ports;
            if let Ok((status, body)) = self.get(ports.admin, "/readyz?verbose").await {
                if status == 200 && tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, ports.app)).await.is_ok() {
                    break;
                }
                reason = body;
            }
            if Instant::now() > until {
                let log = self.pods[index].own_log();
                bail!("the pod is not ready after {START_WITHIN:?}: {reason}\nits sidecar's log is {}", log.display());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pod = &self.pods[index];
        self.first_secret[index] = verify::written_at(&pod.directory.join("secrets/password"));
        self.program_start[index] = verify::program_started_at(pod.pid());
        Ok(())
    }

    /// Scrapes both pods.
    async fn observe(&mut self) -> anyhow::Result<()> {
        let mut fresh: [PodMetrics; 2] = Default::default();
        for (index, metrics) in fresh.iter_mut().enumerate() {
            let pod = &mut self.pods[index];
            if let Some(status) = pod.ended()? {
                bail!("the pod `{}` ended with {status}; see {}", pod.spec.name, pod.own_log().display());
            }
            let port = pod.ports.metrics;
            let (status, body) = self.get(port, "/metrics").await?;
            anyhow::ensure!(status == 200, "/metrics answered {status}");
            *metrics = PodMetrics::parse(body.as_bytes()).context("cannot read a sidecar's metrics")?;
        }
        self.before = std::mem::replace(&mut self.now, fresh);
        self.elapsed = self.observed.elapsed();
        self.observed = Instant::now();
        Ok(())
    }

    fn show(&self, view: &mut View, at: Duration) -> anyhow::Result<()> {
        let shipped = self.pods.each_ref().map(|pod| self.shipped(pod));
        let rows: Vec<PodRow<'_>> = (0..2)
            .map(|index| {
                let pod = &self.pods[index];
                PodRow {
                    name: pod.spec.name,
                    ports: pod.ports,
                    shipped: &shipped[index],
                    written: verify::last_number_written(&pod.directory.join("logs")).unwrap_or_default(),
                    now: &self.now[index],
                    before: &self.before[index],
                }
            })
            .collect();
        view.show(at, self.elapsed, &rows)
    }

    /// Stops everything in the order of the traffic and checks what was shown.
    async fn close(mut self, rotated: bool) -> anyhow::Result<Vec<Check>> {
        let mut checks = Vec::new();
        let refused = self.plain_client_is_refused();
        let sent = self.seen.sent.load(Relaxed);
        // A request is counted just after its last byte has gone, so the visitor may have its answer a moment before.
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            self.observe().await?;
            if verify::metrics_add_up(sent, &self.now[0], &self.now[1]).held || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        for pod in &mut self.pods {
            let outcome = pod.stop(STOP_WITHIN).await;
            // The program has no handler for SIGTERM, so its exit code is 128 + 15.
            let orderly = matches!(&outcome, Ok(status) if matches!(status.code(), Some(0 | 143)));
            let evidence = outcome.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
            checks.push(Check::new(format!("{}: stopped in order", pod.spec.name), orderly, evidence));
        }
        self.collector_stop.cancel();
        while self.collector.join_next().await.is_some() {}

        let succeeded = self.seen.succeeded.load(Relaxed);
        let failed = self.seen.failed.load(Relaxed);
        let first = self.seen.first_failure.get().map(|text| format!("; first: {text}")).unwrap_or_default();
        checks.insert(
            0,
            Check::new(
                "every request was answered with success",
                sent > 0 && succeeded == sent,
                format!("{sent} sent, {succeeded} succeeded, {failed} failed{first}"),
            ),
        );
        checks.insert(1, verify::metrics_add_up(sent, &self.now[0], &self.now[1]));
        checks.insert(2, refused);
        for (index, pod) in self.pods.iter().enumerate() {
            let name = pod.spec.name;
            checks.push(verify::mutual_tls(name, pod.spec.caller, &self.now[index]));
            checks.push(verify::exactly_once(name, &pod.directory.join("logs"), &self.shipped(pod)));
            checks.push(verify::secret_before_start(name, self.first_secret[index], self.program_start[index]));
            if rotated {
                let version = self.now[index].secret_version;
                let content = fs::read_to_string(pod.directory.join("secrets/password")).unwrap_or_default();
                checks.push(Check::new(
                    format!("{name}: the rotated secret reached the running program's file"),
                    version == 2 && content == password(name, 2),
                    format!("version {version} on disk"),
                ));
            }
        }
        Ok(checks)
    }

    /// A client without a certificate gets no answer from the frontend's inbound port.
    fn plain_client_is_refused(&self) -> Check {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.pods[0].ports.inbound));
        let answer = (|| -> std::io::Result<Vec<u8>> {
            let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: frontend.shop\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.take(4096).read_to_end(&mut answer)?;
            Ok(answer)
        })();
        // A TLS alert (content type 21) may come before the connection is closed; HTTP may not.
        let held = !matches!(&answer, Ok(bytes) if bytes.starts_with(b"HTTP/"));
        let evidence = match answer {
            Ok(bytes) => format!("{} bytes that are no HTTP, then closed", bytes.len()),
            Err(error) => error.to_string(),
        };
        Check::new("a client without a certificate is refused", held, evidence)
    }

    fn shipped(&self, pod: &Pod) -> PathBuf {
        self.folder.join("shipped").join(format!("{}.ndjson", pod.spec.name))
    }

    async fn get(&self, port: u16, path: &str) -> anyhow::Result<(u16, String)> {
        let request = Request::get(format!("http://127.0.0.1:{port}{path}")).body(Bytes::new())?;
        let response = self.client.send(request).await?;
        Ok((response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned()))
    }
}

/// The folder to work in: the given one, or a fresh one that no other demo has.
fn working_folder(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let folder = given.unwrap_or_else(|| std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id())));
    if fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; the demo wants a fresh folder, give another with --dir", folder.display());
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(fs::canonicalize(&folder)?)
}

/// Writes a version of the shop's secrets where the `file` provider reads them.
fn write_store(folder: &Path, version: u32) -> anyhow::Result<()> {
    let store = folder.join("store");
    fs::create_dir_all(&store)?;
    for pod in ["frontend", "backend"] {
        let secret = serde_json::json!({ "password": password(pod, version) });
        let fresh = store.join(format!(".{pod}.new"));
        fs::write(&fresh, secret.to_string())?;
        fs::rename(&fresh, store.join(format!("{pod}.json")))?;
    }
    Ok(())
}

fn password(pod: &str, version: u32) -> String {
    format!("{pod}-demo-password-{version}")
}
