//! Pods as network namespaces on one bridge, and Outriggers in them.
//!
//! In: how many pods a test wants. Out: namespaces with an IPv4 and an IPv6 address each, whose
//! "node" is a namespace too. Promise: nothing of it is seen outside, so all tests have the same addresses at once;
//! it goes with its guard, and what a killed run left behind goes with the next run. Needs root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_res_gid, set_thread_res_uid};

use crate::eventually;
use crate::http::{Response, request};
use crate::outrigger::{find_metric, outrigger_command};
use crate::process::{Process, run, tool};

/// The user that applications in pods run as.
pub const APPLICATION: u32 = 1000;
/// The user that Outriggers in pods run as.
pub const PROXY: u32 = 65_532;

const PREFIX: &str = "outrigger-e2e-";

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Its name, as `ip netns` has it.
    pub name: String,
}

/// The network namespace that a thread is in, here or in a pod.
#[derive(Debug)]
pub struct Inside(File);

/// A node: a bridge to which pods are joined. Its own address on it is the one that probes come from.
#[derive(Debug)]
pub struct Node {
    /// The namespace that holds the bridge.
    pub namespace: Namespace,
    pods: AtomicU32,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Namespace,
    /// `10.77.0.N`.
    pub v4: Ipv4Addr,
    /// `fd77::N`.
    pub v6: Ipv6Addr,
}

impl Namespace {
    /// A namespace with nothing but loopback in it.
    ///
    /// # Panics
    /// When it cannot be made: only root can.
    pub fn new(kind: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{kind}", std::process::id());
        run(tool("ip").args(["netns", "add", &name])).expect("a network namespace can be made (needs root)");
        let namespace = Self { name };
        run(tool("ip").args(["-n", &namespace.name, "link", "set", "lo", "up"])).expect("lo can be brought up");
        namespace
    }

    /// Does something on a thread within the namespace, as a user. Sockets that are opened there stay there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    #[track_caller]
    pub fn enter<T: Send>(&self, uid: u32, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        let namespace = File::open(path).expect("the namespace is there");
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
                set_thread_res_gid(group, group, group).expect("root may change its group");
                set_thread_res_uid(user, user, user).expect("root may change its user");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs a program in the namespace as a user, with no more privileges than that user has.
    pub fn command(&self, uid: u32, program: &Command) -> Command {
        let user = uid.to_string();
        let mut command = tool("ip");
        command.args(["netns", "exec", &self.name]).arg(tool("setpriv").get_program());
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
        command.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            command.env(name, value.unwrap_or(OsStr::new("")));
        }
        command
    }

    /// Runs a program in the namespace, as a user, to its end; what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, uid: u32, program: &mut Command) -> Result<String> {
        run(&mut self.command(uid, program))
    }

    /// Runs `outrigger init` as root.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn init(&self, flags: &[&str]) -> Output {
        let mut command = outrigger_command();
        command.arg("init").args(flags);
        self.command(0, &command).output().expect("the executable runs")
    }

    /// Runs `outrigger init` as root, and it must do what it is told.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn must_init(&self, flags: &[&str]) -> String {
        let output = self.init(flags);
        assert!(output.status.success(), "init {flags:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it prints text")
    }
}

impl Inside {
    /// Where this thread is.
    ///
    /// # Panics
    /// When `/proc` is not there.
    pub fn here() -> Self {
        Self(File::open("/proc/thread-self/ns/net").expect("a thread is in a namespace"))
    }

    /// Does something there.
    ///
    /// # Panics
    /// When it cannot be entered, or `work` panics.
    #[track_caller]
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if number(&self.0) == number(&Self::here().0) {
            return work();
        }
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter a namespace");
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// What tells one namespace from another.
fn number(namespace: &File) -> u64 {
    namespace.metadata().expect("it is open").ino()
}

/// Where servers of tests listen: on this machine for us alone, in a pod on all addresses, as servers in pods do.
///
/// # Panics
/// When `/proc` is not there.
pub fn listen_on() -> Ipv4Addr {
    let of_all = File::open("/proc/self/ns/net").expect("a process is in a namespace");
    if number(&of_all) == number(&Inside::here().0) { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // With it go its interfaces and rules.
        let _ = run(tool("ip").args(["netns", "del", &self.name]));
    }
}

impl Node {
    /// Makes a node without pods.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn new() -> Self {
        remove_leftovers();
        let namespace = Namespace::new("node");
        let name = &namespace.name;
        ip(name, &["link", "add", "pods", "type", "bridge", "forward_delay", "0"]);
        ip(name, &["addr", "add", "10.77.0.1/24", "dev", "pods"]);
        ip(name, &["addr", "add", "fd77::1/64", "dev", "pods", "nodad"]);
        ip(name, &["link", "set", "pods", "up"]);
        Self { namespace, pods: AtomicU32::new(1) }
    }

    /// Makes a pod on this node.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn pod(&self) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let namespace = Namespace::new("pod");
        let (node, name) = (&self.namespace.name, &namespace.name);
        let end = format!("pod{number}");
        ip(node, &["link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", name]);
        ip(node, &["link", "set", &end, "master", "pods", "up"]);
        let last = u8::try_from(number).expect("few pods");
        let v4 = Ipv4Addr::new(10, 77, 0, last);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last.into());
        ip(name, &["addr", "add", &format!("{v4}/24"), "dev", "eth0"]);
        ip(name, &["addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]);
        ip(name, &["link", "set", "eth0", "up"]);
        ip(name, &["route", "add", "default", "via", "10.77.0.1"]);
        ip(name, &["-6", "route", "add", "default", "via", "fd77::1"]);
        Pod { namespace, v4, v6 }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

fn ip(namespace: &str, arguments: &[&str]) {
    run(tool("ip").args(["-n", namespace]).args(arguments)).expect("root may change a namespace of its own");
}

/// Removes what a run left behind that was killed.
fn remove_leftovers() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another run may do the same just now.
            let _ = run(tool("ip").args(["netns", "del", &name]));
        }
    }
}

/// An Outrigger in a pod, with the ports that one has by default.
#[derive(Debug)]
pub struct PodOutrigger<'a> {
    /// The process.
    pub process: Process,
    pod: &'a Pod,
}

impl Pod {
    /// An address of the pod of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Starts an Outrigger in the pod, as a user, and waits until it is ready. `config` has no sections `admin` and
    /// `runtime`; the folder is given to that user.
    ///
    /// # Panics
    /// When it does not become ready.
    #[track_caller]
    pub fn start_outrigger(&self, folder: &Path, uid: u32, config: &str) -> PodOutrigger<'_> {
        let preamble = "admin: { listen: \"127.0.0.1:15000\", health: \"[::]:15021\" }\n\
                        runtime: { shutdownBudget: 5s, flushBudget: 1s }\n";
        let file = folder.join("outrigger.yaml");
        fs::write(&file, format!("{preamble}{config}")).expect("the test's folder can be written");
        run(tool("chown").arg("-R").arg(uid.to_string()).arg(folder)).expect("root may give files away");
        let mut command = outrigger_command();
        command.args(["run", "-c"]).arg(&file);
        let process = Process::start("outrigger", &mut self.namespace.command(uid, &command), folder);
        let mut outrigger = PodOutrigger { process, pod: self };
        eventually("Outrigger to become ready in its pod", || {
            outrigger.process.still_runs()?;
            outrigger.get("/readyz?verbose")?.ok()
        });
        outrigger
    }
}

impl PodOutrigger<'_> {
    /// `GET` on the admin API.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn get(&self, path: &str) -> Result<Response> {
        let url = format!("http://127.0.0.1:15000{path}");
        self.pod.namespace.enter(0, || request("GET", &url, &[], "")).with_context(|| format!("{path} of the pod"))
    }

    /// The value of one series, such as `name{label="value"}`.
    ///
    /// # Errors
    /// When there is no such series, with all lines of that family.
    pub fn metric(&self, series: &str) -> Result<f64> {
        find_metric(&self.get("/metrics")?.ok()?, series)
    }
}
