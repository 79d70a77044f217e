//! An [AdmissionReview]: what the API server asks, and what it is told.
//!
//! In: the body of a request. Out: what is asked, or precisely what is wrong with it; an answer as JSON. Promise: whatever
//! the body holds, it is read within its own size several times over, and nothing panics.
//!
//! [AdmissionReview]: https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#request

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// kubectl shows warnings of about this many bytes; longer ones are cut by the API server.
const LONGEST_WARNING: usize = 240;
/// The API server drops what is more than 4 KiB together.
const MOST_WARNINGS: usize = 12;
/// A refusal goes into the events of whoever made the pod, which hold 1 KiB.
const LONGEST_REFUSAL: usize = 3000;

/// What is to be done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is to be made.
    Create,
    /// It is to be changed.
    Update,
    /// It is to be removed.
    Delete,
    /// Something is to be connected with it.
    Connect,
}

/// What the API server asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Review {
    /// Of this request; the answer names it.
    pub uid: String,
    /// What is to be done.
    pub operation: Operation,
    /// Of which kind the object is, as `GROUP/VERSION, KIND`.
    pub kind: String,
    /// Whether it is a pod as a whole, not a part of one such as `ephemeralcontainers`.
    pub is_pod: bool,
    /// The part of the object that is asked about; empty for the whole.
    pub subresource: String,
    /// Where the object is, or will be.
    pub namespace: String,
    /// The object; null when it is removed.
    pub object: Value,
    /// Nothing is to be changed anywhere.
    pub dry_run: bool,
}

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedReview(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    operation: Operation,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    kind: String,
}

/// What it is, when it is not what we read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<Value>,
    kind: Option<Value>,
    request: Option<IgnoredAny>,
}

impl Review {
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(body: &[u8]) -> Result<Self, MalformedReview> {
        let Envelope { api_version, kind, request } = match serde_json::from_slice(body) {
            Ok(envelope) => envelope,
            Err(error) => return Err(MalformedReview(what_it_is(body, &error))),
        };
        let header =
            Header { api_version: Some(api_version.into()), kind: Some(kind.into()), request: Some(IgnoredAny) };
        if let Some(problem) = header.problem() {
            return Err(MalformedReview(problem));
        }
        if request.uid.is_empty() || request.uid.len() > 128 {
            return Err(MalformedReview("`request.uid` is empty, or too long for one".to_owned()));
        }
        let Kind { group, version, kind } = request.kind;
        let subresource = request.sub_resource.unwrap_or_default();
        let is_pod = group.is_empty() && kind == "Pod" && subresource.is_empty();
        Ok(Self {
            uid: request.uid,
            operation: request.operation,
            kind: format!("{}{}{version}, {kind}", group, if group.is_empty() { "" } else { "/" }),
            is_pod,
            subresource,
            namespace: request.namespace.unwrap_or_default(),
            object: request.object,
            dry_run: request.dry_run.unwrap_or_default(),
        })
    }
}

impl Header {
    fn problem(&self) -> Option<String> {
        let shown = |value: &Option<Value>| match value {
            Some(Value::String(text)) => format!("`{}`", text.chars().take(80).collect::<String>()),
            Some(_) => "no text".to_owned(),
            None => "absent".to_owned(),
        };
        if self.kind.as_ref().is_none_or(|kind| kind != KIND) {
            return Some(format!("this is no {KIND}: its `kind` is {}", shown(&self.kind)));
        }
        if self.api_version.as_ref().is_none_or(|version| version != VERSION) {
            return Some(format!(
                "the {KIND}'s `apiVersion` is {}, and only `{VERSION}` is known; name it in `admissionReviewVersions` of the webhook configuration",
                shown(&self.api_version)
            ));
        }
        self.request.is_none().then(|| format!("the {KIND} has no `request`"))
    }
}

/// Why a body cannot be read, beginning with what it is.
fn what_it_is(body: &[u8], error: &serde_json::Error) -> String {
    if body.is_empty() {
        return format!("the body is empty, and an {KIND} was expected");
    }
    let place = format!("line {}, column {}", error.line(), error.column());
    if !error.is_data() {
        return format!("the body is no JSON: {error}");
    }
    match serde_json::from_slice::<Header>(body).map(|header| header.problem()) {
        Ok(Some(problem)) => problem,
        // What stands there may be a secret of a pod; where it stands is enough, unless a member is missing.
        _ if error.to_string().starts_with("missing field") => format!("the {KIND} is not whole: {error}"),
        _ => format!("the {KIND} cannot be read: what stands before {place} is not as it should be"),
    }
}

/// What the API server is told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Operations of a JSON Patch; none leaves the object as it is.
    pub patch: Vec<Value>,
    /// What kubectl shows.
    pub warnings: Vec<String>,
    /// Why the object must not be; `None` lets it pass.
    pub refusal: Option<String>,
}

impl Answer {
    /// As JSON, for the request with this UID.
    pub fn to_json(&self, uid: &str) -> Value {
        let mut response = json!({ "uid": uid, "allowed": self.refusal.is_none() });
        if let Some(refusal) = &self.refusal {
            let message = cut(refusal, LONGEST_REFUSAL);
            response["status"] = json!({ "code": 422, "reason": "Invalid", "message": message });
        } else if !self.patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = Value::String(STANDARD.encode(serde_json::to_vec(&self.patch).unwrap_or_default()));
        }
        if !self.warnings.is_empty() {
            let warnings = self.warnings.iter().take(MOST_WARNINGS);
            response["warnings"] = warnings.map(|text| cut(&format!("outrigger: {text}"), LONGEST_WARNING)).collect();
        }
        json!({ "apiVersion": VERSION, "kind": KIND, "response": response })
    }
}

/// A text in one line, no longer than so many bytes.
fn cut(text: &str, most: usize) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > most {
        let end = (0..=most - 3).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn review() -> Value {
        json!({
            "apiVersion": VERSION, "kind": KIND,
            "request": {
                "uid": "u-1",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "namespace": "shop", "operation": "CREATE", "userInfo": {},
                "object": { "metadata": { "generateName": "web-" } }, "oldObject": null, "dryRun": true, "options": {},
            },
        })
    }

    #[test]
    fn what_is_asked_is_read() {
        let read = Review::read(review().to_string().as_bytes()).unwrap();
        assert!(read.is_pod && read.dry_run && read.operation == Operation::Create);
        assert_eq!((read.uid.as_str(), read.namespace.as_str(), read.kind.as_str()), ("u-1", "shop", "v1, Pod"));
        let mut part = review();
        part["request"]["subResource"] = json!("ephemeralcontainers");
        assert!(!Review::read(part.to_string().as_bytes()).unwrap().is_pod);
        let mut other = review();
        other["request"]["kind"] = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
        assert_eq!(Review::read(other.to_string().as_bytes()).unwrap().kind, "apps/v1, Deployment");
    }

    #[test]
    fn what_is_wrong_is_said_precisely() {
        let changed = |pointer: &str, value: Option<Value>| {
            let mut review = review();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            let parent = review.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            match value {
                Some(value) => drop(parent.insert(last.to_owned(), value)),
                None => drop(parent.remove(last)),
            }
            review.to_string()
        };
        let deep = format!("{{\"request\":{{\"object\":{}", "[".repeat(100_000));
        let rows = [
            ("nothing", String::new(), "empty"),
            ("no JSON", "kind: AdmissionReview".to_owned(), "no JSON: expected value at line 1"),
            ("half of it", review().to_string()[..80].to_owned(), "no JSON: EOF"),
            ("too deep", deep, "no JSON: recursion limit"),
            ("another kind", changed("/kind", Some(json!("Pod"))), "its `kind` is `Pod`"),
            ("no kind", changed("/kind", None), "its `kind` is absent"),
            (
                "an old version",
                changed("/apiVersion", Some(json!("admission.k8s.io/v1beta1"))),
                "`admission.k8s.io/v1beta1`, and only",
            ),
            ("a version that is none", changed("/apiVersion", Some(json!(1))), "`apiVersion` is no text"),
            ("no request", changed("/request", None), "has no `request`"),
            ("no UID", changed("/request/uid", None), "missing field `uid`"),
            ("an empty UID", changed("/request/uid", Some(json!(""))), "`request.uid` is empty"),
            ("no operation", changed("/request/operation", None), "missing field `operation`"),
            ("an unknown operation", changed("/request/operation", Some(json!("hunter2"))), "cannot be read"),
        ];
        for (name, body, part) in rows {
            let error = Review::read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
            assert!(!error.contains("hunter2"), "{name}: {error}");
        }
    }

    #[test]
    fn answers_have_the_form_that_the_api_server_reads() {
        let nothing = Answer::default().to_json("u");
        assert_eq!(nothing["response"], json!({ "uid": "u", "allowed": true }));
        let patch = vec![json!({ "op": "remove", "path": "/a" })];
        let answer = Answer { patch, warnings: vec!["é".repeat(300)], refusal: None }.to_json("u");
        let decoded = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(decoded, br#"[{"op":"remove","path":"/a"}]"#);
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        assert!(warning.starts_with("outrigger: é") && warning.len() <= LONGEST_WARNING, "{warning}");
        let refused = Answer { refusal: Some("no\nway".to_owned()), ..Answer::default() }.to_json("u");
        assert_eq!(refused["response"]["allowed"], false);
        assert_eq!(refused["response"]["status"]["message"], "no way");
    }

    proptest! {
        #[test]
        fn whatever_comes_nothing_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            at in 0usize..400,
            whole in any::<bool>(),
        ) {
            let mut body = review().to_string().into_bytes();
            let at = at.min(body.len());
            if whole {
                body.splice(at..(at + bytes.len() / 2).min(body.len()), bytes.iter().copied());
            } else {
                body.truncate(at);
                body.extend_from_slice(&bytes);
            }
            match Review::read(&body) {
                Ok(read) => prop_assert!(!read.uid.is_empty()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
            let _ = Review::read(&bytes);
        }
    }
}
