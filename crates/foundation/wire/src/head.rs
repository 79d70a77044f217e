//! The head of a message: its first line and its fields, for every version of HTTP.
//!
//! Promise: the order of fields and the case of their names are kept; a field that many ask
//! for is found by its number; a head that is used again allocates nothing.

/// A piece of a head's text.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

/// A method, told apart as far as the protocol treats it in its own way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the methods'")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Any other.
    Other,
}

impl Method {
    /// The method of this name; names are case-sensitive.
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    /// Whether the request changes nothing ([RFC 9110], 9.2.1).
    ///
    /// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }

    /// Whether sending the request twice does what sending it once does ([RFC 9110], 9.2.2).
    ///
    /// [RFC 9110]: https://www.rfc-editor.org/rfc/rfc9110
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}

/// A version of HTTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

macro_rules! fields {
    ($($id:ident = $name:literal,)*) => {
        /// A field that is known by number.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the names are the fields'")]
        pub enum FieldId {
            $($id,)*
            /// Any other.
            Other,
        }

        impl FieldId {
            /// The number of the field of this name, in whatever case.
            pub fn of(name: &[u8]) -> Self {
                // By length first: few names share one.
                let (Some(known), Some(last)) = (BY_LENGTH.get(name.len()), name.last()) else { return Self::Other };
                for (end, own, id) in known {
                    // Most that are not the same differ in their last letter.
                    // Over HTTP/2 all are in lower case, and to find that out is cheaper.
                    if *end == last.to_ascii_lowercase()
                        && (name == own.as_bytes() || name.eq_ignore_ascii_case(own.as_bytes()))
                    {
                        return *id;
                    }
                }
                Self::Other
            }

            /// All that are known; the place of each is its number.
            pub const ALL: &[Self] = &[$(Self::$id,)*];

            /// The field's name in lower case; empty for [`Self::Other`].
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$id => $name,)*
                    Self::Other => "",
                }
            }
        }
    };
}

fields! {
    Host = "host",
    Connection = "connection",
    ContentLength = "content-length",
    TransferEncoding = "transfer-encoding",
    Te = "te",
    Trailer = "trailer",
    Upgrade = "upgrade",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    Http2Settings = "http2-settings",
    Expect = "expect",
    Date = "date",
    Via = "via",
    Server = "server",
    Forwarded = "forwarded",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XForwardedClientCert = "x-forwarded-client-cert",
    XRequestId = "x-request-id",
    UserAgent = "user-agent",
    ContentType = "content-type",
    Accept = "accept",
    AcceptEncoding = "accept-encoding",
    Authorization = "authorization",
    Cookie = "cookie",
    SetCookie = "set-cookie",
    Origin = "origin",
    RetryAfter = "retry-after",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    GrpcStatus = "grpc-status",
    GrpcMessage = "grpc-message",
    GrpcTimeout = "grpc-timeout",
    OutriggerProtocol = "outrigger-protocol",
}

/// The last letter of a known field's name, the name, and the number. No name ends with NUL.
type Known = (u8, &'static str, FieldId);
/// The known fields by the length of their names.
static BY_LENGTH: [[Known; MOST_OF_A_LENGTH]; LONGEST_NAME + 1] = by_length();
/// `x-forwarded-client-cert`.
const LONGEST_NAME: usize = 23;
const MOST_OF_A_LENGTH: usize = 5;

/// Does not compile when a constant above is too small.
const fn by_length() -> [[Known; MOST_OF_A_LENGTH]; LONGEST_NAME + 1] {
    let mut table = [[(0, "", FieldId::Other); MOST_OF_A_LENGTH]; LONGEST_NAME + 1];
    let mut counts = [0; LONGEST_NAME + 1];
    let mut at = 0;
    while at < FieldId::ALL.len() {
        let name = FieldId::ALL[at].name();
        let length = name.len();
        table[length][counts[length]] = (name.as_bytes()[length - 1], name, FieldId::ALL[at]);
        counts[length] += 1;
        at += 1;
    }
    table
}

impl FieldId {
    fn bit(self) -> u64 {
        1 << (self as u8)
    }
}

/// A field of a head.
#[derive(Debug, Clone, Copy)]
struct Field {
    name: Span,
    value: Span,
    id: FieldId,
}

/// A field, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldRef<'a> {
    /// Its number.
    pub id: FieldId,
    /// Its name, in the case it came in.
    pub name: &'a str,
    /// Its value, without the blanks around it.
    pub value: &'a [u8],
}

/// The head of a request or a response, or trailers.
#[derive(Debug, Default)]
pub struct Head {
    /// All names and values, and the bytes of the first line.
    text: Vec<u8>,
    fields: Vec<Field>,
    /// Which known fields there are.
    present: u64,
    method: Method,
    method_text: Span,
    target: Span,
    version: Version,
    status: u16,
    reason: Span,
}

impl Head {
    /// Empties it, and keeps its memory for the next.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.present = 0;
        self.method = Method::default();
        self.method_text = Span::default();
        self.target = Span::default();
        self.version = Version::default();
        self.status = 0;
        self.reason = Span::default();
    }

    /// Frees its memory.
    pub fn shrink(&mut self) {
        *self = Self::default();
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The method as it is written.
    pub fn method_text(&self) -> &str {
        self.str(self.method_text)
    }

    /// Sets the method.
    pub fn set_method(&mut self, method: &str) {
        self.method = Method::of(method.as_bytes());
        self.method_text = self.add(method.as_bytes());
    }

    /// The request-target as it is written.
    pub fn target(&self) -> &str {
        self.str(self.target)
    }

    /// Sets the request-target.
    pub fn set_target(&mut self, target: &str) {
        self.target = self.add(target.as_bytes());
    }

    /// Replaces the first `end` bytes of the request-target.
    pub fn replace_target_start(&mut self, end: usize, by: &str) {
        let (start, old) = (self.text.len(), self.target);
        self.text.extend_from_slice(by.as_bytes());
        let rest = (old.start as usize + end).min(old.end as usize)..old.end as usize;
        self.text.extend_from_within(rest);
        self.target = span(start..self.text.len());
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Sets the version.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// A response's status; 0 for a request.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Sets the status.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// A response's reason phrase, which may be empty.
    pub fn reason(&self) -> &[u8] {
        self.bytes(self.reason)
    }

    /// Sets the reason phrase.
    pub fn set_reason(&mut self, reason: &[u8]) {
        self.reason = self.add(reason);
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The fields in their order.
    pub fn fields(&self) -> impl Iterator<Item = FieldRef<'_>> {
        self.fields.iter().map(|field| self.show(field))
    }

    /// Whether there is a field of this number; asking for [`FieldId::Other`] makes no sense.
    pub fn contains(&self, id: FieldId) -> bool {
        self.present & id.bit() != 0
    }

    /// The first value of a field.
    pub fn get(&self, id: FieldId) -> Option<&[u8]> {
        if !self.contains(id) {
            return None;
        }
        self.fields.iter().find(|field| field.id == id).map(|field| self.bytes(field.value))
    }

    /// All values of a field.
    pub fn get_all(&self, id: FieldId) -> impl Iterator<Item = &[u8]> {
        let fields = if self.contains(id) { self.fields.as_slice() } else { &[] };
        fields.iter().filter(move |field| field.id == id).map(|field| self.bytes(field.value))
    }

    /// The first value of the field of this name, in whatever case.
    pub fn get_named(&self, name: &str) -> Option<&[u8]> {
        self.fields().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// All values of the field of this name, in whatever case.
    pub fn get_all_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// Adds a field. Name and value must be valid; see [`crate::h1::is_field_name`] and [`crate::h1::is_field_value`].
    pub fn push(&mut self, name: &str, value: &[u8]) {
        let id = FieldId::of(name.as_bytes());
        let name = self.add(name.as_bytes());
        let value = self.add(value);
        self.push_spans(id, name, value);
    }

    /// Adds a field that is known, by its name in lower case. Its value must be valid; [`FieldId::Other`] adds nothing.
    pub fn push_known(&mut self, id: FieldId, value: &[u8]) {
        if id != FieldId::Other {
            let name = self.add(id.name().as_bytes());
            let value = self.add(value);
            self.push_spans(id, name, value);
        }
    }

    /// Replaces all values of a field by one, at the place of the first.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        let first = self.fields.iter().position(|field| self.str(field.name).eq_ignore_ascii_case(name));
        let Some(first) = first else { return self.push(name, value) };
        let value = self.add(value);
        self.fields[first].value = value;
        let mut index = 0;
        let text = &self.text;
        self.fields.retain(|field| {
            let keep = index <= first || !slice(text, field.name).eq_ignore_ascii_case(name.as_bytes());
            index += 1;
            keep
        });
    }

    /// Removes all fields of a number.
    pub fn remove(&mut self, id: FieldId) {
        if self.contains(id) {
            self.fields.retain(|field| field.id != id);
            self.present &= !id.bit();
        }
    }

    /// Removes all fields of a name, in whatever case.
    pub fn remove_named(&mut self, name: &str) {
        self.retain(|field| !field.name.eq_ignore_ascii_case(name));
    }

    /// Keeps only the fields that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(FieldRef<'_>) -> bool) {
        let text = &self.text;
        let mut present = 0;
        self.fields.retain(|field| {
            let kept = keep(FieldRef {
                id: field.id,
                name: str::from_utf8(slice(text, field.name)).unwrap_or_default(),
                value: slice(text, field.value),
            });
            if kept {
                present |= field.id.bit();
            }
            kept
        });
        self.present = present;
    }

    /// Gives fields the case of their names back, and their order: for each of `names` the first field of that name that
    /// has no place yet. What is not named follows as it stood; what is named and not there is passed over.
    pub fn arrange<'a>(&mut self, names: impl Iterator<Item = &'a [u8]>) {
        let mut placed = 0;
        for name in names {
            let found = self.fields[placed..].iter().position(|field| {
                let own = slice(&self.text, field.name);
                own.eq_ignore_ascii_case(name)
            });
            if let Some(offset) = found {
                self.fields[placed..=placed + offset].rotate_right(1);
                let own = self.fields[placed].name;
                // Of the same letters, so of the same length.
                self.text[own.start as usize..own.end as usize].copy_from_slice(name);
                placed += 1;
            }
        }
    }

    /// Numbers, names and values as bytes, for writing: nobody has to see again that names are ASCII.
    pub fn raw_fields(&self) -> impl Iterator<Item = (FieldId, &[u8], &[u8])> {
        self.fields.iter().map(|field| (field.id, self.bytes(field.name), self.bytes(field.value)))
    }

    /// How many bytes the target, and the names and values of all fields, have.
    pub fn size(&self) -> usize {
        let length = |span: Span| (span.end - span.start) as usize;
        length(self.target) + self.fields.iter().map(|field| length(field.name) + length(field.value)).sum::<usize>()
    }

    /// Makes it a copy of another.
    pub fn copy_from(&mut self, other: &Self) {
        self.text.clone_from(&other.text);
        self.fields.clone_from(&other.fields);
        self.present = other.present;
        self.method = other.method;
        self.method_text = other.method_text;
        self.target = other.target;
        self.version = other.version;
        self.status = other.status;
        self.reason = other.reason;
    }

    /// Begins a head whose text is all of `bytes`; what is where in them is told next, by ranges.
    pub(crate) fn begin(&mut self, bytes: &[u8]) {
        self.clear();
        self.text.extend_from_slice(bytes);
    }

    pub(crate) fn place_request(
        &mut self,
        method: std::ops::Range<usize>,
        target: std::ops::Range<usize>,
        version: Version,
    ) {
        self.method = Method::of(&self.text[method.clone()]);
        self.method_text = span(method);
        self.target = span(target);
        self.version = version;
    }

    pub(crate) fn place_status(&mut self, version: Version, status: u16, reason: std::ops::Range<usize>) {
        self.version = version;
        self.status = status;
        self.reason = span(reason);
    }

    pub(crate) fn place_field(&mut self, name: std::ops::Range<usize>, value: std::ops::Range<usize>) {
        let id = FieldId::of(&self.text[name.clone()]);
        self.push_spans(id, span(name), span(value));
    }

    fn push_spans(&mut self, id: FieldId, name: Span, value: Span) {
        self.present |= id.bit();
        self.fields.push(Field { name, value, id });
    }

    fn add(&mut self, bytes: &[u8]) -> Span {
        let start = self.text.len();
        self.text.extend_from_slice(bytes);
        span(start..self.text.len())
    }

    fn show(&self, field: &Field) -> FieldRef<'_> {
        FieldRef { id: field.id, name: self.str(field.name), value: self.bytes(field.value) }
    }

    fn bytes(&self, span: Span) -> &[u8] {
        slice(&self.text, span)
    }

    fn str(&self, span: Span) -> &str {
        // Methods, targets and names are ASCII; that was seen to when they were read.
        str::from_utf8(self.bytes(span)).unwrap_or_default()
    }
}

fn span(range: std::ops::Range<usize>) -> Span {
    // A head's size is bounded far below 4 GiB.
    Span { start: range.start as u32, end: range.end as u32 }
}

fn slice(text: &[u8], span: Span) -> &[u8] {
    &text[span.start as usize..span.end as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_order_and_case_and_are_found_in_any() {
        let mut head = Head::default();
        for (name, value) in [("Host", "a"), ("X-One", "1"), ("x-one", "2"), ("COOKIE", "c")] {
            head.push(name, value.as_bytes());
        }
        assert_eq!(head.get(FieldId::Cookie), Some(&b"c"[..]));
        assert_eq!(head.get_all_named("X-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
        head.set("x-ONE", b"3");
        let names: Vec<_> = head.fields().map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
        assert_eq!(names, [("Host", "a"), ("X-One", "3"), ("COOKIE", "c")].map(|(n, v)| (n.to_owned(), v.into())));
        head.remove(FieldId::Host);
        assert!(!head.contains(FieldId::Host) && head.contains(FieldId::Cookie));
        head.remove_named("cookie");
        assert!(!head.contains(FieldId::Cookie));
        head.set("New", b"n");
        assert_eq!(head.get_named("new"), Some(&b"n"[..]));
    }

    #[test]
    fn names_get_their_case_and_order_back() {
        let mut head = Head::default();
        for (name, value) in [("host", "a"), ("x-a", "1"), ("x-a", "2"), ("x-b", "3"), ("x-new", "4")] {
            head.push(name, value.as_bytes());
        }
        head.arrange(["X-A", "HOST", "gone", "X-b", "x-A"].map(str::as_bytes).into_iter());
        let fields: Vec<_> = head.fields().map(|field| (field.name, field.value)).collect();
        let expected = [("X-A", "1"), ("HOST", "a"), ("X-b", "3"), ("x-A", "2"), ("x-new", "4")];
        assert_eq!(fields, expected.map(|(name, value)| (name, value.as_bytes())));
        assert_eq!(head.get(FieldId::Host), Some(&b"a"[..]));
    }

    #[test]
    fn every_known_name_has_its_number_and_they_fit_one_word() {
        assert!((FieldId::Other as u8) < 64);
        for id in FieldId::ALL {
            for name in [id.name().to_owned(), id.name().to_uppercase()] {
                assert_eq!(FieldId::of(name.as_bytes()), *id, "{name}");
            }
            assert_eq!(FieldId::of(id.name().replacen(|_: char| true, "-", 1).as_bytes()), FieldId::Other, "{id:?}");
            let mut head = Head::default();
            head.push_known(*id, b"v");
            assert!(head.contains(*id) && head.get_named(id.name()) == Some(b"v"), "{id:?}");
        }
        assert_eq!(FieldId::of(&[b'x'; 300]), FieldId::Other);
        assert_eq!(FieldId::of(b"x-other"), FieldId::Other);
        assert_eq!(FieldId::of(b""), FieldId::Other);
    }
}
