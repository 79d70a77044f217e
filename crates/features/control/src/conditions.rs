//! What a profile's status says.
//!
//! In: what is wrong with a profile, and what became of each pod that it means. Out: its status, with the conditions `Accepted` and
//! `Programmed`. Promise: pure; what says the same as before is the same, its times among it.

use outrigger_kubernetes::Key;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Pods that a status names.
const MOST_NAMED: usize = 3;

/// What a profile's pods have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pods: u32,
    programmed: u32,
    /// Why others do not, each with its name.
    others: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, pod: &Key, why: Option<&str>) {
        self.pods += 1;
        match why {
            None => self.programmed += 1,
            Some(why) => self.others.push(format!("{}/{}: {why}", pod.namespace, pod.name)),
        }
    }
}

/// As conditions write times.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// A profile's status; conditions that say the same keep their time.
pub(crate) fn status(before: &Value, generation: i64, problems: &[String], tally: &Tally, now: &str) -> Value {
    let accepted = match problems {
        [] => ("True", "Valid", "it counts for the pods that it means".to_owned()),
        problems => ("False", "Invalid", problems.join("; ")),
    };
    let Tally { pods, programmed, others } = tally;
    let programmed_condition = match (pods, pods - programmed) {
        (0, _) => ("True", "NoPods", "no running pod is meant".to_owned()),
        (pods, 0) => ("True", "AllPods", format!("{pods} of {pods} pods")),
        (pods, missing) => {
            let mut named = others.clone();
            named.sort();
            let more = named.len().saturating_sub(MOST_NAMED);
            named.truncate(MOST_NAMED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let told = format!("{programmed} of {pods} pods, {missing} not: {}{more}", named.join("; "));
            ("False", "PodsMissing", told)
        }
    };
    let known = before["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let condition = |kind: &str, (status, reason, message): (&str, &str, String)| {
        let same = known.iter().find(|one| one["type"] == kind && one["status"] == status);
        let since = same.map_or_else(|| json!(now), |one| one["lastTransitionTime"].clone());
        // As much as the API's conventions allow.
        let message: String = message.chars().take(4000).collect();
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since, "observedGeneration": generation,
        })
    };
    json!({
        "observedGeneration": generation,
        "pods": pods,
        "programmed": programmed,
        "conditions": [condition("Accepted", accepted), condition("Programmed", programmed_condition)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_keep_their_time_and_say_who_is_missing() {
        let all = Tally { pods: 2, programmed: 2, others: Vec::new() };
        let first = status(&Value::Null, 1, &[], &all, "t1");
        assert_eq!(first["conditions"][1]["message"], "2 of 2 pods");
        let same = status(&first, 1, &[], &all, "t2");
        assert_eq!(same, first, "what says the same is not written");
        let mut some = Tally::default();
        some.add(&Key::new("shop", "b"), None);
        for pod in ["d", "a", "c", "e"] {
            some.add(&Key::new("shop", pod), Some("it has to be made anew: x"));
        }
        let next = status(&first, 2, &["spec.config.a: unknown".to_owned()], &some, "t3");
        let message = next["conditions"][1]["message"].as_str().unwrap();
        assert!(
            message.starts_with("1 of 5 pods, 4 not: shop/a: it has") && message.ends_with("; and 1 more"),
            "{message}"
        );
        assert_eq!(
            (&next["conditions"][0]["status"], &next["conditions"][0]["lastTransitionTime"]),
            (&json!("False"), &json!("t3"))
        );
        assert_eq!(status(&first, 2, &[], &Tally::default(), "t4")["conditions"][1]["reason"], "NoPods");
    }
}
