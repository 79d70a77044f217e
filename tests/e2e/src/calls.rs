//! A client of gRPC's kind, frame by frame: one connection, call after call, trailers at the end of each.
//!
//! In: calls. Out: whether each was answered whole. Promise: does what HTTP/2 asks of a client and no more: it takes
//! GOAWAY and PING for what they are, and only what a server surely did not look at may be sent again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A connection that carries calls.
#[derive(Debug)]
pub struct Calls {
    stream: TcpStream,
    next: u32,
    /// The last stream the server will look at, once it said so.
    last: Option<u32>,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// With its trailers.
    Answered,
    /// The server did not look at it: it may be sent again on another connection.
    Unseen,
}

impl Calls {
    /// Connects by prior knowledge.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(port: u16) -> Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connection refused")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        let mut this = Self { stream, next: 1, last: None };
        this.send(SETTINGS, 0, 0, &[])?;
        Ok(this)
    }

    /// Whether the server wants further calls to go elsewhere.
    pub fn is_ending(&self) -> bool {
        self.last.is_some()
    }

    /// Calls `path` (at most 126 bytes) with an empty message.
    ///
    /// # Errors
    /// When it was not answered whole, though the server may have looked at it.
    pub fn call(&mut self, path: &str) -> Result<Called> {
        let id = self.next;
        self.next += 2;
        // POST and http, then literals without indexing (RFC 7541, 6.2.2).
        let mut head = vec![0x83, 0x86, 0x04, u8::try_from(path.len())?];
        head.extend_from_slice(path.as_bytes());
        head.extend_from_slice(b"\x01\x04shop\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
        self.send(HEADERS, END_HEADERS, id, &head)?;
        self.send(DATA, END_STREAM, id, &[0; 5])?;
        let (mut heads, mut data) = (0, 0);
        loop {
            let (kind, flags, stream, payload) = self.receive().with_context(|| format!("stream {id}"))?;
            let number = |at: usize| {
                payload.get(at..at + 4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
            };
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
                PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload)?,
                GOAWAY => {
                    let last = number(0).context("a GOAWAY without a stream")?;
                    self.last = Some(last);
                    if last < id {
                        return Ok(Called::Unseen);
                    }
                }
                RST_STREAM if stream == id => match number(0) {
                    Some(7) => return Ok(Called::Unseen),
                    code => bail!("the stream was reset: {code:?}"),
                },
                DATA if stream == id => {
                    data += payload.len();
                    let taken = u32::try_from(payload.len())?.to_be_bytes();
                    if !payload.is_empty() {
                        self.send(WINDOW_UPDATE, 0, 0, &taken)?;
                    }
                    ensure!(flags & END_STREAM == 0, "the answer has no trailers");
                }
                HEADERS if stream == id => {
                    heads += 1;
                    if flags & END_STREAM != 0 {
                        ensure!(heads == 2 && data > 0, "{heads} heads and {data} bytes");
                        return Ok(Called::Answered);
                    }
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        Ok(self.stream.write_all(&frame)?)
    }

    fn receive(&mut self) -> Result<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
    }
}
