//! The frames of HTTP/2 as they pass ([RFC 9113], 4.1), for those who count and do not read.
//!
//! In: the bytes of one direction, in any pieces. Out: the head of each frame, as soon as it is
//! there. Promise: nine bytes are kept and payloads are skipped unseen, so it costs next to nothing.
//!
//! [RFC 9113]: https://www.rfc-editor.org/rfc/rfc9113

/// What a client sends before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD: usize = 9;

/// A kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the RFC's names")]
pub enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// One that a receiver skips.
    Other,
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::RstStream,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => Self::Other,
        }
    }

    /// Its name, as the RFC writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "DATA",
            Self::Headers => "HEADERS",
            Self::Priority => "PRIORITY",
            Self::RstStream => "RST_STREAM",
            Self::Settings => "SETTINGS",
            Self::PushPromise => "PUSH_PROMISE",
            Self::Ping => "PING",
            Self::GoAway => "GOAWAY",
            Self::WindowUpdate => "WINDOW_UPDATE",
            Self::Continuation => "CONTINUATION",
            Self::Other => "unknown",
        }
    }
}

/// A frame's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Bytes behind the head.
    pub length: u32,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    flags: u8,
}

impl Frame {
    /// Whether it answers another: an acknowledged SETTINGS or PING.
    pub fn is_ack(self) -> bool {
        matches!(self.kind, Kind::Settings | Kind::Ping) && self.flags & 1 != 0
    }

    /// Whether its stream's sender ends with it.
    pub fn ends_stream(self) -> bool {
        matches!(self.kind, Kind::Data | Kind::Headers) && self.flags & 1 != 0
    }
}

/// Where in the bytes of one direction we are.
#[derive(Debug)]
pub struct Frames {
    head: [u8; HEAD],
    /// Bytes of `head` that are there.
    have: usize,
    /// Bytes to be skipped before the next head.
    skip: usize,
}

impl Frames {
    /// A client's direction, from its first byte.
    pub fn of_client() -> Self {
        Self { head: [0; HEAD], have: 0, skip: PREFACE.len() }
    }

    /// A server's direction, from its first byte.
    pub fn of_server() -> Self {
        Self { head: [0; HEAD], have: 0, skip: 0 }
    }

    /// Goes on by these bytes and tells the frames whose heads end within them.
    pub fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let count = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have < HEAD {
                return;
            }
            self.have = 0;
            let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
            self.skip = length as usize;
            // The first bit is reserved.
            let stream = u32::from_be_bytes([self.head[5] & 0x7f, self.head[6], self.head[7], self.head[8]]);
            tell(Frame { kind: Kind::of(self.head[3]), length, stream, flags: self.head[4] });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + payload, 0xff);
        bytes
    }

    #[test]
    fn every_frame_is_told_once_wherever_the_bytes_are_cut() {
        let mut bytes = PREFACE.to_vec();
        for (kind, flags, payload) in
            [(4, 0, 6), (1, 5, 30), (0, 0, 0), (0, 1, 300), (6, 1, 8), (0x42, 0, 3), (9, 4, 1)]
        {
            bytes.extend(frame(kind, flags, payload));
        }
        let told = |size: usize| {
            let (mut frames, mut told) = (Frames::of_client(), Vec::new());
            for piece in bytes.chunks(size) {
                frames.pass(piece, |frame| {
                    told.push((frame.kind.as_str(), frame.length, frame.is_ack(), frame.ends_stream()))
                });
            }
            told
        };
        let whole = told(bytes.len());
        assert_eq!(
            whole,
            [
                ("SETTINGS", 6, false, false),
                ("HEADERS", 30, false, true),
                ("DATA", 0, false, false),
                ("DATA", 300, false, true),
                ("PING", 8, true, false),
                ("unknown", 3, false, false),
                ("CONTINUATION", 1, false, false),
            ]
        );
        for size in 1..40 {
            assert_eq!(told(size), whole, "in pieces of {size}");
        }
    }
}
