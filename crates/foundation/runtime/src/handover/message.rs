//! The messages between a worker and the keeper, as JSON.
//!
//! In: bytes of a peer, perhaps of another version. Out: a message, or why it is none.
//! Promise: a newer peer's additional members are no error, and a socket's description
//! passes through the keeper as it came.

use serde_json::{Value, json};

use super::MOST_SOCKETS;

/// What this build speaks. It changes only when an older peer could not understand.
const PROTOCOL: u64 = 1;
/// Sockets of one message; the kernel passes at most 253 descriptors at once.
pub(super) const MOST_IN_ONE: usize = 64;
/// Bytes of one socket's description.
const MOST_DESCRIPTION: usize = 512;
/// Bytes of a text in a message, where it comes from us.
const MOST_TEXT: usize = 256;

/// A message of either side.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Message {
    /// A worker gives sockets; `more` follow.
    Give { from: String, sockets: Vec<Value>, more: bool },
    /// The keeper has all that was given.
    Kept { sockets: usize },
    /// A worker asks for the sockets.
    Take { from: String },
    /// The keeper gives copies of them; `more` follow.
    Sockets { sockets: Vec<Value>, more: bool },
    /// The keeper has none.
    Empty,
    /// The worker that took the sockets accepts from all of them.
    Ready,
    /// The other side will not.
    Refused { reason: String },
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("the message is not JSON")]
    NotJson,
    #[error("the message has no `{0}`, or not of the right form")]
    Member(&'static str),
    #[error(
        "it speaks version {0} of the hand-over protocol, this one version {PROTOCOL}; use a keeper of the newer image"
    )]
    Version(u64),
    #[error("it says `{0}`, which is unknown here")]
    Type(String),
    #[error("it hands over more than {0} sockets")]
    TooMany(usize),
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    #[error("a message came with {found} descriptors instead of {expected}")]
    Descriptors { expected: usize, found: usize },
    #[error("{0}")]
    Refused(&'static str),
}

impl Message {
    /// How many descriptors come with it.
    pub(super) fn descriptors(&self) -> usize {
        match self {
            Self::Give { sockets, .. } | Self::Sockets { sockets, .. } => sockets.len(),
            _ => 0,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = match self {
            Self::Give { from, sockets, more } => {
                json!({ "type": "give", "from": cut(from), "sockets": sockets, "more": more })
            }
            Self::Kept { sockets } => json!({ "type": "kept", "sockets": sockets }),
            Self::Take { from } => json!({ "type": "take", "from": cut(from) }),
            Self::Sockets { sockets, more } => json!({ "type": "sockets", "sockets": sockets, "more": more }),
            Self::Empty => json!({ "type": "empty" }),
            Self::Ready => json!({ "type": "ready" }),
            Self::Refused { reason } => json!({ "type": "refused", "reason": cut(reason) }),
        };
        value["protocol"] = PROTOCOL.into();
        value.to_string().into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| ProtocolError::NotJson)?;
        let version = value["protocol"].as_u64().ok_or(ProtocolError::Member("protocol"))?;
        if version != PROTOCOL {
            return Err(ProtocolError::Version(version));
        }
        let kind = value["type"].as_str().ok_or(ProtocolError::Member("type"))?;
        let text = |name: &'static str| value[name].as_str().map(cut).ok_or(ProtocolError::Member(name));
        let more = || value["more"].as_bool().ok_or(ProtocolError::Member("more"));
        Ok(match kind {
            "give" => Self::Give { from: text("from")?, sockets: descriptions(&value)?, more: more()? },
            "kept" => {
                let count = value["sockets"].as_u64().and_then(|count| usize::try_from(count).ok());
                Self::Kept { sockets: count.ok_or(ProtocolError::Member("sockets"))? }
            }
            "take" => Self::Take { from: text("from")? },
            "sockets" => Self::Sockets { sockets: descriptions(&value)?, more: more()? },
            "empty" => Self::Empty,
            "ready" => Self::Ready,
            "refused" => Self::Refused { reason: text("reason")? },
            other => return Err(ProtocolError::Type(cut(other))),
        })
    }

    /// Sockets, split into messages of at most [`MOST_IN_ONE`].
    pub(super) fn split(sockets: &[Value], make: impl Fn(Vec<Value>, bool) -> Self) -> Vec<Self> {
        let parts: Vec<&[Value]> = sockets.chunks(MOST_IN_ONE).collect();
        let last = parts.len().saturating_sub(1);
        parts.into_iter().enumerate().map(|(index, part)| make(part.to_vec(), index < last)).collect()
    }
}

/// Adds what a message brought to what came before it.
pub(super) fn gather<T>(all: &mut Vec<T>, part: impl IntoIterator<Item = T>) -> Result<(), ProtocolError> {
    all.extend(part);
    if all.len() > MOST_SOCKETS { Err(ProtocolError::TooMany(MOST_SOCKETS)) } else { Ok(()) }
}

fn descriptions(message: &Value) -> Result<Vec<Value>, ProtocolError> {
    let sockets = message["sockets"].as_array().ok_or(ProtocolError::Member("sockets"))?;
    if sockets.len() > MOST_IN_ONE {
        return Err(ProtocolError::TooMany(MOST_IN_ONE));
    }
    let well = |socket: &Value| socket["address"].is_string() && socket.to_string().len() <= MOST_DESCRIPTION;
    if sockets.is_empty() || !sockets.iter().all(well) {
        return Err(ProtocolError::Member("sockets"));
    }
    Ok(sockets.clone())
}

/// A text of bounded length, without what could disturb a terminal.
fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn socket(address: &str) -> Value {
        json!({ "kind": "tcp", "address": address, "owner": "listener `in`" })
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        let sockets = vec![socket("127.0.0.1:80"), json!({ "address": "/run/x", "of a later version": [1, 2] })];
        for message in [
            Message::Give { from: "outrigger 1".to_owned(), sockets: sockets.clone(), more: true },
            Message::Kept { sockets: 3 },
            Message::Take { from: String::new() },
            Message::Sockets { sockets, more: false },
            Message::Empty,
            Message::Ready,
            Message::Refused { reason: "no".to_owned() },
        ] {
            assert_eq!(Message::decode(&message.encode()).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn what_is_no_message_is_told_as_such() {
        let many = json!({ "protocol": 1, "type": "sockets", "more": false, "sockets": vec![socket("a"); 65] });
        let long = json!({ "protocol": 1, "type": "sockets", "more": false, "sockets": [socket(&"x".repeat(600))] });
        for (text, expected) in [
            ("GET / HTTP/1.1", ProtocolError::NotJson),
            ("[]", ProtocolError::Member("protocol")),
            (r#"{"protocol":2,"type":"take"}"#, ProtocolError::Version(2)),
            (r#"{"protocol":1}"#, ProtocolError::Member("type")),
            (r#"{"protocol":1,"type":"steal"}"#, ProtocolError::Type("steal".to_owned())),
            (r#"{"protocol":1,"type":"take"}"#, ProtocolError::Member("from")),
            (r#"{"protocol":1,"type":"sockets","more":false,"sockets":[]}"#, ProtocolError::Member("sockets")),
            (r#"{"protocol":1,"type":"sockets","more":false,"sockets":[1]}"#, ProtocolError::Member("sockets")),
            (r#"{"protocol":1,"type":"sockets","sockets":[{"address":"a"}]}"#, ProtocolError::Member("more")),
            (&many.to_string(), ProtocolError::TooMany(64)),
            (&long.to_string(), ProtocolError::Member("sockets")),
        ] {
            assert_eq!(Message::decode(text.as_bytes()), Err(expected), "{text}");
        }
        let later = r#"{"protocol":1,"type":"take","from":"x","mood":"good"}"#;
        assert_eq!(Message::decode(later.as_bytes()), Ok(Message::Take { from: "x".to_owned() }));
    }

    #[test]
    fn many_sockets_are_split_and_the_largest_message_fits_a_frame() {
        let sockets = vec![socket(&"x".repeat(460)); 150];
        let parts = Message::split(&sockets, |sockets, more| Message::Sockets { sockets, more });
        let shape: Vec<(usize, bool)> = parts
            .iter()
            .map(|part| match part {
                Message::Sockets { sockets, more } => (sockets.len(), *more),
                _ => (0, false),
            })
            .collect();
        assert_eq!(shape, [(64, true), (64, true), (22, false)]);
        assert!(parts.iter().all(|part| part.encode().len() <= super::super::channel::MOST_BYTES));
        assert!(gather(&mut vec![(); MOST_SOCKETS], [()]).is_err());
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0usize..120, byte: u8) {
            let mut bytes = Message::Give { from: "a".to_owned(), sockets: vec![socket("[::]:1")], more: false }.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Message::decode(&bytes);
        }
    }
}
