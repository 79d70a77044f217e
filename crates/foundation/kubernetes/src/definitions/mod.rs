//! Resources of our own: their CustomResourceDefinitions, as an installation gives them to an API server.
//!
//! Who installs and who follows them are features that do not know one another; both find them here.

mod rollouts;

use serde_json::{Value, json};

pub use rollouts::{ROLLOUTS, rollouts, rollouts_spec};

/// A resource of our group: what kubectl calls it, and in which columns it shows it.
#[derive(Debug, Clone, Copy)]
pub struct Definition<'a> {
    /// Its kind; in lower case it is the singular.
    pub kind: &'a str,
    /// Its plural, in lower case.
    pub plural: &'a str,
    /// Its short name.
    pub short: &'a str,
    /// Whether it stands in namespaces.
    pub namespaced: bool,
    /// What `kubectl get` shows.
    pub columns: &'a [Column<'a>],
}

/// A column of `kubectl get`.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    name: &'a str,
    kind: &'a str,
    path: &'a str,
    wide: bool,
}

impl<'a> Column<'a> {
    /// One that is always shown.
    pub fn always(name: &'a str, kind: &'a str, path: &'a str) -> Self {
        Self { name, kind, path, wide: false }
    }

    /// One of `-o wide`.
    pub fn wide(name: &'a str, kind: &'a str, path: &'a str) -> Self {
        Self { wide: true, ..Self::always(name, kind, path) }
    }

    fn value(self) -> Value {
        let mut column = json!({ "name": self.name, "type": self.kind, "jsonPath": self.path });
        // `priority: 0` is left out, as the API server does.
        if self.wide {
            column["priority"] = 1.into();
        }
        column
    }
}

impl Definition<'_> {
    /// The CustomResourceDefinition, with the schema of the whole object.
    pub fn value(&self, schema: &Value) -> Value {
        let columns: Vec<_> = self.columns.iter().map(|column| column.value()).collect();
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.outrigger.dev", self.plural) },
            "spec": {
                "group": "outrigger.dev",
                "scope": if self.namespaced { "Namespaced" } else { "Cluster" },
                "names": {
                    "kind": self.kind, "listKind": format!("{}List", self.kind), "plural": self.plural,
                    "singular": self.kind.to_lowercase(), "shortNames": [self.short], "categories": ["outrigger"],
                },
                "versions": [{
                    "name": "v1alpha1",
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": schema },
                }],
            },
        })
    }
}
