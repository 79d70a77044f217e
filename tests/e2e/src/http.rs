//! The simplest HTTP/1.1 client that can be: independent of the code under test.
//!
//! In: a method, a URL with an IP address, headers and a body. Out: the whole response.
//! Promise: one connection a request, unless a test keeps one; every read and write has a timeout.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub body: String,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The body, if the status is 200.
    ///
    /// # Errors
    /// When it is any other.
    pub fn ok(self) -> Result<String> {
        if self.status == 200 { Ok(self.body) } else { bail!("status {}: {}", self.status, self.body) }
    }
}

/// Sends a request to `http://IP:PORT/path` and reads the response to its end.
///
/// # Errors
/// When the server cannot be reached, answers no HTTP, or is silent for 10 s.
pub fn request(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Response> {
    let rest = url.strip_prefix("http://").context("only http:// is spoken here")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address: SocketAddr = authority.parse().with_context(|| format!("{authority} is no IP:PORT"))?;
    let path = if path.is_empty() { "/" } else { path };
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("cannot reach {url}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text.push_str(&format!("host: {authority}\r\n"));
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(|| format!("{url} did not finish its answer"))?;
    parse(&bytes).with_context(|| format!("{url} answered what is not HTTP"))
}

/// A connection that is kept for many requests.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends a `GET` and reads its answer, which must have a `content-length`.
    ///
    /// # Errors
    /// When the connection was closed, or the answer says that it will be.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        write!(self.reader.get_mut(), "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(self.reader.read_until(b'\n', &mut head)? > 0, "the connection was closed");
        }
        let mut response = parse(&head)?;
        ensure!(response.header("connection") != Some("close"), "the connection will be closed");
        let length = response.header("content-length").context("an answer without a length")?.parse()?;
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        response.body = String::from_utf8_lossy(&body).into_owned();
        Ok(response)
    }
}

fn parse(bytes: &[u8]) -> Result<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").context("the headers do not end")?;
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?.parse()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status, headers, body: String::new() };
    let body = &bytes[end + 4..];
    let chunked = response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let body = if chunked { unchunk(body)? } else { body.to_vec() };
    response.body = String::from_utf8_lossy(&body).into_owned();
    Ok(response)
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").context("a chunk's size does not end")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        let chunk = rest.get(end + 2..end + 2 + size).context("a chunk is cut short")?;
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).context("a chunk is cut short")?;
    }
}
