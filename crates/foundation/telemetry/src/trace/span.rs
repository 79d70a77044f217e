//! Spans as OTLP writes them: protobuf, encoded where a request ends, so that nothing but bytes waits.
//!
//! In: what is known of a request at its end. Out: one `Span` message ([opentelemetry-proto]
//! 1.x), and an `ExportTraceServiceRequest` around many. Promise: what a collector reads is
//! what was written, whatever bytes a client sent: text that is not UTF-8 is made so, and
//! long values are cut.
//!
//! [opentelemetry-proto]: https://github.com/open-telemetry/opentelemetry-proto

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::context::{SpanId, TraceId};

/// Bytes of a value; what is longer is cut.
const MOST_VALUE: usize = 1024;

/// Which side of a call a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The application is called.
    Server,
    /// The application calls.
    Client,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is said of it, which is right for all that went well.
    Unset,
    /// It failed.
    Error,
}

/// Writes one span.
pub struct SpanWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Where the span's own bytes begin, after room for their length.
    start: usize,
}

/// Bytes that a span's length takes: four groups of seven bits, whatever it is.
const LENGTH: usize = 4;

impl<'a> SpanWriter<'a> {
    /// Begins a span behind what is in `out`, as a field of `ScopeSpans`.
    pub fn begin(
        out: &'a mut Vec<u8>,
        trace: TraceId,
        span: SpanId,
        parent: Option<SpanId>,
        name: [&str; 2],
        kind: Kind,
    ) -> Self {
        tag(out, 2, LEN);
        out.extend_from_slice(&[0; LENGTH]);
        let start = out.len();
        bytes(out, 1, &trace.to_bytes());
        bytes(out, 2, &span.to_bytes());
        if let Some(parent) = parent {
            bytes(out, 4, &parent.to_bytes());
        }
        tag(out, 5, LEN);
        let [first, second] = name;
        let blank = usize::from(!first.is_empty() && !second.is_empty());
        varint(out, (first.len() + blank + second.len()) as u64);
        out.extend_from_slice(first.as_bytes());
        out.extend_from_slice(&b" "[..blank]);
        out.extend_from_slice(second.as_bytes());
        tag(out, 6, VARINT);
        varint(
            out,
            match kind {
                Kind::Server => 2,
                Kind::Client => 3,
            },
        );
        Self { out, start }
    }

    /// When it began, and how long it took.
    pub fn times(&mut self, began: SystemTime, took: Duration) {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        for (field, at) in [(7, began), (8, began.saturating_add(took))] {
            tag(self.out, field, FIXED64);
            self.out.extend_from_slice(&u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
        }
    }

    /// An attribute; empty ones are left out.
    pub fn text(&mut self, key: &str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        let value = &value[..value.len().min(MOST_VALUE)];
        match str::from_utf8(value) {
            Ok(_) => self.attribute(key, 1, value),
            Err(_) => self.attribute(key, 1, String::from_utf8_lossy(value).as_bytes()),
        }
    }

    /// An attribute that is a number.
    pub fn number(&mut self, key: &str, value: u64) {
        let mut encoded = [0; 10];
        let length = write_varint(&mut encoded, value);
        tag(self.out, 9, LEN);
        varint(self.out, (field_len(key.len()) + field_len(1 + length)) as u64);
        bytes(self.out, 1, key.as_bytes());
        tag(self.out, 2, LEN);
        varint(self.out, (1 + length) as u64);
        tag(self.out, 3, VARINT);
        self.out.extend_from_slice(&encoded[..length]);
    }

    /// `KeyValue { key, value: AnyValue { string_value } }`.
    fn attribute(&mut self, key: &str, field: u8, value: &[u8]) {
        tag(self.out, 9, LEN);
        let any = field_len(value.len());
        varint(self.out, (field_len(key.len()) + field_len(any)) as u64);
        bytes(self.out, 1, key.as_bytes());
        tag(self.out, 2, LEN);
        varint(self.out, any as u64);
        bytes(self.out, field, value);
    }

    /// Ends it.
    pub fn end(self, outcome: Outcome, message: &str) {
        if outcome == Outcome::Error {
            tag(self.out, 15, LEN);
            let told = if message.is_empty() { 0 } else { field_len(message.len()) };
            varint(self.out, (told + 2) as u64);
            if !message.is_empty() {
                bytes(self.out, 2, message.as_bytes());
            }
            tag(self.out, 3, VARINT);
            varint(self.out, 2);
        }
        let length = self.out.len() - self.start;
        let place = &mut self.out[self.start - LENGTH..self.start];
        for (index, byte) in place.iter_mut().enumerate() {
            let more = if index + 1 < LENGTH { 0x80 } else { 0 };
            *byte = ((length >> (7 * index)) & 0x7f) as u8 | more;
        }
    }
}

/// An `ExportTraceServiceRequest` of spans that were written one behind the other.
pub fn export_request(resource: &[(String, String)], scope: (&str, &str), spans: &[u8]) -> Vec<u8> {
    let mut attributes = Vec::new();
    for (key, value) in resource {
        tag(&mut attributes, 1, LEN);
        let any = field_len(value.len());
        varint(&mut attributes, (field_len(key.len()) + field_len(any)) as u64);
        bytes(&mut attributes, 1, key.as_bytes());
        tag(&mut attributes, 2, LEN);
        varint(&mut attributes, any as u64);
        bytes(&mut attributes, 1, value.as_bytes());
    }
    let mut scope_spans = Vec::with_capacity(spans.len() + 64);
    let (name, version) = scope;
    tag(&mut scope_spans, 1, LEN);
    varint(&mut scope_spans, (field_len(name.len()) + field_len(version.len())) as u64);
    bytes(&mut scope_spans, 1, name.as_bytes());
    bytes(&mut scope_spans, 2, version.as_bytes());
    scope_spans.extend_from_slice(spans);
    let mut resource_spans = Vec::with_capacity(scope_spans.len() + attributes.len() + 16);
    bytes(&mut resource_spans, 1, &attributes);
    bytes(&mut resource_spans, 2, &scope_spans);
    let mut request = Vec::with_capacity(resource_spans.len() + 8);
    bytes(&mut request, 1, &resource_spans);
    request
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;

/// Fields up to 15 have tags of one byte.
fn tag(out: &mut Vec<u8>, field: u8, wire: u8) {
    debug_assert!(field < 16, "one byte");
    out.push(field << 3 | wire);
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    tag(out, field, LEN);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, value: u64) {
    let mut encoded = [0; 10];
    let length = write_varint(&mut encoded, value);
    out.extend_from_slice(&encoded[..length]);
}

fn write_varint(encoded: &mut [u8; 10], mut value: u64) -> usize {
    for (index, byte) in encoded.iter_mut().enumerate() {
        *byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return index + 1;
        }
        *byte |= 0x80;
    }
    encoded.len()
}

/// Bytes of a length-delimited field with a tag of one byte.
fn field_len(content: usize) -> usize {
    let mut encoded = [0; 10];
    1 + write_varint(&mut encoded, content as u64) + content
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message's fields, read the slow and obvious way.
    fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn number(message: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = message[0];
                *message = &message[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !message.is_empty() {
            let tag = number(&mut message);
            let value = match tag & 7 {
                0 => number(&mut message).to_le_bytes().to_vec(),
                1 => {
                    let (value, rest) = message.split_at(8);
                    message = rest;
                    value.to_vec()
                }
                2 => {
                    let length = number(&mut message) as usize;
                    let (value, rest) = message.split_at(length);
                    message = rest;
                    value.to_vec()
                }
                other => panic!("wire type {other}"),
            };
            found.push((tag >> 3, value));
        }
        found
    }

    fn one(message: &[u8], field: u64) -> Vec<u8> {
        let mut found = fields(message).into_iter().filter(|(number, _)| *number == field);
        let (_, value) = found.next().unwrap_or_else(|| panic!("no field {field}"));
        assert!(found.next().is_none(), "one field {field}");
        value
    }

    #[test]
    fn a_request_holds_its_resource_and_all_spans() {
        let mut out = Vec::new();
        for name in ["a", "b"] {
            let (trace, span) = (TraceId(0x0102), SpanId(0x03));
            let mut writer = SpanWriter::begin(&mut out, trace, span, Some(SpanId(4)), ["GET", name], Kind::Client);
            writer.times(UNIX_EPOCH + Duration::from_nanos(5), Duration::from_nanos(2));
            writer.text("url.path", b"/\xff");
            writer.text("empty", b"");
            writer.text("long", &[b'x'; 5000]);
            writer.number("http.response.status_code", 503);
            writer.end(Outcome::Error, "why");
        }
        let resource = vec![("service.name".to_owned(), "shop".to_owned())];
        let request = export_request(&resource, ("outrigger", "1"), &out);
        let resource_spans = one(&request, 1);
        let attribute = one(&one(&resource_spans, 1), 1);
        assert_eq!((one(&attribute, 1), one(&one(&attribute, 2), 1)), (b"service.name".to_vec(), b"shop".to_vec()));
        let scope_spans = one(&resource_spans, 2);
        assert_eq!(one(&one(&scope_spans, 1), 1), b"outrigger");
        let spans: Vec<_> = fields(&scope_spans).into_iter().filter(|(field, _)| *field == 2).collect();
        assert_eq!(spans.len(), 2);
        let span = &spans[1].1;
        assert_eq!(one(span, 1), 0x0102_u128.to_be_bytes());
        assert_eq!((one(span, 2), one(span, 4)), (3_u64.to_be_bytes().to_vec(), 4_u64.to_be_bytes().to_vec()));
        assert_eq!(one(span, 5), b"GET b");
        assert_eq!((one(span, 6)[0], one(span, 7)[0], one(span, 8)[0]), (3, 5, 7));
        let attributes: Vec<_> = fields(span).into_iter().filter(|(field, _)| *field == 9).collect();
        assert_eq!(attributes.len(), 3, "none for what is empty");
        assert_eq!(one(&one(&attributes[0].1, 2), 1), "/\u{fffd}".as_bytes());
        assert_eq!(one(&one(&attributes[1].1, 2), 1).len(), MOST_VALUE);
        assert_eq!(one(&one(&attributes[2].1, 2), 3), 503_u64.to_le_bytes());
        let status = one(span, 15);
        assert_eq!((one(&status, 2), one(&status, 3)[0]), (b"why".to_vec(), 2));
    }
}
