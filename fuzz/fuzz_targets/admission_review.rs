//! Admission reviews of any bytes: each is answered or refused; profiles in them are judged; the patch of a pod makes the pod that was meant, with the
//! application's containers in it, and injecting that pod again changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_control::{Answer, Review, difference};
use outrigger_inject::{Namespace, Outcome, Profile, Settings, inject, judge};
use serde_json::Value;

/// Names of containers, in order.
fn containers(pod: &Value) -> Vec<&Value> {
    pod["spec"]["containers"].as_array().into_iter().flatten().map(|container| &container["name"]).collect()
}

fuzz_target!(|body: &[u8]| {
    let Ok(review) = Review::read(body) else { return };
    let settings = Settings::default();
    // A profile is judged, whatever stands in it, and each mistake has its place.
    if let Some(profile) = Profile::read(&review.object) {
        assert!(judge(&profile, &settings).mistakes.iter().all(|mistake| mistake.path.starts_with("spec")));
    }
    let namespace = Namespace { name: review.namespace.clone(), ..Namespace::default() };
    let answer = match inject(&review.object, &namespace, &settings) {
        Outcome::Injected(injected) => {
            let patch = difference(&review.object, &injected.pod);
            let operations: json_patch::Patch =
                serde_json::from_value(patch.clone().into()).expect("operations of RFC 6902");
            let mut patched = review.object.clone();
            json_patch::patch(&mut patched, &operations).expect("the patch applies");
            assert_eq!(patched, injected.pod);
            let (before, after) = (containers(&review.object), containers(&patched));
            assert!(before.iter().all(|name| after.contains(name)), "{before:?} {after:?}");
            match inject(&patched, &namespace, &settings) {
                Outcome::Injected(again) => assert_eq!(again.pod, patched),
                other => panic!("what was injected is no pod any more: {other:?}"),
            }
            Answer { patch, warnings: injected.warnings, ..Answer::default() }
        }
        Outcome::Left(_) => Answer::default(),
        Outcome::Refused(problems) => Answer { refusal: Some(problems.join("; ")), ..Answer::default() },
    };
    assert_eq!(answer.to_json(&review.uid)["response"]["uid"], review.uid);
});
