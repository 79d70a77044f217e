//! The functions templates may call, beside those of Go's language.
//!
//! In: the scene of a rendering. Out: consul-template's functions with its names and its
//! order of arguments (what is piped comes last). Promise: no error quotes an argument.

use std::sync::{Arc, Mutex};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use gotmpl::{FuncMap, Value};
use regex_lite::{Regex, RegexBuilder};
use serde_json::Value as Json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::convert::{to_json, to_value};
use super::lookup::{field, formatted, index, present, printed, secret, secrets};
use super::strict::{FIELD, FORMATTED, LENIENT, LINE, PRESENT, PRINTED};
use super::{Scene, binary, fault, lock};

pub(super) type Outcome = gotmpl::Result<Value>;
type Function = fn(&[Value]) -> Outcome;

/// How large a compiled regular expression may be, in bytes.
const MOST_REGEX: usize = 1 << 20;
const UNSHOWN: &str = "cannot show a function, or a number of more than 64 bits";

/// Functions of consul-template that we know and do not have.
pub(super) const ELSEWHERE: &[&str] = &[
    "byKey",
    "byTag",
    "byMeta",
    "caLeaf",
    "caRoots",
    "connect",
    "containsAll",
    "containsAny",
    "containsNone",
    "containsNotAll",
    "datacenters",
    "executeTemplate",
    "explode",
    "explodeMap",
    "exportNomadTaskState",
    "file",
    "importNomadTaskState",
    "intention",
    "key",
    "keyExists",
    "keyExistsGet",
    "keyOrDefault",
    "ls",
    "md5sum",
    "mergeMap",
    "mergeMapWithOverride",
    "node",
    "nodes",
    "nomadService",
    "nomadServices",
    "nomadVar",
    "nomadVarList",
    "partitions",
    "peerings",
    "pkiCert",
    "plugin",
    "safeLs",
    "safeTree",
    "scratch",
    "service",
    "services",
    "sockaddr",
    "spew_dump",
    "spew_printf",
    "toTOML",
    "tree",
    "writeToFile",
];

/// How many arguments our functions take; what is piped counts.
pub(super) fn arity(name: &str) -> Option<(usize, usize)> {
    Some(match name {
        "timestamp" => (0, 1),
        "secret"
        | "secrets"
        | "toJSON"
        | "toJSONPretty"
        | "toUnescapedJSON"
        | "toUnescapedJSONPretty"
        | "sha256Hex"
        | "parseJSON"
        | "toYAML"
        | "parseYAML"
        | "base64Encode"
        | "base64Decode"
        | "base64URLEncode"
        | "base64URLDecode"
        | "toUpper"
        | "toLower"
        | "toTitle"
        | "trimSpace"
        | "env"
        | "mustEnv"
        | "quote"
        | "sprig_quote"
        | "squote"
        | "sprig_squote"
        | "parseInt"
        | "parseFloat"
        | "parseBool"
        | "empty"
        | "sprig_empty"
        | "keys"
        | "values" => (1, 1),
        "regexMatch" | "hmacSHA256Hex" | "trim" | "trimPrefix" | "trimSuffix" | "split" | "join" | "contains"
        | "in" | "indent" | "nindent" | "sprig_indent" | "sprig_nindent" | "default" | "sprig_default"
        | "envOrDefault" | "add" | "subtract" | "multiply" | "divide" | "modulo" => (2, 2),
        "replaceAll" | "regexReplaceAll" => (3, 3),
        "coalesce" | "sprig_coalesce" => (1, usize::MAX),
        "index" => (2, usize::MAX),
        _ => return None,
    })
}

/// All of them, acting on `scene`.
pub(super) fn all(scene: &Arc<Mutex<Scene>>) -> FuncMap {
    let mut map = FuncMap::new();
    scenic(&mut map, scene, "secret", secret);
    scenic(&mut map, scene, "secrets", secrets);
    scenic(&mut map, scene, FIELD, |scene, args| field(scene, &args[0], &args[1..]));
    scenic(&mut map, scene, "index", index);
    scenic(&mut map, scene, PRESENT, present);
    scenic(&mut map, scene, PRINTED, printed);
    scenic(&mut map, scene, FORMATTED, formatted);
    scenic(&mut map, scene, "base64Decode", |scene, args| decoded(scene, "base64Decode", &STANDARD, args));
    scenic(&mut map, scene, "base64URLDecode", |scene, args| decoded(scene, "base64URLDecode", &URL_SAFE, args));
    scenic(&mut map, scene, LINE, |scene, args| {
        scene.line = args.first().and_then(Value::as_int).and_then(|line| usize::try_from(line).ok()).unwrap_or(1);
        Ok(Value::Nil)
    });
    let plain: &[(&str, Function)] = &[
        ("toJSON", |args| json_text("toJSON", args, false).map(|text| escaped(&text).into())),
        ("toJSONPretty", |args| json_text("toJSONPretty", args, true).map(|text| escaped(&text).into())),
        ("toUnescapedJSON", |args| json_text("toUnescapedJSON", args, false).map(Value::from)),
        ("toUnescapedJSONPretty", |args| json_text("toUnescapedJSONPretty", args, true).map(Value::from)),
        ("parseJSON", |args| {
            let json = serde_json::from_str(text("parseJSON", args, 0)?);
            json.map(to_value).map_err(|_| fault("`parseJSON` is given a text that is not JSON"))
        }),
        ("toYAML", |args| {
            let json = to_json(&args[0]).ok_or_else(|| fault(format!("`toYAML` {UNSHOWN}")))?;
            let yaml = serde_saphyr::to_string(&json).map_err(|_| fault("`toYAML` cannot show this value"))?;
            Ok(yaml.trim_end().into())
        }),
        ("parseYAML", |args| {
            let json: Result<Json, _> = serde_saphyr::from_str(text("parseYAML", args, 0)?);
            json.map(to_value).map_err(|_| fault("`parseYAML` is given a text that is not YAML"))
        }),
        ("base64Encode", |args| Ok(STANDARD.encode(bytes("base64Encode", args, 0)?).into())),
        ("base64URLEncode", |args| Ok(URL_SAFE.encode(bytes("base64URLEncode", args, 0)?).into())),
        ("sha256Hex", |args| Ok(hex(digest(&SHA256, &bytes("sha256Hex", args, 0)?).as_ref()).into())),
        ("hmacSHA256Hex", |args| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes("hmacSHA256Hex", args, 1)?);
            Ok(hex(hmac::sign(&key, &bytes("hmacSHA256Hex", args, 0)?).as_ref()).into())
        }),
        ("toUpper", |args| Ok(text("toUpper", args, 0)?.to_uppercase().into())),
        ("toLower", |args| Ok(text("toLower", args, 0)?.to_lowercase().into())),
        ("toTitle", |args| Ok(title(text("toTitle", args, 0)?).into())),
        ("trimSpace", |args| Ok(text("trimSpace", args, 0)?.trim().into())),
        ("trim", |args| {
            let cut = text("trim", args, 0)?;
            Ok(text("trim", args, 1)?.trim_matches(|c| cut.contains(c)).into())
        }),
        ("trimPrefix", |args| {
            let (prefix, whole) = (text("trimPrefix", args, 0)?, text("trimPrefix", args, 1)?);
            Ok(whole.strip_prefix(prefix).unwrap_or(whole).into())
        }),
        ("trimSuffix", |args| {
            let (suffix, whole) = (text("trimSuffix", args, 0)?, text("trimSuffix", args, 1)?);
            Ok(whole.strip_suffix(suffix).unwrap_or(whole).into())
        }),
        ("split", |args| {
            let (separator, whole) = (text("split", args, 0)?, text("split", args, 1)?);
            let trimmed = whole.trim();
            Ok(match (trimmed.is_empty(), separator.is_empty()) {
                (true, _) => Value::List(Arc::from([])),
                (false, true) => Value::List(trimmed.chars().map(|c| c.to_string().into()).collect()),
                (false, false) => Value::List(trimmed.split(separator).map(Into::into).collect()),
            })
        }),
        ("join", |args| {
            let separator = text("join", args, 0)?;
            let Value::List(items) = &args[1] else { return Err(fault("`join` is given something else than a list")) };
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            Ok(items.join(separator).into())
        }),
        ("replaceAll", |args| {
            let (old, new) = (text("replaceAll", args, 0)?, text("replaceAll", args, 1)?);
            Ok(text("replaceAll", args, 2)?.replace(old, new).into())
        }),
        ("regexMatch", |args| Ok(Value::Bool(pattern("regexMatch", args)?.is_match(text("regexMatch", args, 1)?)))),
        ("regexReplaceAll", |args| {
            let (new, whole) = (text("regexReplaceAll", args, 1)?, text("regexReplaceAll", args, 2)?);
            Ok(pattern("regexReplaceAll", args)?.replace_all(whole, new).into_owned().into())
        }),
        ("contains", |args| holds("contains", &args[1], &args[0])),
        ("in", |args| holds("in", &args[0], &args[1])),
        ("indent", |args| indented("indent", args, "")),
        ("nindent", |args| indented("nindent", args, "\n")),
        ("sprig_indent", |args| indented("sprig_indent", args, "")),
        ("sprig_nindent", |args| indented("sprig_nindent", args, "\n")),
        ("timestamp", timestamp),
        ("default", fallback),
        ("sprig_default", fallback),
        ("coalesce", first_truthy),
        ("sprig_coalesce", first_truthy),
        ("empty", |args| Ok(Value::Bool(!args[0].is_truthy()))),
        ("sprig_empty", |args| Ok(Value::Bool(!args[0].is_truthy()))),
        ("quote", quoted),
        ("sprig_quote", quoted),
        ("squote", |args| Ok(format!("'{}'", args[0]).into())),
        ("sprig_squote", |args| Ok(format!("'{}'", args[0]).into())),
        ("env", |args| Ok(std::env::var(text("env", args, 0)?).unwrap_or_default().into())),
        ("mustEnv", |args| {
            let name = text("mustEnv", args, 0)?;
            std::env::var(name).map(Into::into).map_err(|_| fault("`mustEnv` names a variable that is not set"))
        }),
        ("envOrDefault", |args| {
            let found = std::env::var(text("envOrDefault", args, 0)?).ok().filter(|value| !value.is_empty());
            found.map_or_else(|| Ok(args[1].clone()), |value| Ok(value.into()))
        }),
        ("parseInt", |args| {
            let number = text("parseInt", args, 0)?.trim().parse();
            number.map(Value::Int).map_err(|_| fault("`parseInt` is given a text that is no whole number"))
        }),
        ("parseFloat", |args| {
            let number = text("parseFloat", args, 0)?.trim().parse();
            number.map(Value::Float).map_err(|_| fault("`parseFloat` is given a text that is no number"))
        }),
        ("parseBool", |args| match text("parseBool", args, 0)? {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(fault("`parseBool` is given a text that is neither true nor false")),
        }),
        // As consul-template has it, the second is the one acted on: `{{ 5 | subtract 2 }}` is 3.
        ("add", |args| arithmetic("add", args, i64::checked_add, |a, b| a + b)),
        ("subtract", |args| arithmetic("subtract", args, i64::checked_sub, |a, b| a - b)),
        ("multiply", |args| arithmetic("multiply", args, i64::checked_mul, |a, b| a * b)),
        ("divide", |args| arithmetic("divide", args, i64::checked_div, |a, b| a / b)),
        ("modulo", |args| arithmetic("modulo", args, i64::checked_rem, |a, b| a % b)),
        ("keys", |args| match &args[0] {
            Value::Map(members) => Ok(Value::List(members.keys().map(|name| Value::String(name.clone())).collect())),
            _ => Err(fault("`keys` is given something else than a map")),
        }),
        ("values", |args| match &args[0] {
            Value::Map(members) => Ok(Value::List(members.values().cloned().collect())),
            _ => Err(fault("`values` is given something else than a map")),
        }),
    ];
    for (name, function) in plain {
        map.insert((*name).to_owned(), Arc::new(counted(name, *function, scene.clone())));
    }
    map
}

/// Checks the number of arguments before the function sees them. What is made from a secret that is not known yet is not
/// known either, which is no error: the rendering goes on, to learn what else it needs.
fn counted(
    name: &'static str,
    function: Function,
    scene: Arc<Mutex<Scene>>,
) -> impl Fn(&[Value]) -> Outcome + Send + Sync {
    let lenient = LENIENT.contains(&name);
    move |args| match arity(name) {
        Some((least, most)) if !(least..=most).contains(&args.len()) => {
            Err(fault(format!("`{name}` does not take {} arguments", args.len())))
        }
        _ if !lenient && args.contains(&Value::Nil) && !lock(&scene).missing.is_empty() => Ok(Value::Nil),
        _ => function(args),
    }
}

fn scenic(
    map: &mut FuncMap,
    scene: &Arc<Mutex<Scene>>,
    name: &'static str,
    function: fn(&mut Scene, &[Value]) -> Outcome,
) {
    let scene = scene.clone();
    let least = arity(name).map_or(usize::from(name == FIELD), |(least, _)| least);
    let guarded = move |args: &[Value]| {
        if args.len() < least {
            return Err(fault(format!("`{name}` does not take {} arguments", args.len())));
        }
        function(&mut lock(&scene), args)
    };
    map.insert(name.to_owned(), Arc::new(guarded));
}

/// An argument as text.
fn text<'a>(function: &str, args: &'a [Value], index: usize) -> gotmpl::Result<&'a str> {
    let value = args.get(index);
    let kind = value.map_or("nothing", Value::type_name);
    value.and_then(Value::as_str).ok_or_else(|| fault(format!("`{function}` takes a text, not {kind}")))
}

/// An argument as the bytes it stands for.
fn bytes(function: &str, args: &[Value], index: usize) -> gotmpl::Result<Zeroizing<Vec<u8>>> {
    text(function, args, index).map(binary::bared)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The first argument as a regular expression.
fn pattern(function: &str, args: &[Value]) -> gotmpl::Result<Regex> {
    let pattern = RegexBuilder::new(text(function, args, 0)?).size_limit(MOST_REGEX).build();
    pattern.map_err(|_| fault(format!("`{function}` is given something else than a regular expression")))
}

fn json_text(name: &str, args: &[Value], pretty: bool) -> gotmpl::Result<String> {
    let json = to_json(&args[0]).ok_or_else(|| fault(format!("`{name}` {UNSHOWN}")))?;
    let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) };
    text.map_err(|_| fault(format!("`{name}` cannot show this value")))
}

/// JSON as Go writes it: also fit to stand within HTML and JavaScript.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Bytes that are no text pass through the engine, which knows only texts, in disguise.
fn decoded(scene: &mut Scene, name: &str, engine: &impl base64::Engine, args: &[Value]) -> Outcome {
    if matches!(args[0], Value::Nil) && !scene.missing.is_empty() {
        return Ok(Value::Nil);
    }
    let bytes = engine.decode(text(name, args, 0)?.trim()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| fault(format!("`{name}` is given a text that is not base64")))?;
    if let Ok(text) = std::str::from_utf8(&bytes) {
        return Ok(text.into());
    }
    scene.binary = true;
    Ok(binary::disguised(&bytes).as_str().into())
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut titled = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            titled.extend(c.to_uppercase())
        } else {
            titled.push(c)
        }
        start = c.is_whitespace();
    }
    titled
}

fn holds(name: &str, whole: &Value, part: &Value) -> Outcome {
    match (whole, part) {
        (Value::List(items), part) => Ok(Value::Bool(items.contains(part))),
        (Value::Map(members), Value::String(part)) => Ok(Value::Bool(members.contains_key(part))),
        (Value::String(whole), Value::String(part)) => Ok(Value::Bool(whole.contains(&**part))),
        _ => Err(fault(format!("`{name}` looks into a {} for a {}", whole.type_name(), part.type_name()))),
    }
}

fn indented(name: &str, args: &[Value], before: &str) -> Outcome {
    let width = args[0].as_int().and_then(|width| usize::try_from(width).ok()).filter(|width| *width <= 256);
    let width = width.ok_or_else(|| fault(format!("`{name}` takes a number of spaces from 0 to 256")))?;
    let lines: Vec<String> = text(name, args, 1)?.split('\n').map(|line| format!("{:width$}{line}", "")).collect();
    Ok(format!("{before}{}", lines.join("\n")).into())
}

fn timestamp(args: &[Value]) -> Outcome {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or_else(|_| OffsetDateTime::now_utc());
    match args.first().map(|format| format.as_str().unwrap_or_default()) {
        None => now.format(&Rfc3339).map(Into::into).map_err(|_| fault("`timestamp` cannot show this time")),
        Some("unix") => Ok(now.unix_timestamp().to_string().into()),
        Some(_) => Err(fault("`timestamp` takes no format but \"unix\"")),
    }
}

fn fallback(args: &[Value]) -> Outcome {
    Ok(if args[1].is_truthy() { args[1].clone() } else { args[0].clone() })
}

fn first_truthy(args: &[Value]) -> Outcome {
    Ok(args.iter().find(|value| value.is_truthy()).cloned().unwrap_or(Value::Nil))
}

fn quoted(args: &[Value]) -> Outcome {
    let text = serde_json::to_string(&args[0].to_string());
    text.map(Into::into).map_err(|_| fault("`quote` cannot show this value"))
}

fn arithmetic(name: &str, args: &[Value], whole: fn(i64, i64) -> Option<i64>, broken: fn(f64, f64) -> f64) -> Outcome {
    let (second, first) = (&args[0], &args[1]);
    if let (Some(a), Some(b)) = (first.as_int(), second.as_int()) {
        let result = whole(a, b).map(Value::Int);
        return result.ok_or_else(|| fault(format!("`{name}` has no result in 64 bits")));
    }
    match (first.as_float(), second.as_float()) {
        (Some(a), Some(b)) => Ok(Value::Float(broken(a, b))),
        _ => Err(fault(format!("`{name}` takes two numbers"))),
    }
}
