//! The architecture, checked: which of our crates may use which.
//!
//! In: the dependency edges that cargo sees, of every kind, feature and target. Out:
//! an error that names each forbidden edge. Promise: a feature never imports a
//! feature, and in the foundation arrows point only to the right.

use anyhow::{Result, bail};

use crate::args::Args;
use crate::command;
use crate::ui;

/// The foundation's row: each crate may use those to its right.
const FOUNDATION: [&str; 9] =
    ["kubernetes", "vault", "http", "identity", "runtime", "telemetry", "traffic", "config", "wire"];

/// Where one of our crates stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Binary,
    Feature,
    /// Its position in [`FOUNDATION`].
    Foundation(usize),
    /// Tests and tools: free to use anything, used by nobody.
    Aside,
}

pub(crate) fn verb(args: &mut Args) -> Result<()> {
    args.done()?;
    ui::step("deps: edges between our crates", run)
}

/// Asks cargo for the edges and fails on forbidden ones.
pub(crate) fn run() -> Result<()> {
    let tree = command::cargo("tree")
        .args(["--workspace", "--all-features", "--target", "all", "--edges", "normal,build,dev"])
        // Without the last one it shows nothing below a crate that it has shown before.
        .args(["--depth", "1", "--prefix", "depth", "--format", " {p}", "--locked", "--no-dedupe"])
        .output()?;
    let edges = parse_tree(&tree, &crate::root().to_string_lossy())?;
    let wrong: Vec<String> = edges.iter().filter_map(|(user, used)| judge(user, used).err()).collect();
    if !wrong.is_empty() {
        bail!("forbidden dependencies between our crates (see ARCHITECTURE.md):\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// The edges between crates of this repository, as folders relative to its root.
fn parse_tree(tree: &str, root: &str) -> Result<Vec<(String, String)>> {
    let mut edges = Vec::new();
    let mut user: Option<String> = None;
    for line in tree.lines() {
        if line.starts_with("0 ") && line.ends_with(" (*)") {
            bail!("`cargo tree` leaves out the edges of a crate: {line}");
        }
        let Some((depth, package)) = line.split_once(' ') else { continue };
        // A crate of ours is shown as `name vX.Y.Z (/folder)`.
        let folder = package
            .split_once(&format!("({root}/"))
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(folder, _)| folder.to_owned());
        match (depth, folder, &user) {
            ("0", Some(folder), _) => user = Some(folder),
            ("1", Some(folder), Some(user)) => edges.push((user.clone(), folder)),
            ("1", None, Some(_)) => {}
            _ => bail!("cannot understand this line of `cargo tree`: {line}"),
        }
    }
    if edges.is_empty() {
        bail!("`cargo tree` showed no edge between our crates; its output must have changed");
    }
    Ok(edges)
}

fn judge(user: &str, used: &str) -> Result<(), String> {
    let (from, to) = (place(user)?, place(used)?);
    let why = match (from, to) {
        _ if user == used => return Ok(()),
        (Place::Aside, _) => return Ok(()),
        (_, Place::Aside) => "tests and tools are used by nobody",
        (Place::Binary, _) => return Ok(()),
        (_, Place::Binary) => "nothing uses the binary",
        (Place::Feature, Place::Feature) => "features never import one another; let the foundation own what they share",
        (Place::Foundation(_), Place::Feature) => "the foundation knows no feature",
        (Place::Foundation(from), Place::Foundation(to)) if from > to => {
            "in the foundation, arrows point to the right: kubernetes, http, identity, runtime, telemetry, traffic, config, wire"
        }
        _ => return Ok(()),
    };
    Err(format!("{user} -> {used}: {why}"))
}

fn place(folder: &str) -> Result<Place, String> {
    if let Some(name) = folder.strip_prefix("crates/foundation/") {
        return FOUNDATION.iter().position(|known| *known == name).map(Place::Foundation).ok_or_else(|| {
            format!("{folder}: a new foundation crate; give it its place in the row of xtask/src/deps.rs and in ARCHITECTURE.md")
        });
    }
    Ok(match folder {
        "crates/outrigger" => Place::Binary,
        _ if folder.starts_with("crates/features/") => Place::Feature,
        _ => Place::Aside,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_judged() {
        let (proxy, logs) = ("crates/features/proxy", "crates/features/logs");
        let (http, config) = ("crates/foundation/http", "crates/foundation/config");
        for (user, used, allowed) in [
            ("crates/outrigger", proxy, true),
            (proxy, logs, false),
            (proxy, http, true),
            (http, config, true),
            (config, http, false),
            ("crates/foundation/traffic", "crates/foundation/wire", true),
            ("crates/foundation/traffic", "crates/foundation/runtime", false),
            ("crates/foundation/wire", config, false),
            (config, proxy, false),
            ("tests/e2e", proxy, true),
            (proxy, "tests/e2e", false),
            (proxy, "crates/outrigger", false),
            (proxy, "crates/foundation/util", false),
        ] {
            assert_eq!(judge(user, used).is_ok(), allowed, "{user} -> {used}");
        }
    }

    #[test]
    fn reads_cargo_tree() {
        let tree = "0 outrigger-http v0.1.0 (/r/crates/foundation/http)\n1 bytes v1.0.0\n\
                    1 outrigger-config v0.1.0 (/r/crates/foundation/config) (*)\n\n\
                    0 xtask v0.1.0 (/r/xtask)\n1 anyhow v1.0.0\n";
        assert_eq!(
            parse_tree(tree, "/r").unwrap(),
            [("crates/foundation/http".to_owned(), "crates/foundation/config".to_owned())]
        );
        assert!(parse_tree("error", "/r").is_err());
        let hidden = "0 outrigger-http v0.1.0 (/r/crates/foundation/http) (*)\n";
        assert!(parse_tree(&format!("{tree}{hidden}"), "/r").is_err(), "edges that are not shown");
    }
}
