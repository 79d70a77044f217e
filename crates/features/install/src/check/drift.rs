//! How an object differs from what it should be, field by field.
//!
//! In: the object as we render it, and as it is. Out: the places where they differ. Promise: what the API server fills in is no
//! difference, nor are labels and annotations of others; `1` CPU is `1000m`, and YAML in a ConfigMap counts for what it says.

use serde_json::Value;

use outrigger_kubernetes::names;

/// A place, what should be there, and what is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) path: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, not {}", self.path, self.found, self.expected)
    }
}

/// All differences.
pub(crate) fn differences(expected: &Value, found: &Value) -> Vec<Difference> {
    let mut all = Vec::new();
    compare("", expected, found, &mut all);
    all
}

fn compare(path: &str, expected: &Value, found: &Value, all: &mut Vec<Difference>) {
    match (expected, found) {
        (Value::Object(expected), found) if expected.is_empty() && empty(found) => {}
        (Value::Object(map), Value::Object(_)) => {
            for (key, expected) in map {
                let found = found.get(key).unwrap_or(&Value::Null);
                let path = join(path, key);
                match of_config(&path, key, expected, found) {
                    Some((expected, found)) => compare(&path, &expected, &found, all),
                    None => compare(&path, expected, found, all),
                }
            }
        }
        (Value::Array(expected), found) if expected.is_empty() && empty(found) => {}
        (Value::Array(wanted), Value::Array(there)) => lists(path, wanted, there, all),
        _ if expected == found || same_quantity(path, expected, found) => {}
        _ => all.push(Difference { path: path.to_owned(), expected: shown(expected), found: shown(found) }),
    }
}

/// By name where the items have one, else by place.
fn lists(path: &str, wanted: &[Value], there: &[Value], all: &mut Vec<Difference>) {
    let named = wanted.iter().chain(there).all(|item| item["name"].is_string());
    for (at, expected) in wanted.iter().enumerate() {
        let (path, found) = match named {
            true => (
                format!("{path}[{}]", expected["name"].as_str().unwrap_or_default()),
                there.iter().find(|item| item["name"] == expected["name"]),
            ),
            false => (format!("{path}[{at}]"), there.get(at)),
        };
        compare(&path, expected, found.unwrap_or(&Value::Null), all);
    }
    for (at, extra) in there.iter().enumerate() {
        let unknown = if named { wanted.iter().all(|item| item["name"] != extra["name"]) } else { at >= wanted.len() };
        if unknown {
            let at = if named { extra["name"].as_str().unwrap_or_default().to_owned() } else { at.to_string() };
            all.push(Difference { path: format!("{path}[{at}]"), expected: "absent".to_owned(), found: shown(extra) });
        }
    }
}

/// What the YAML in a ConfigMap says. The settings themselves are what everything else is compared by.
fn of_config(path: &str, key: &str, expected: &Value, found: &Value) -> Option<(Value, Value)> {
    if !path.starts_with("data") || !key.ends_with(".yaml") {
        return None;
    }
    if key == names::SETTINGS_KEY {
        return Some((Value::Null, Value::Null));
    }
    let read = |value: &Value| serde_saphyr::from_str::<Value>(value.as_str()?).ok();
    Some((read(expected)?, read(found)?))
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn join(path: &str, key: &str) -> String {
    if key.contains(['.', '/']) {
        format!("{path}[{key:?}]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn same_quantity(path: &str, expected: &Value, found: &Value) -> bool {
    let of = |value: &Value| quantity(&value.as_str().map(str::to_owned).unwrap_or_else(|| value.to_string()));
    path.contains("resources.") && of(expected).is_some_and(|one| of(found) == Some(one))
}

/// A quantity in thousandths.
fn quantity(text: &str) -> Option<u128> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = format!("{whole}{part}").parse().ok()?;
    let scale = 10_u128.checked_pow(u32::try_from(part.len()).ok()?)?;
    Some(digits.checked_mul(factor)? / scale)
}

/// A value short enough for a line.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = match value {
        Value::Null => return "absent".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    };
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…`", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(expected: Value, found: Value) -> Vec<String> {
        differences(&expected, &found).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        let expected = json!({
            "metadata": { "name": "a", "labels": { "x": "1" } },
            "spec": { "containers": [{ "name": "c", "resources": { "limits": { "memory": "1Gi", "cpu": "1" } } }], "tolerations": [] },
        });
        let found = json!({
            "metadata": { "name": "a", "labels": { "x": "1", "of-others": "2" }, "uid": "u" },
            "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "limits": { "memory": "1024Mi", "cpu": "1000m" } } }] },
            "status": {},
        });
        assert_eq!(told(expected, found), Vec::<String>::new());
    }

    #[test]
    fn each_place_is_named() {
        for (expected, found, says) in [
            (
                json!({ "spec": { "replicas": 2 } }),
                json!({ "spec": { "replicas": 1 } }),
                "spec.replicas is `1`, not `2`",
            ),
            (json!({ "a": { "b/c": "x" } }), json!({ "a": {} }), "a[\"b/c\"] is absent, not `x`"),
            (
                json!({ "l": [{ "name": "n", "v": 1 }] }),
                json!({ "l": [{ "name": "m" }, { "name": "n", "v": 2 }] }),
                "l[n].v is `2`, not `1`; l[m] is `{\"name\":\"m\"}`, not absent",
            ),
            (json!({ "verbs": ["get"] }), json!({ "verbs": ["get", "list"] }), "verbs[1] is `list`, not absent"),
            (
                json!({ "resources": { "cpu": "1" } }),
                json!({ "resources": { "cpu": "1500m" } }),
                "resources.cpu is `1500m`, not `1`",
            ),
            (
                json!({ "data": { "outrigger.yaml": "a: { b: 1 }\n" } }),
                json!({ "data": { "outrigger.yaml": "a:\n  b: 2 # two\n" } }),
                "data[\"outrigger.yaml\"].a.b is `2`, not `1`",
            ),
        ] {
            assert_eq!(told(expected, found).join("; "), says);
        }
        let (one, other) =
            (json!({ "data": { "p.yaml": "a: [x]\n" } }), json!({ "data": { "p.yaml": "a:\n- \"x\"\n" } }));
        assert!(told(one, other).is_empty(), "YAML counts for what it says");
        assert_eq!((quantity("0.5"), quantity("500m"), quantity("x")), (Some(500), Some(500), None));
    }
}
