//! What Vault answers to a login, and of a token.
//!
//! In: JSON from outside, of any shape. Out: the token and how long it lasts. Promise: nothing in an
//! answer can panic us; what is not as it should be counts as not there.

use std::time::Duration;

use outrigger_config::Secret;
use serde_json::Value as Json;

use crate::member::{flag, seconds, text};

/// A token and how long it lasts.
pub(crate) struct Login {
    pub(crate) token: Secret,
    pub(crate) ttl: Duration,
    pub(crate) renewable: bool,
    /// Of the kind that nobody can revoke.
    pub(crate) batch: bool,
}

/// The token of a login or a renewal.
pub(crate) fn login(json: &Json) -> Option<Login> {
    let auth = json.get("auth")?;
    let token = text(auth, "client_token");
    let (ttl, renewable) = (seconds(auth.get("lease_duration")), flag(auth, "renewable"));
    let batch = text(auth, "token_type") == "batch";
    (!token.is_empty()).then(|| Login { token: Secret::new(token.to_owned()), ttl, renewable, batch })
}

/// What lookup-self tells: how long the token lasts, and whether it can be renewed.
pub(crate) fn lookup(json: &Json) -> Option<(Duration, bool)> {
    let data = json.get("data")?;
    Some((seconds(data.get("ttl")), flag(data, "renewable")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::member::LONGEST;

    #[test]
    fn a_login_has_a_token_that_lasts() {
        let json = serde_json::json!({ "auth": { "client_token": "t", "lease_duration": 60, "renewable": true } });
        let found = login(&json).unwrap();
        assert_eq!(
            (found.token.expose(), found.ttl, found.renewable, found.batch),
            ("t", Duration::from_secs(60), true, false)
        );
        let json = serde_json::json!({ "auth": { "client_token": "", "lease_duration": 60 } });
        assert!(login(&json).is_none());
        let json = serde_json::json!({ "data": { "ttl": u64::MAX, "renewable": "yes" } });
        assert_eq!(lookup(&json), Some((Duration::from_secs(LONGEST), false)));
    }

    proptest! {
        #[test]
        fn no_answer_panics(token in ".{0,8}", ttl in any::<i64>(), kind in prop_oneof![Just("auth"), Just("data"), Just("x")]) {
            for value in [serde_json::json!(token), serde_json::json!(ttl), serde_json::json!([token])] {
                let json = serde_json::json!({ kind: { "client_token": value, "lease_duration": value, "ttl": value } });
                let _ = (login(&json).is_some(), lookup(&json));
                let _ = (login(&value).is_some(), lookup(&value));
            }
        }
    }
}
