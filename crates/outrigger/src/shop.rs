//! The demo's sample program: a plain application as a team would have written it.
//!
//! In: plain HTTP on loopback, a password file, a folder for logs. Out: plain HTTP and
//! JSON lines in a log file that it rotates by rename. Promise: it knows nothing of
//! Outrigger (standard library only: no TLS, no metrics, no log shipping), so what the
//! demo shows of it was added from outside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A log file is renamed to `app.log.1` when it has grown to so many bytes.
const ROTATE_AT: u64 = 256 * 1024;
const ROTATED_FILES: u32 = 9;
/// Both bounds keep the sample from being the thing that breaks in a demo.
const MAX_HEADER_LINES: usize = 100;
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// How the sample program is called.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ShopArgs {
    /// The program's name in its log.
    #[arg(long)]
    name: String,
    /// Loopback address to serve on.
    #[arg(long)]
    listen: SocketAddr,
    /// File that holds the password the program cannot work without.
    #[arg(long)]
    password_file: PathBuf,
    /// Folder for `app.log`.
    #[arg(long)]
    log_dir: PathBuf,
    /// Where the next service is; absent in the last one.
    #[arg(long)]
    next: Option<SocketAddr>,
}

/// Serves until the process is ended.
pub(crate) fn serve(args: ShopArgs) -> anyhow::Result<()> {
    // The first instruction of the program: without its password it refuses to start.
    let started_with = read_password(&args.password_file)?;
    let log = Arc::new(Mutex::new(LogFile::open(&args.log_dir)?));
    write_line(&log, &format!(r#""event":"started","name":"{}","password_bytes":{}"#, args.name, started_with.len()));

    let listener = TcpListener::bind(args.listen)?;
    for stream in listener.incoming() {
        let (args, log) = (args.clone(), Arc::clone(&log));
        let stream = stream?;
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            // A peer that hangs up is everyday business.
            let _ = serve_connection(stream, &args, &log);
        })?;
    }
    Ok(())
}

fn serve_connection(stream: TcpStream, args: &ShopArgs, log: &Mutex<LogFile>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut responses = stream;
    let mut next = args.next.map(Next::new);
    while let Some(path) = read_request(&mut requests)? {
        let (status, body) = answer(args, next.as_mut());
        write_line(log, &format!(r#""event":"request","name":"{}","path":"{path}","status":{status}"#, args.name));
        let reason = if status == 200 { "OK" } else { "Error" };
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        responses.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?;
    }
    Ok(())
}

fn answer(args: &ShopArgs, next: Option<&mut Next>) -> (u16, String) {
    // Read for each request, so that a rotated password is picked up without a restart.
    if read_password(&args.password_file).is_err() {
        return (500, r#"{"error":"no password"}"#.to_owned());
    }
    match next.map(Next::items) {
        None => (200, r#"{"items":["anchor","compass","sextant"]}"#.to_owned()),
        Some(Ok(items)) => (200, format!(r#"{{"page":"front","backend":{items}}}"#)),
        Some(Err(error)) => (502, format!(r#"{{"error":"backend: {error}"}}"#)),
    }
}

/// Reads one request's head; `None` when the client has closed. The sample takes no bodies.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or("/").chars().filter(|c| c.is_ascii_graphic() && !"\"\\".contains(*c));
    let path = path.take(256).collect();
    read_headers(reader)?;
    Ok(Some(path))
}

/// Reads header lines up to the empty one; gives the content length.
fn read_headers(reader: &mut impl BufRead) -> io::Result<usize> {
    let mut length = 0;
    for _ in 0..MAX_HEADER_LINES {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(length);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    Err(io::Error::other("too many header lines"))
}

/// A keep-alive client of the next service, plain HTTP as the program has always spoken it.
struct Next {
    address: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Next {
    fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    fn items(&mut self) -> io::Result<String> {
        let reused = self.connection.is_some();
        match self.fetch() {
            // A kept connection may have been closed meanwhile; that is no error of the service.
            Err(_) if reused => self.fetch(),
            other => other,
        }
    }

    fn fetch(&mut self) -> io::Result<String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect_timeout(&self.address, IO_TIMEOUT)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(IO_TIMEOUT))?;
                BufReader::new(stream)
            }
        };
        connection.get_mut().write_all(b"GET /items HTTP/1.1\r\nHost: backend.shop\r\n\r\n")?;
        let mut status = String::new();
        connection.read_line(&mut status)?;
        let length = read_headers(&mut connection)?;
        let mut body = vec![0; length.min(64 * 1024)];
        io::Read::read_exact(&mut connection, &mut body)?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(status.trim_end().replace(['"', '\\'], "")));
        }
        self.connection = Some(connection);
        String::from_utf8(body).map_err(io::Error::other)
    }
}

fn read_password(path: &Path) -> anyhow::Result<String> {
    let password = fs::read_to_string(path)
        .map_err(|error| anyhow::anyhow!("cannot start without the password in {}: {error}", path.display()))?;
    anyhow::ensure!(!password.trim().is_empty(), "the password in {} is empty", path.display());
    Ok(password)
}

/// A numbered JSON log that is rotated by rename, as logrotate and most log libraries do.
struct LogFile {
    directory: PathBuf,
    file: File,
    bytes: u64,
    number: u64,
}

impl LogFile {
    fn open(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(directory.join("app.log"))?;
        let bytes = file.metadata()?.len();
        Ok(Self { directory: directory.to_owned(), file, bytes, number: 0 })
    }

    fn write(&mut self, members: &str) -> io::Result<()> {
        if self.bytes >= ROTATE_AT {
            self.rotate()?;
        }
        self.number += 1;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let line = format!("{{\"n\":{},\"at_ms\":{at},{members}}}\n", self.number);
        self.file.write_all(line.as_bytes())?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u32| self.directory.join(format!("app.log.{n}"));
        for n in (1..ROTATED_FILES).rev() {
            if numbered(n).exists() {
                fs::rename(numbered(n), numbered(n + 1))?;
            }
        }
        fs::rename(self.directory.join("app.log"), numbered(1))?;
        let number = self.number;
        *self = Self::open(&self.directory)?;
        self.number = number;
        Ok(())
    }
}

fn write_line(log: &Mutex<LogFile>, members: &str) {
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = log.write(members) {
        eprintln!("shop: cannot write the log: {error}");
    }
}
