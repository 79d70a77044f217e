//! A real Kubernetes, of `cargo xtask cluster`.
//!
//! In: manifests. Out: a namespace of a test's own in the machine's one cluster, or an API server alone. Promise: a
//! missing cluster fails the test; what a test makes goes with its guard, and when it failed, what became of its pods is shown.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use xtask::cluster::{Calls, Cluster, Extent};

use crate::eventually_within;

/// Long enough for a pod on a busy machine; a passing test waits a few seconds of it.
const PATIENCE: Duration = Duration::from_secs(90);

/// What names of tests' namespaces begin with, before the process's id.
const PREFIX: &str = "test-";

/// A namespace of the machine's cluster.
#[derive(Debug)]
pub struct KubeNamespace {
    /// Its name.
    pub name: String,
    cluster: Cluster,
}

/// etcd, API server and controllers, for tests that need no pods.
#[derive(Debug)]
pub struct ApiServer {
    cluster: Cluster,
}

impl ApiServer {
    /// Starts it on free ports, with its state below `folder`.
    ///
    /// # Panics
    /// When it does not serve.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let cluster = Cluster::at(folder.join("cluster"));
        cluster.up(Extent::ApiOnly).expect("the API server starts");
        Self { cluster }
    }

    /// `kubectl` with arguments; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run_with(self.cluster.kubectl().args(arguments), "")
    }

    /// Makes objects, in YAML; what kubectl printed, its warnings, too. With further arguments such as `--dry-run=server`.
    ///
    /// # Errors
    /// When the API server refuses them, and why.
    pub fn create(&self, manifest: &str, arguments: &[&str]) -> Result<String> {
        let mut kubectl = self.cluster.kubectl();
        run_to_the_end(kubectl.args(["create", "--filename=-"]).args(arguments), manifest).map(|(out, err)| out + &err)
    }

    /// Makes or changes objects, in YAML; tries again while what they need is still being made.
    ///
    /// # Panics
    /// When the API server refuses them.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        eventually_within(PATIENCE, "objects", || {
            run_with(self.cluster.kubectl().args(["apply", "--filename=-"]), manifest)
        });
    }

    /// The file for `KUBECONFIG`, whose user may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// Its URL.
    ///
    /// # Panics
    /// When the kubeconfig names none.
    pub fn server(&self) -> String {
        self.view("server")
    }

    /// Writes what a process needs to ask it as a service account: `api-ca.pem` and `api-token`.
    ///
    /// # Panics
    /// When there is no such account.
    #[track_caller]
    pub fn write_access(&self, folder: &Path, namespace: &str, account: &str) {
        let encoded = folder.join("ca.b64");
        fs::write(&encoded, self.view("certificate-authority-data")).expect("the folder can be written");
        let ca = crate::run(crate::tool("base64").arg("--decode").arg(&encoded)).expect("it is base64");
        fs::write(folder.join("api-ca.pem"), ca).expect("the folder can be written");
        let token = eventually_within(PATIENCE, "a token", || {
            self.kubectl(&["create", "token", account, "--namespace", namespace])
        });
        fs::write(folder.join("api-token"), token).expect("the folder can be written");
    }

    /// Ends the API server, as a crash would; etcd stays.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop_api(&self) {
        self.cluster.stop_api().expect("the API server ends");
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_api(&self) {
        self.cluster.start_api().expect("the API server starts again");
    }

    /// Has etcd forget all versions but the newest.
    ///
    /// # Panics
    /// When etcd refuses.
    pub fn compact(&self) {
        self.cluster.compact().expect("etcd is compacted");
    }

    fn view(&self, what: &str) -> String {
        let path = format!("jsonpath={{.clusters[0].cluster.{what}}}");
        self.kubectl(&["config", "view", "--raw", "--flatten", "--output", &path]).expect("the kubeconfig can be read")
    }

    /// Whether the API server would take these objects, in YAML; what they would become.
    ///
    /// # Errors
    /// When it would not, and why.
    pub fn dry_run(&self, manifest: &str) -> Result<String> {
        run_with(self.cluster.kubectl().args(["create", "--dry-run=server", "--output=json", "--filename=-"]), manifest)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.down() {
            eprintln!("the API server does not go: {error:#}");
        }
    }
}

/// The image of the executable under test: `OUTRIGGER_IMAGE`, or else the debug one.
pub fn outrigger_image() -> String {
    std::env::var("OUTRIGGER_IMAGE").unwrap_or_else(|_| format!("outrigger:{}-debug", env!("CARGO_PKG_VERSION")))
}

impl KubeNamespace {
    /// Makes one, with further labels such as those of Pod Security.
    ///
    /// # Panics
    /// When no cluster runs.
    #[track_caller]
    pub fn new(labels: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cluster = Cluster::shared();
        assert!(
            cluster.is_up(Extent::Full),
            "no cluster runs; `cargo xtask cluster test` starts one for the tests, `cargo xtask cluster up` one that stays"
        );
        static LEFTOVERS: Once = Once::new();
        LEFTOVERS.call_once(|| remove_leftovers(&cluster));
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = Self { name, cluster };
        let manifest = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {}, labels: {{ {labels} }} }}\n",
            namespace.name
        );
        namespace.apply(&manifest);
        // Pods cannot be made before.
        namespace.eventually("its service account", || namespace.kubectl(&["get", "serviceaccount", "default"]));
        namespace
    }

    /// Makes or changes objects, in YAML.
    ///
    /// # Panics
    /// When the API server refuses them.
    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.try_apply(manifest).unwrap_or_else(|error| panic!("{error:#}\nof {manifest}"));
    }

    /// As [`apply`](Self::apply), where a refusal is expected.
    ///
    /// # Errors
    /// When the API server refuses them.
    pub fn try_apply(&self, manifest: &str) -> Result<String> {
        run_with(self.command().args(["apply", "--filename=-"]), manifest)
    }

    /// `kubectl` with arguments; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run_with(self.command().args(arguments), "")
    }

    /// What `KUBECONFIG` has to name.
    pub fn kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// Runs a program in a pod, such as `POD` or `POD -c CONTAINER`.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(&self, pod: &str, program: &[&str]) -> Result<String> {
        let words: Vec<&str> = pod.split(' ').collect();
        self.kubectl(&[&["exec"], words.as_slice(), &["--"], program].concat())
    }

    /// Has the container `app` of a pod call a URL `rate` times a second, until the guard is asked what became of that, or dropped.
    ///
    /// # Panics
    /// When `kubectl` cannot be started.
    #[track_caller]
    pub fn calls(&self, pod: &str, url: &str, rate: u32) -> Calls {
        Calls::start(&self.cluster, &self.name, pod, url, rate).expect("kubectl can be started")
    }

    /// A part of an object, as `kubectl`'s JSONPath.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn get(&self, object: &str, path: &str) -> Result<String> {
        self.kubectl(&["get", object, &format!("--output=jsonpath={path}")])
    }

    /// Waits for a condition of an object, such as `Ready` of `pod/web`.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_for(&self, object: &str, condition: &str) {
        self.eventually(&format!("{object} to be {condition}"), || {
            let flag = format!("--for=condition={condition}");
            self.kubectl(&["wait", object, &flag, "--timeout=20s"]).map(drop)
        });
    }

    /// Asks `probe` until it answers `Ok`, for as long as pods may take.
    ///
    /// # Panics
    /// When it still fails then.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, probe: impl FnMut() -> Result<T>) -> T {
        eventually_within(PATIENCE, what, probe)
    }

    /// The image of the executable under test under another name, as if it were the next version.
    ///
    /// # Panics
    /// When the cluster does not have it.
    #[track_caller]
    pub fn next_image(&self) -> String {
        let next = format!("outrigger:next-{}", self.name);
        let full = |name: &str| format!("docker.io/library/{name}");
        self.cluster.tag(&full(&outrigger_image()), &full(&next)).expect("the cluster has the image");
        next
    }

    /// Sends a part of an object back to the API server, by its own path, such as `pods/web/ephemeralcontainers`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn replace(&self, path: &str, object: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{}/{path}", self.name);
        run_with(self.command().args(["replace", "--raw", &path, "--filename=-"]), object)
    }

    /// The processes of a container, on this machine.
    ///
    /// # Errors
    /// When it does not run.
    pub fn processes(&self, pod: &str, container: &str) -> Result<Vec<u32>> {
        let all = "{range .status.initContainerStatuses[*]}{.name}={.containerID} {end}{range .status.containerStatuses[*]}{.name}={.containerID} {end}";
        let ids = self.get(&format!("pod/{pod}"), all)?;
        let id = ids.split(' ').find_map(|word| word.strip_prefix(container)?.strip_prefix("=containerd://"));
        let id = id.with_context(|| format!("{pod} has no running container {container}: {ids}"))?;
        let numbers = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let here =
            |number: &u32| fs::read_to_string(format!("/proc/{number}/cgroup")).is_ok_and(|text| text.contains(id));
        let found: Vec<u32> = numbers.filter(here).collect();
        if found.is_empty() { bail!("{container} of {pod} has no process") } else { Ok(found) }
    }

    /// Kills a container (SIGKILL), as the system does when memory is short.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn kill(&self, pod: &str, container: &str) {
        for id in self.processes(pod, container).expect("the container runs") {
            let pid = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(pid, Signal::KILL).expect("root may kill it");
        }
    }

    fn command(&self) -> Command {
        let mut kubectl = self.cluster.kubectl();
        kubectl.args(["--namespace", &self.name]);
        kubectl
    }
}

impl Drop for KubeNamespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [&["get", "pods,jobs", "--output=wide"][..], &["events"], &["describe", "pods"]] {
                eprintln!(
                    "--- kubectl {}\n{}",
                    arguments.join(" "),
                    self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"))
                );
            }
            for pod in self.kubectl(&["get", "pods", "--output=name"]).unwrap_or_default().lines() {
                let logs = self.kubectl(&["logs", pod, "--all-containers", "--prefix", "--tail=40"]);
                eprintln!("--- logs of {pod}\n{}", logs.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
        // Its pods go one after the other, which nobody has to wait for.
        let _ = self.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// Removes the namespaces of test runs that were killed.
fn remove_leftovers(cluster: &Cluster) {
    let names = run_with(cluster.kubectl().args(["get", "namespaces", "--output=name"]), "").unwrap_or_default();
    for name in names.lines().filter_map(|line| line.strip_prefix("namespace/")) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            // Somebody else may be about to.
            let _ = run_with(cluster.kubectl().args(["delete", "namespace", name, "--wait=false"]), "");
        }
    }
}

fn run_with(command: &mut Command, input: &str) -> Result<String> {
    run_to_the_end(command, input).map(|(out, _)| out)
}

/// What it printed, and what of that on standard error.
fn run_to_the_end(command: &mut Command, input: &str) -> Result<(String, String)> {
    use std::io::Write;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().with_context(|| format!("cannot start {command:?}; `cargo xtask setup` makes it"))?;
    // One that does not read its input has ended, and says why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} failed ({}):\n{out}{err}", output.status);
    }
    Ok((out.into_owned(), err.into_owned()))
}
