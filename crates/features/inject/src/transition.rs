//! From one `mtls` to another under a running application, in steps that cut nobody off.
//!
//! In: how a pod's sidecar takes connections and what others go by, as they are and as they should be. Out: the next step, and
//! what it has to wait for. Promise: at each step a sidecar takes what others are told to send, and what they were told before.

use crate::settings::Mtls;

/// How connections reach a pod; `None` is plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ways {
    /// What its sidecar takes, by its config.
    pub(crate) takes: Option<Mtls>,
    /// What others send, by the pod's annotation.
    pub(crate) told: Option<Mtls>,
}

/// What a change of a running pod has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    Now,
    /// The sidecar has taken over the config that it was told last, for others are about to count on it.
    Taken,
    /// Others have heard what was changed of the pod before, for they are about to have to.
    Heard,
}

/// The next step, which may be the last one.
pub(crate) fn next(has: Ways, wants: Ways) -> (Ways, When) {
    let both = Some(Mtls::Permissive);
    let step = match (has.told, wants.told) {
        (None, Some(_)) if has.takes.is_none() => Ways { takes: both, ..has },
        (Some(_), None) if has.takes == Some(Mtls::Strict) => Ways { takes: both, ..has },
        (None, Some(_)) | (Some(_), None) if has.takes == both => Ways { told: wants.told, ..has },
        _ => wants,
    };
    let when = if step.told.is_some() != has.told.is_some() {
        When::Taken
    } else if has.takes == both && step.takes != both {
        When::Heard
    } else {
        When::Now
    };
    (step, when)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_ends_and_nobody_sends_what_is_not_taken() {
        let all = [None, Some(Mtls::Permissive), Some(Mtls::Strict)];
        let sends = |told: Option<Mtls>, takes: Option<Mtls>| match told {
            None => takes != Some(Mtls::Strict),
            Some(_) => takes.is_some(),
        };
        for from in all {
            for to in all {
                let wants = Ways { takes: to, told: to };
                let (mut ways, mut before, mut steps) = (Ways { takes: from, told: from }, from, 0);
                while ways != wants {
                    let (step, when) = next(ways, wants);
                    // Before it was waited for, some still send what they were told before, and a sidecar takes what it took before.
                    if when != When::Heard {
                        assert!(
                            sends(before, step.takes) || from.is_some() == to.is_some(),
                            "{from:?} to {to:?}: {step:?}"
                        );
                    }
                    if when == When::Now && step.told.is_some() != ways.told.is_some() {
                        panic!("{from:?} to {to:?}: told before it is taken");
                    }
                    assert!(sends(step.told, step.takes), "{from:?} to {to:?}: {step:?}");
                    before = ways.told;
                    ways = step;
                    steps += 1;
                    assert!(steps <= 3, "{from:?} to {to:?}");
                }
            }
        }
    }

    #[test]
    fn steps_of_each_change() {
        let (plain, both, strict) = (None, Some(Mtls::Permissive), Some(Mtls::Strict));
        let ways = |takes, told| Ways { takes, told };
        for (name, has, wants, expected) in [
            (
                "others first need a sidecar that takes it",
                ways(plain, plain),
                ways(strict, strict),
                (ways(both, plain), When::Now),
            ),
            ("then they are told", ways(both, plain), ways(strict, strict), (ways(both, strict), When::Taken)),
            (
                "then nothing else is taken",
                ways(both, strict),
                ways(strict, strict),
                (ways(strict, strict), When::Heard),
            ),
            (
                "between the two nobody has to know",
                ways(strict, strict),
                ways(both, both),
                (ways(both, both), When::Now),
            ),
            ("back, both are taken first", ways(strict, strict), ways(plain, plain), (ways(both, strict), When::Now)),
            ("then others are told", ways(both, strict), ways(plain, plain), (ways(both, plain), When::Taken)),
            ("then it is plain text", ways(both, plain), ways(plain, plain), (ways(plain, plain), When::Heard)),
            (
                "what others cannot know changes at once",
                ways(strict, plain),
                ways(plain, plain),
                (ways(plain, plain), When::Now),
            ),
            ("what was cut off is joined at once", ways(plain, both), ways(both, both), (ways(both, both), When::Now)),
        ] {
            assert_eq!(next(has, wants), expected, "{name}");
        }
    }
}
