//! Why the API server gave no answer that can be used: the way to it, or its own word.
//!
//! Promise: who is refused a right is told which verb, resource, namespace and user; no error holds a token.

use std::fmt;
use std::time::Duration;

use outrigger_http::HttpError;
use serde_json::Value;

use crate::access::AccessError;

/// Longer texts of the API server are cut, in characters.
const LONGEST: usize = 600;

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// We do not know how to ask.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No answer came.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(#[from] HttpError),
    /// The API server said no.
    #[error("cannot {verb} {what}: {status}")]
    Refused {
        /// What was tried, such as `list`.
        verb: &'static str,
        /// Of what.
        what: String,
        /// What it said.
        status: Box<Status>,
    },
    /// The answer is not what it should be.
    #[error("cannot {verb} {what}: the API server's answer cannot be used: {problem}")]
    Malformed {
        /// What was tried.
        verb: &'static str,
        /// Of what.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ApiError {
    /// The API server's own word, if it said one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused { status, .. } => Some(status),
            _ => None,
        }
    }

    fn code(&self) -> u16 {
        self.status().map_or(0, |status| status.code)
    }

    /// There is no such object.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Another one was faster: the version that was named is not the newest, or the object exists already.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// The version that was asked for is not known any more; list again.
    pub fn is_gone(&self) -> bool {
        self.code() == 410 || self.status().is_some_and(|status| status.reason == "Expired")
    }

    /// We lack a right, or it does not know us.
    pub fn is_forbidden(&self) -> bool {
        matches!(self.code(), 401 | 403)
    }

    /// Not now: too many requests, or, for an eviction, a disruption budget that would be broken.
    pub fn is_too_many(&self) -> bool {
        self.code() == 429
    }

    /// Whether the same request may succeed later without anybody's doing.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(error) => error.retryable(),
            Self::Refused { status, .. } => matches!(status.code, 408 | 429 | 500..),
            Self::Access(_) | Self::Malformed { .. } => false,
        }
    }
}

/// The API server's [Status].
///
/// [Status]: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// One word, such as `NotFound`; empty when it gave none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl Status {
    /// The Status in an answer, or what the HTTP status alone says.
    pub(crate) fn of(code: u16, body: &Value) -> Self {
        let text = |key: &str| body[key].as_str().map(tidy).unwrap_or_default();
        let seconds = body["details"]["retryAfterSeconds"].as_u64().filter(|seconds| *seconds > 0);
        let code = body["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(code);
        Self { code, reason: text("reason"), message: text("message"), retry_after: seconds.map(Duration::from_secs) }
    }

    /// The right that is missing, as the API server's authorizers word it.
    pub fn forbidden(&self) -> Option<Forbidden> {
        if self.code != 403 {
            return None;
        }
        // `pods is forbidden: User "U" cannot list resource "pods" in API group "" in the namespace "shop"`
        let after = |words: &str| {
            let rest = self.message.split_once(words)?.1;
            rest.split_once('"').map(|(word, _)| word.to_owned())
        };
        let verb = self.message.split_once("\" cannot ")?.1.split(' ').next()?.to_owned();
        Some(Forbidden {
            user: after("User \"")?,
            verb,
            resource: after("resource \"")?,
            group: after("API group \"").unwrap_or_default(),
            namespace: after("namespace \""),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(forbidden) = self.forbidden() {
            return forbidden.fmt(f);
        }
        let said = if self.message.is_empty() { "it says no more" } else { &self.message };
        match self.code {
            401 => write!(f, "the API server does not accept our credentials (401): {said}"),
            code => write!(f, "the API server answered {code}: {said}"),
        }
    }
}

/// A right that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forbidden {
    /// Who asked, such as `system:serviceaccount:outrigger-system:outrigger-controller`.
    pub user: String,
    /// What for, such as `list`.
    pub verb: String,
    /// Of what, such as `pods` or `pods/eviction`.
    pub resource: String,
    /// Of which API group.
    pub group: String,
    /// In which namespace; `None` for the whole cluster.
    pub namespace: Option<String>,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, verb, resource, group, namespace } = self;
        let dot = if group.is_empty() { "" } else { "." };
        let (place, role) = match namespace {
            Some(namespace) => (format!("in the namespace `{namespace}`"), "role there"),
            None => ("in the whole cluster".to_owned(), "cluster role"),
        };
        write!(f, "`{user}` may not `{verb}` `{resource}{dot}{group}` {place}; give its {role} that right")
    }
}

/// A text of others as one line that is not too long.
pub(crate) fn tidy(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_missing_right_is_named() {
        let message = |rest: &str| {
            let user = "system:serviceaccount:outrigger-system:outrigger-controller";
            format!("pods is forbidden: User \"{user}\" cannot list resource \"pods\" in API group \"apps\" {rest}")
        };
        let status = |text: String| Status::of(403, &json!({ "code": 403, "reason": "Forbidden", "message": text }));
        let there = status(message("in the namespace \"shop\""));
        assert_eq!(there.forbidden().unwrap().namespace.as_deref(), Some("shop"));
        assert_eq!(
            there.to_string(),
            "`system:serviceaccount:outrigger-system:outrigger-controller` may not `list` `pods.apps` in the namespace `shop`; give its role there that right"
        );
        let everywhere = status(message("at the cluster scope"));
        assert_eq!(everywhere.forbidden().unwrap().namespace, None);
        let webhook = status("admission webhook \"x\" denied the request: no".to_owned());
        assert_eq!(webhook.forbidden(), None);
        assert!(webhook.to_string().contains("denied the request"), "{webhook}");
    }

    #[test]
    fn any_body_gives_a_status() {
        assert_eq!(Status::of(500, &Value::Null).to_string(), "the API server answered 500: it says no more");
        let full =
            json!({ "code": 410, "reason": "Expired", "message": "too\nold", "details": { "retryAfterSeconds": 3 } });
        let status = Status::of(200, &full);
        assert_eq!(
            (status.code, status.message.as_str(), status.retry_after),
            (410, "too old", Some(Duration::from_secs(3)))
        );
    }
}
