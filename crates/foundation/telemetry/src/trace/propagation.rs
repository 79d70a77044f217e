//! Reads and writes the fields that carry a trace from hop to hop: W3C [Trace Context] and [B3].
//!
//! In: the fields' values as they came. Out: a context, or nothing when they break their
//! format, for then a new trace begins; and the values for the next hop. Promise: what was
//! written is read back the same; nothing is allocated.
//!
//! [Trace Context]: https://www.w3.org/TR/trace-context/
//! [B3]: https://github.com/openzipkin/b3-propagation

use outrigger_config::Propagator;

use super::context::{SpanId, TraceContext, TraceId};

/// The fields of one request: a look-up by lower-case name of the only value, `None` when it is absent or there are
/// several, for then nobody knows which one is meant.
pub trait Fields {
    /// The value of a field that came once.
    fn once(&self, name: &'static str) -> Option<&[u8]>;
}

/// The trace that a request belongs to, by the first of the propagators whose fields are there and right.
pub fn extract(fields: &impl Fields, propagators: &[Propagator]) -> Option<TraceContext> {
    propagators.iter().find_map(|propagator| match propagator {
        Propagator::TraceContext => fields.once("traceparent").and_then(traceparent),
        Propagator::B3 => fields.once("b3").and_then(b3),
        Propagator::B3Multi => b3_multi(fields),
    })
}

/// Tells the next hop, in the fields of all propagators. `set` replaces a field, or removes it when there is no value.
pub fn inject(
    trace: TraceId,
    span: SpanId,
    sampled: bool,
    flags: u8,
    propagators: &[Propagator],
    mut set: impl FnMut(&'static str, Option<&[u8]>),
) {
    for propagator in propagators {
        match propagator {
            Propagator::TraceContext => {
                let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
                value[3..35].copy_from_slice(&trace.to_hex());
                value[36..52].copy_from_slice(&span.to_hex());
                let flags = (flags & !SAMPLED) | u8::from(sampled);
                value[53] = b"0123456789abcdef"[usize::from(flags >> 4)];
                value[54] = b"0123456789abcdef"[usize::from(flags & 15)];
                set("traceparent", Some(&value));
            }
            Propagator::B3 => {
                let mut value = *b"00000000000000000000000000000000-0000000000000000-0";
                value[..32].copy_from_slice(&trace.to_hex());
                value[33..49].copy_from_slice(&span.to_hex());
                value[50] = b'0' + u8::from(sampled);
                set("b3", Some(&value));
            }
            Propagator::B3Multi => {
                set("x-b3-traceid", Some(&trace.to_hex()));
                set("x-b3-spanid", Some(&span.to_hex()));
                set("x-b3-sampled", Some(if sampled { b"1" } else { b"0" }));
                // They spoke of the caller's span and of the caller's decision.
                set("x-b3-parentspanid", None);
                set("x-b3-flags", None);
            }
        }
    }
}

const SAMPLED: u8 = 1;

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may go on after it.
fn traceparent(value: &[u8]) -> Option<TraceContext> {
    let version = u8::try_from(number(value.get(..2)?)?).ok()?;
    let right_length = match version {
        0 => value.len() == 55,
        0xff => false,
        _ => value.len() == 55 || value.get(55) == Some(&b'-'),
    };
    if !right_length || [2, 35, 52].iter().any(|at| value.get(*at) != Some(&b'-')) {
        return None;
    }
    let flags = u8::try_from(number(value.get(53..55)?)?).ok()?;
    Some(TraceContext {
        trace: trace_id(value.get(3..35)?)?,
        parent: Some(span_id(value.get(36..52)?)?),
        sampled: Some(flags & SAMPLED != 0),
        // Of a later version only what this one knows is kept.
        flags: if version == 0 { flags } else { flags & SAMPLED },
    })
}

/// `{trace}-{span}[-{sampling}[-{parent}]]`, or a decision alone, which says nothing of a trace.
fn b3(value: &[u8]) -> Option<TraceContext> {
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, span) = (trace_id(parts.next()?)?, span_id(parts.next()?)?);
    let sampled = match parts.next() {
        None => None,
        Some(state) => Some(decision(state)?),
    };
    if let Some(parent) = parts.next() {
        span_id(parent)?;
    }
    parts.next().is_none().then_some(TraceContext { trace, parent: Some(span), sampled, flags: 0 })
}

fn b3_multi(fields: &impl Fields) -> Option<TraceContext> {
    let trace = trace_id(fields.once("x-b3-traceid")?)?;
    let parent = span_id(fields.once("x-b3-spanid")?)?;
    let debug = fields.once("x-b3-flags") == Some(b"1");
    let sampled = if debug { Some(true) } else { fields.once("x-b3-sampled").and_then(decision) };
    Some(TraceContext { trace, parent: Some(parent), sampled, flags: 0 })
}

fn decision(state: &[u8]) -> Option<bool> {
    match state {
        b"1" | b"d" | b"true" => Some(true),
        b"0" | b"false" => Some(false),
        _ => None,
    }
}

/// B3 knows short ids too: the other half is zero.
fn trace_id(digits: &[u8]) -> Option<TraceId> {
    let id = matches!(digits.len(), 16 | 32).then(|| number(digits)).flatten()?;
    (id != 0).then_some(TraceId(id))
}

fn span_id(digits: &[u8]) -> Option<SpanId> {
    let id = (digits.len() == 16).then(|| number(digits)).flatten()?;
    (id != 0).then_some(SpanId(id as u64))
}

/// At most 32 lower-case hexadecimal digits.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((number << 4) | u128::from(value))
    })
}

/// Entry for the fuzzer: what is read is written and read back the same.
#[doc(hidden)]
pub fn fuzz_propagation(value: &[u8]) {
    struct Everywhere<'a>(&'a [u8]);
    impl Fields for Everywhere<'_> {
        fn once(&self, _: &'static str) -> Option<&[u8]> {
            Some(self.0)
        }
    }
    for propagator in [Propagator::TraceContext, Propagator::B3, Propagator::B3Multi] {
        let Some(context) = extract(&Everywhere(value), &[propagator]) else { continue };
        let (Some(parent), sampled) = (context.parent, context.sampled.unwrap_or(false)) else { continue };
        inject(context.trace, parent, sampled, context.flags, &[propagator], |name, told| {
            if let (false, Some(told)) = (name.starts_with("x-"), told) {
                let again = extract(&Everywhere(told), &[propagator]).expect("what we write is right");
                assert_eq!((again.trace, again.parent, again.sampled), (context.trace, Some(parent), Some(sampled)));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Map(HashMap<&'static str, Vec<u8>>);

    impl Fields for Map {
        fn once(&self, name: &'static str) -> Option<&[u8]> {
            self.0.get(name).map(Vec::as_slice)
        }
    }

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn traceparents() {
        let right = |flags: &str| format!("00-{TRACE}-{SPAN}-{flags}");
        let context = traceparent(right("01").as_bytes()).unwrap();
        assert_eq!(
            (&context.trace.to_hex(), &context.parent.unwrap().to_hex()),
            (TRACE.as_bytes().first_chunk().unwrap(), SPAN.as_bytes().first_chunk().unwrap())
        );
        assert_eq!(context.sampled, Some(true));
        assert_eq!(traceparent(right("02").as_bytes()).unwrap().sampled, Some(false), "the random flag is another");
        for (name, value, sampled) in [
            ("a later version", format!("cc-{TRACE}-{SPAN}-01-what-comes"), true),
            ("a later version of the same length", format!("01-{TRACE}-{SPAN}-00"), false),
        ] {
            assert_eq!(traceparent(value.as_bytes()).map(|context| context.sampled), Some(Some(sampled)), "{name}");
        }
        for (name, value) in [
            ("version ff", format!("ff-{TRACE}-{SPAN}-01")),
            ("something behind version 00", format!("00-{TRACE}-{SPAN}-01-x")),
            ("a later version that runs on", format!("01-{TRACE}-{SPAN}-01x")),
            ("a zero trace", format!("00-{}-{SPAN}-01", "0".repeat(32))),
            ("a zero span", format!("00-{TRACE}-{}-01", "0".repeat(16))),
            ("capitals", format!("00-{}-{SPAN}-01", TRACE.to_uppercase())),
            ("no digits", format!("00-{}-{SPAN}-01", "g".repeat(32))),
            ("too short", format!("00-{TRACE}-{SPAN}-1")),
            ("other marks", format!("00_{TRACE}_{SPAN}_01")),
            ("nothing", String::new()),
        ] {
            assert_eq!(traceparent(value.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn b3_in_one_field_and_in_many() {
        for (value, sampled) in [
            (format!("{TRACE}-{SPAN}"), None),
            (format!("{TRACE}-{SPAN}-1"), Some(true)),
            (format!("{TRACE}-{SPAN}-d-{SPAN}"), Some(true)),
            (format!("{SPAN}-{SPAN}-0"), Some(false)),
        ] {
            assert_eq!(b3(value.as_bytes()).map(|context| context.sampled), Some(sampled), "{value}");
        }
        for value in ["0", "1", "d", "x-y", &format!("{TRACE}-{SPAN}-2"), &format!("{TRACE}-{SPAN}-1-{SPAN}-1")] {
            assert_eq!(b3(value.as_bytes()), None, "{value}");
        }
        let mut fields = Map::default();
        fields.0.insert("x-b3-traceid", TRACE.into());
        assert_eq!(b3_multi(&fields), None, "a trace without a span");
        fields.0.insert("x-b3-spanid", SPAN.into());
        assert_eq!(b3_multi(&fields).unwrap().sampled, None);
        fields.0.insert("x-b3-sampled", b"0".into());
        assert_eq!(b3_multi(&fields).unwrap().sampled, Some(false));
        fields.0.insert("x-b3-flags", b"1".into());
        assert_eq!(b3_multi(&fields).unwrap().sampled, Some(true), "debug");
    }

    #[test]
    fn the_first_propagator_with_right_fields_wins() {
        let mut fields = Map::default();
        fields.0.insert("traceparent", b"broken".into());
        fields.0.insert("b3", format!("{TRACE}-{SPAN}-1").into_bytes());
        let both = [Propagator::TraceContext, Propagator::B3];
        assert_eq!(extract(&fields, &both).unwrap().sampled, Some(true));
        fields.0.insert("traceparent", format!("00-{TRACE}-{SPAN}-00").into_bytes());
        assert_eq!(extract(&fields, &both).unwrap().sampled, Some(false));
        assert_eq!(extract(&fields, &[]), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let (trace, span) = (TraceId(trace), SpanId(span));
            for propagator in [Propagator::TraceContext, Propagator::B3, Propagator::B3Multi] {
                let mut fields = Map::default();
                inject(trace, span, sampled, 0, &[propagator], |name, value| {
                    value.map(|value| fields.0.insert(name, value.to_vec()));
                });
                let read = extract(&fields, &[propagator]).unwrap();
                prop_assert_eq!((read.trace, read.parent, read.sampled), (trace, Some(span), Some(sampled)));
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(value: Vec<u8>) {
            fuzz_propagation(&value);
        }
    }
}
