//! The functions of a template that look into secrets.
//!
//! In: the scene of a rendering, paths, names of fields. Out: what is there, as the scene notes
//! it. Promise: what is not known yet is noted and no error; a field that is not there is an
//! error, when it is printed, that tells the names there are and never a value.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;
use serde_json::Value as Json;

use super::convert::is_exact;
use super::functions::Outcome;
use super::{Scene, fault};
use crate::provider::LIST;

/// What is at a path; while it is not known yet, nil, and the rendering comes to nothing.
pub(super) fn secret(scene: &mut Scene, args: &[Value]) -> Outcome {
    let path = match &args[0] {
        // Made from a secret that is itself not known yet.
        Value::Nil if !scene.missing.is_empty() => return Ok(Value::Nil),
        value => value.as_str().ok_or_else(|| fault("`secret` takes a path, as text"))?,
    };
    let path = path.trim().trim_start_matches('/').to_owned();
    check_path("secret", &path).map_err(fault)?;
    Ok(looked_up(scene, path).unwrap_or(Value::Nil))
}

/// The names below a path.
pub(super) fn secrets(scene: &mut Scene, args: &[Value]) -> Outcome {
    let none = || Ok(Value::List(Arc::from([])));
    let path = match &args[0] {
        Value::Nil if !scene.missing.is_empty() => return none(),
        value => value.as_str().ok_or_else(|| fault("`secrets` takes a path, as text"))?,
    };
    let path = format!("{}/{LIST}", path.trim().trim_matches('/'));
    check_path("secrets", &path).map_err(fault)?;
    let Some(found) = looked_up(scene, path) else { return none() };
    let keys = ["Data", "keys"].iter().try_fold(&found, |value, name| match value {
        Value::Map(members) => members.get(*name),
        _ => None,
    });
    Ok(keys.cloned().unwrap_or_else(|| Value::List(Arc::from([]))))
}

/// What is known of a path, noted as used, or as missing.
fn looked_up(scene: &mut Scene, path: String) -> Option<Value> {
    let found = scene.secrets.get(&path).cloned();
    let noted = if found.is_some() { &mut scene.used } else { &mut scene.missing };
    noted.insert(path);
    found
}

/// Refuses paths that no provider can mean.
fn check_path(function: &str, path: &str) -> Result<(), String> {
    let named = path.split('?').next().unwrap_or_default();
    if named.trim_matches('/').is_empty() {
        return Err(format!("`{function}` is given an empty path"));
    }
    if path.len() > 1024 {
        return Err(format!("`{function}` is given a path of more than 1024 bytes"));
    }
    if named.split('/').any(|part| matches!(part, "." | "..")) || path.chars().any(char::is_control) {
        return Err(format!("`{function}` is given a path with `.`, `..` or control characters"));
    }
    Ok(())
}

pub(super) fn field(scene: &mut Scene, base: &Value, names: &[Value]) -> Outcome {
    let mut value = base.clone();
    for name in names {
        let name = name.as_str().unwrap_or_default();
        value = match &value {
            Value::Map(members) => match members.get(name) {
                Some(found) => found.clone(),
                None => {
                    scene.absent = Some(absent(scene, members, name));
                    Value::Nil
                }
            },
            Value::Nil => {
                if !scene.missing.is_empty() {
                    return Ok(Value::Nil);
                }
                let why = scene.absent.clone().unwrap_or_else(|| "there is no value to take it from".to_owned());
                return Err(fault(format!("cannot read the field `{name}`: {why}")));
            }
            other => return Err(fault(format!("cannot read the field `{name}` of a {}", other.type_name()))),
        };
    }
    Ok(value)
}

pub(super) fn index(scene: &mut Scene, args: &[Value]) -> Outcome {
    let mut value = args[0].clone();
    for key in &args[1..] {
        value = match (&value, key) {
            (Value::Map(_), Value::String(_)) => field(scene, &value, std::slice::from_ref(key))?,
            (Value::List(items), key) => {
                let position = key.as_int().and_then(|position| usize::try_from(position).ok());
                let item = position.and_then(|position| items.get(position)).cloned();
                item.ok_or_else(|| fault(format!("`index` is out of range; the list has {} items", items.len())))?
            }
            (Value::Nil, _) if !scene.missing.is_empty() => return Ok(Value::Nil),
            (other, _) => return Err(fault(format!("`index` cannot look into a {} this way", other.type_name()))),
        };
    }
    Ok(value)
}

/// Lets everything pass but what is not there.
pub(super) fn present(scene: &mut Scene, args: &[Value]) -> Outcome {
    match args.first() {
        Some(Value::Nil) | None if scene.missing.is_empty() => {
            Err(fault(scene.absent.take().unwrap_or_else(|| "the value is null".to_owned())))
        }
        Some(value) => Ok(value.clone()),
        None => Ok(Value::Nil),
    }
}

/// What is printed of a field: of a number what the secret says, where Go would print `10` for `10.0`.
pub(super) fn printed(scene: &mut Scene, args: &[Value]) -> Outcome {
    match present(scene, args)? {
        Value::Float(number) if !is_exact(number) => {
            Err(fault("the number has more digits than can be kept exactly; store it as a text"))
        }
        Value::Float(number) => Ok(Json::from(number).to_string().into()),
        value => Ok(value),
    }
}

/// What `printf` has made, unless Go put a remark about its arguments into it.
pub(super) fn formatted(scene: &mut Scene, args: &[Value]) -> Outcome {
    let value = args.first().cloned().unwrap_or(Value::Nil);
    if scene.missing.is_empty()
        && value.as_str().is_some_and(|text| text.match_indices("%!").any(|(at, _)| remark(&text[at + 2..])))
    {
        return Err(fault("`printf` is given a format that does not fit its arguments"));
    }
    Ok(value)
}

/// Whether a text begins as Go's remarks go on after `%!`: `d(MISSING)`, `d(string=…`, `(EXTRA …`, `(NOVERB)`.
fn remark(text: &str) -> bool {
    let after_verb = || text.chars().next().map_or("", |verb| &text[verb.len_utf8()..]);
    let Some(inside) = text.strip_prefix('(').or_else(|| after_verb().strip_prefix('(')) else { return false };
    let kind = inside.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    matches!(kind, "MISSING" | "EXTRA" | "NOVERB" | "BADINDEX" | "BADWIDTH" | "BADPREC")
        || inside.starts_with("<nil>")
        || (!kind.is_empty() && inside[kind.len()..].starts_with('='))
}

/// Says of a field that is not there where it was looked for and what there is.
fn absent(scene: &Scene, members: &Arc<BTreeMap<Arc<str>, Value>>, name: &str) -> String {
    let home = scene.secrets.iter().find_map(|(path, root)| Some((path, place(root, members, String::new())?)));
    let names = names_of(members);
    match home {
        Some((path, place)) => {
            let place = if place.is_empty() { String::new() } else { format!(" in `{place}`") };
            format!("the secret `{path}` has no field `{name}`{place}; it has {names}")
        }
        None => format!("there is no field `{name}`; there is {names}"),
    }
}

/// `.Data.data` of the very map within a secret.
fn place(value: &Value, sought: &Arc<BTreeMap<Arc<str>, Value>>, at: String) -> Option<String> {
    match value {
        Value::Map(members) if Arc::ptr_eq(members, sought) => Some(at),
        Value::Map(members) => members.iter().find_map(|(name, member)| place(member, sought, format!("{at}.{name}"))),
        Value::List(items) => {
            items.iter().enumerate().find_map(|(index, item)| place(item, sought, format!("{at}[{index}]")))
        }
        _ => None,
    }
}

fn names_of(members: &BTreeMap<Arc<str>, Value>) -> String {
    const MOST: usize = 20;
    if members.is_empty() {
        return "no fields".to_owned();
    }
    let shown: Vec<String> = members
        .keys()
        .take(MOST)
        .map(|name| format!("`{}`", name.chars().filter(|c| !c.is_control()).take(64).collect::<String>()))
        .collect();
    let rest = members.len().saturating_sub(MOST);
    if rest > 0 { format!("{} and {rest} more", shown.join(", ")) } else { shown.join(", ") }
}
