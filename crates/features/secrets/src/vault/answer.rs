//! What Vault's answers say.
//!
//! In: JSON from outside, of any shape. Out: secrets and leases. Promise: nothing in an
//! answer can panic us; what is not as it should be counts as not there.

use gotmpl::Value;
use outrigger_config::Secret;
use outrigger_vault::member::{flag, seconds, text};
use serde_json::Value as Json;

use crate::provider::{Fetched, Lease};
use crate::template::to_value;

/// A secret as templates see it; `None` when there is no data.
pub(super) fn fetched(mut json: Json) -> Option<Fetched> {
    let lease = lease(&json);
    let version = json.pointer("/data/metadata/version").and_then(Json::as_u64);
    let id = text(&json, "lease_id").to_owned();
    let duration = seconds(json.get("lease_duration"));
    let renewable = flag(&json, "renewable");
    let data = json.get_mut("data").map(Json::take).filter(Json::is_object)?;
    let value = Value::from_entries([
        ("Data".to_owned(), to_value(data)),
        ("LeaseID".to_owned(), id.into()),
        ("LeaseDuration".to_owned(), Value::Int(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))),
        ("Renewable".to_owned(), Value::Bool(renewable)),
    ]);
    Some(Fetched { value, version, lease })
}

/// The lease of an answer, if it has one.
pub(super) fn lease(json: &Json) -> Option<Lease> {
    let id = text(json, "lease_id");
    let duration = seconds(json.get("lease_duration"));
    (!id.is_empty() && !duration.is_zero()).then(|| Lease {
        id: Secret::new(id.to_owned()),
        duration,
        renewable: flag(json, "renewable"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_json() -> impl Strategy<Value = Json> {
        let names = prop_oneof![
            Just("data".to_owned()),
            Just("metadata".to_owned()),
            Just("version".to_owned()),
            Just("lease_id".to_owned()),
            Just("lease_duration".to_owned()),
            ".{0,8}"
        ];
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            ".{0,12}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::vec((names.clone(), inner), 0..6)
                    .prop_map(|members| Json::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_answer_panics(json in any_json()) {
            let _ = lease(&json);
            let _ = fetched(json);
        }
    }

    #[test]
    fn leases_are_told_from_durations_without_one() {
        let cases = [
            ("kv 1", r#"{"lease_id": "", "lease_duration": 2764800, "data": {}}"#, false),
            ("database", r#"{"lease_id": "database/creds/x/1", "lease_duration": 60, "renewable": true}"#, true),
            ("null", r#"{"lease_id": null, "lease_duration": null}"#, false),
            ("endless", r#"{"lease_id": "x", "lease_duration": 0}"#, false),
        ];
        for (name, text, leased) in cases {
            assert_eq!(lease(&serde_json::from_str(text).unwrap()).is_some(), leased, "{name}");
        }
    }
}
