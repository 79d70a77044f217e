//! `cargo xtask cluster`.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::network::Network;
use super::{Cluster, Extent, output, pods, start};
use crate::args::Args;
use crate::command::{cargo, find_program};
use crate::{again, image, setup, test, ui};

pub(crate) const USAGE: &str = "cargo xtask cluster up|down|status|env|load|test|pod-start [ARGUMENTS]

  up [--api]         start it, and wait until it takes pods; --api: etcd, API server and controllers alone
  down               end it, and remove all that it made; also after a crash
  status             its processes with their memory, its node and pods
  env                print what a shell needs: eval \"$(cargo xtask cluster env)\"
  load [ARCHIVE]...  give it images; without an archive, Outrigger's own (see `cargo xtask image`)
  test [--release] [-- TEST-ARGUMENTS]
                     run the tests that need it, with Outrigger's image as built now; starts it, and ends it
                     afterwards, unless it runs already
  pod-start [--runs N] [--debug]
                     measure how long pods take to be ready, by how the sidecar is arranged in them (10 pods each), with
                     the image made last

  --state FOLDER     where it lives [default: outrigger-cluster in the temporary folder, one for the machine]
  --pods NETWORK     addresses of pods, for `up` [default: 10.244.0.0/24]
  --services NETWORK addresses of Services, for `up` [default: 10.96.0.0/16]

Needs root, and what `cargo xtask setup` brings. Up in some ten seconds; takes some 0.6 GB of memory.
One cluster with a node per machine; any number of `--api` beside it, each with a --state of its own.";

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    let cluster = match args.value("--state")? {
        Some(folder) => Cluster::at(std::path::absolute(PathBuf::from(folder))?),
        None => Cluster::shared(),
    };
    let action = args.next().context("name what to do: up, down, status, env, load, test or pod-start")?;
    match action.as_str() {
        "up" => {
            let extent = if args.flag("--api") { Extent::ApiOnly } else { Extent::Full };
            let (pods, services) = (args.value("--pods")?, args.value("--services")?);
            args.done()?;
            up(&cluster, extent, Network::parse(pods.as_deref(), services.as_deref())?)
        }
        "down" => {
            args.done()?;
            ui::step("cluster: down", || cluster.down())
        }
        "status" => {
            args.done()?;
            status(&cluster)
        }
        "env" => {
            args.done()?;
            require(&cluster)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            println!("export PATH={}:$PATH", crate::command::tools_dir().join("bin").display());
            Ok(())
        }
        "load" => {
            let mut archives: Vec<PathBuf> = args.rest().into_iter().map(PathBuf::from).collect();
            if archives.is_empty() {
                archives.push(image::archive_path(image::Variant::Release));
            }
            archives.iter().try_for_each(|archive| {
                ui::step(&format!("cluster: load {}", archive.display()), || cluster.load(archive))
            })
        }
        "test" => {
            let variant = if args.flag("--release") { image::Variant::Release } else { image::Variant::Debug };
            let passed = args.passed();
            args.done()?;
            setup::ensure(setup::Need::Everything)?;
            image::make(variant)?;
            tests(&cluster, variant, passed).map(drop)
        }
        "pod-start" => {
            let variant = if args.flag("--debug") { image::Variant::Debug } else { image::Variant::Release };
            let runs = args.value("--runs")?.map_or(Ok(10), |text| text.parse()).context("--runs takes a number")?;
            args.done()?;
            with_image(&cluster, variant, false, |cluster| start::measure(cluster, &image::name(variant), runs))
        }
        other => bail!("there is no `cluster {other}`; there are up, down, status, env, load, test and pod-start"),
    }
}

fn up(cluster: &Cluster, extent: Extent, network: Network) -> Result<()> {
    // What was compiled of older sources fails tests in ways that nobody understands. Without Go, what is missing is told below.
    if find_program("go").is_some() {
        setup::kubernetes()?;
    }
    if cluster.is_up(extent) {
        ui::note(&format!("it is up already: {}", cluster.state.display()));
        if extent == Extent::Full {
            pods::load(cluster)?;
        }
        return Ok(());
    }
    ui::step("cluster: up", || cluster.up_with(extent, network, &mut |what| ui::note(what)))?;
    ui::note(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
    Ok(())
}

/// Runs the tests that need a cluster; the image of `variant` has been made.
pub(crate) fn tests(cluster: &Cluster, variant: image::Variant, arguments: Vec<String>) -> Result<Vec<String>> {
    let cargo_test = || {
        cargo("test")
            .arg("--locked")
            .env("OUTRIGGER_BIN", test::executable(variant.profile()))
            .env("OUTRIGGER_IMAGE", image::name(variant))
            // Most of the time they wait for pods.
            .env("RUST_TEST_THREADS", "6")
    };
    with_image(cluster, variant, false, |_| {
        ui::step("cluster: the sidecar in real pods", || {
            again::test(cargo_test, &["--package", "outrigger-e2e", "--test", "cluster"], &arguments)
        })
    })
}

/// Does something in a cluster that has the image; ends it afterwards, unless it ran before or is to be kept.
pub(super) fn with_image<T>(
    cluster: &Cluster,
    variant: image::Variant,
    keep: bool,
    work: impl FnOnce(&Cluster) -> Result<T>,
) -> Result<T> {
    let ours = !keep && !cluster.is_up(Extent::Full);
    let done = up(cluster, Extent::Full, Network::default())
        .and_then(|()| cluster.load(&image::archive_path(variant)))
        .and_then(|()| work(cluster));
    if !ours {
        return done;
    }
    let ended = ui::step("cluster: down", || cluster.down());
    done.and_then(|done| ended.map(|()| done))
}

fn require(cluster: &Cluster) -> Result<()> {
    if !cluster.is_up(Extent::ApiOnly) {
        bail!("no cluster runs in {}; `cargo xtask cluster up` starts one", cluster.state.display());
    }
    Ok(())
}

fn status(cluster: &Cluster) -> Result<()> {
    let processes = cluster.processes();
    let mut names = processes.names();
    names.sort();
    if names.is_empty() {
        bail!("no cluster was started in {}; `cargo xtask cluster up` starts one", cluster.state.display());
    }
    let mut text = String::new();
    let mut total = 0;
    for name in &names {
        match processes.alive(name) {
            Some(id) => {
                let memory = memory(id).unwrap_or(0);
                total += memory;
                text += &format!("{name:<12} process {id:<8} {memory:>5} MiB\n");
            }
            None => text += &format!("{name:<12} ended; see {}\n", cluster.log(name).display()),
        }
    }
    text += &format!("{:<12} {total:>22} MiB\n", "total");
    if cluster.is_up(Extent::Full) {
        let mut kubectl: Command = cluster.kubectl();
        kubectl.args(["get", "nodes,pods", "--all-namespaces", "--request-timeout=5s"]);
        text += &format!("\n{}", output(&mut kubectl)?);
    }
    // A reader that has gone (`| head`) is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    require(cluster)
}

/// What a process holds for itself, in MiB.
fn memory(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}
