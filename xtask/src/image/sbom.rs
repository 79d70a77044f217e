//! What the executable is made of, as a list of software in the format SPDX 2.3.
//!
//! In: cargo's own view of the packages that are linked, and the lock file's checksums. Out: JSON. Promise: names
//! what is linked into the executable and nothing else (no test or build dependency); the same for the same lock file.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::cargo;

/// Makes the list for the package `outrigger`.
pub(crate) fn spdx() -> Result<String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let text = cargo("metadata").args(["--format-version", "1", "--locked", "--filter-platform", &target]).output()?;
    let metadata = serde_json::from_str(&text).context("`cargo metadata` printed no JSON")?;
    let lock = std::fs::read_to_string(crate::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    Ok(format!("{:#}\n", document(&metadata, &checksums(&lock))?))
}

fn document(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Value> {
    let linked = linked(metadata).context("`cargo metadata` shows no package `outrigger`")?;
    let mut packages = Vec::new();
    let mut relations = Vec::new();
    let mut version = "";
    for package in list(&metadata["packages"]).filter(|package| linked.contains(text(&package["id"]))) {
        let (name, number) = (text(&package["name"]), text(&package["version"]));
        let id = spdx_id(name, number);
        if name == "outrigger" {
            version = number;
            relations.push(json!({
                "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": id,
            }));
        } else {
            relations.push(json!({
                "spdxElementId": spdx_id("outrigger", env!("CARGO_PKG_VERSION")),
                "relationshipType": "STATIC_LINK", "relatedSpdxElement": id,
            }));
        }
        let licence = match text(&package["license"]) {
            "" => "NOASSERTION".to_owned(),
            // cargo's older way to write `OR`.
            written => written.replace('/', " OR "),
        };
        let mut listed = json!({
            "SPDXID": id, "name": name, "versionInfo": number, "licenseDeclared": licence,
            "licenseConcluded": "NOASSERTION", "copyrightText": "NOASSERTION", "filesAnalyzed": false,
            "downloadLocation": "NOASSERTION",
        });
        if !package["source"].is_null() {
            listed["downloadLocation"] = format!("https://crates.io/api/v1/crates/{name}/{number}/download").into();
            listed["externalRefs"] = json!([{
                "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl",
                "referenceLocator": format!("pkg:cargo/{name}@{number}"),
            }]);
        }
        if let Some(sum) = checksums.get(&(name.to_owned(), number.to_owned())) {
            listed["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sum }]);
        }
        packages.push(listed);
    }
    packages.sort_by_key(|package| text(&package["SPDXID"]).to_owned());
    relations.sort_by_key(|relation| text(&relation["relatedSpdxElement"]).to_owned());
    Ok(json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("outrigger-{version}"),
        "documentNamespace": format!("https://outrigger.dev/spdx/outrigger-{version}"),
        // Without a time of its own, the list is the same for the same sources.
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": ["Tool: cargo-xtask-image"] },
        "packages": packages, "relationships": relations,
    }))
}

/// The ids of what is linked: from the binary along ordinary dependencies, without procedural macros.
fn linked(metadata: &Value) -> Option<BTreeSet<&str>> {
    let macros: BTreeSet<&str> = list(&metadata["packages"])
        .filter(|package| {
            list(&package["targets"]).any(|target| list(&target["kind"]).any(|kind| kind == "proc-macro"))
        })
        .map(|package| text(&package["id"]))
        .collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), node)).collect();
    let root = list(&metadata["packages"]).find(|package| package["name"] == "outrigger")?;
    let mut linked = BTreeSet::new();
    let mut next = vec![text(&root["id"])];
    while let Some(id) = next.pop() {
        if macros.contains(id) || !linked.insert(id) {
            continue;
        }
        let used = list(&nodes.get(id)?["deps"]);
        next.extend(
            used.filter(|dep| list(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null())).map(|dep| text(&dep["pkg"])),
        );
    }
    Some(linked)
}

/// Of each package of the lock file that has one.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]");
    blocks
        .filter_map(|block| Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?)))
        .collect()
}

fn spdx_id(name: &str, version: &str) -> String {
    let usual = |letter: char| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
    format!(
        "SPDXRef-{}-{}",
        name.chars().map(usual).collect::<String>(),
        version.chars().map(usual).collect::<String>()
    )
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_linked_and_nothing_else() {
        let list: Value = serde_json::from_str(&spdx().unwrap()).unwrap();
        let packages = list["packages"].as_array().unwrap();
        let find = |name: &str| packages.iter().find(|package| package["name"] == name);
        let tokio = find("tokio").unwrap();
        assert_eq!(tokio["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64);
        assert_eq!(tokio["licenseDeclared"], "MIT");
        assert!(find("outrigger-proxy").is_some() && find("outrigger").is_some());
        for not_linked in ["tempfile", "proptest", "serde_derive", "outrigger-e2e", "xtask"] {
            assert!(find(not_linked).is_none(), "{not_linked}");
        }
        assert_eq!(list["relationships"].as_array().unwrap().len(), packages.len());
        assert_eq!(spdx().unwrap(), spdx().unwrap());
    }
}
