//! A client of a running Outrigger's admin API, for the commands that ask it.
//!
//! In: where it listens (`--admin`, else the config, else the default), and a path. Out: the
//! answer, whole or piece by piece. Promise: when nobody is there, the error says where we
//! looked and how to look elsewhere; every wait but that of a stream ends.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use outrigger_config as config;
use outrigger_config::ListenAddress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Where `run` finds its config when it is told nothing else.
const CONFIG: &str = "/etc/outrigger/outrigger.yaml";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer's head; of a whole answer, all of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the largest whole answer.
const MOST_BODY: usize = 64 << 20;

/// Which Outrigger to ask.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// Its admin API: `http://127.0.0.1:15000`, `127.0.0.1:15000` or `unix:/path`; default: what the config says
    #[arg(long, value_name = "URL", value_parser = address)]
    pub(crate) admin: Option<ListenAddress>,
    /// The config file that says where its admin API listens [default: /etc/outrigger/outrigger.yaml, if there is one]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl AdminArgs {
    /// The config file, for commands that can do with that alone.
    pub(crate) fn path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| PathBuf::from(CONFIG))
    }
}

/// A running Outrigger, to be asked.
pub(crate) struct Admin {
    address: ListenAddress,
    runtime: Runtime,
}

impl Admin {
    /// Finds out where to ask.
    pub(crate) fn new(args: &AdminArgs) -> anyhow::Result<Self> {
        let address = match (&args.admin, &args.config) {
            (Some(address), _) => address.clone(),
            (None, Some(path)) => listen_address(path).with_context(|| format!("{} cannot be used", path.display()))?,
            (None, None) => listen_address(Path::new(CONFIG)).unwrap_or_else(|_| default_address()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address, runtime })
    }

    /// Where it is asked.
    pub(crate) fn place(&self) -> impl fmt::Display + '_ {
        &self.address
    }

    /// Runs what asks it.
    pub(crate) fn run<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    /// A whole answer. `accept` is the media type that is wanted.
    pub(crate) async fn fetch(&self, path: &str, accept: &str) -> anyhow::Result<Bytes> {
        let whole = async {
            let (_connection, response) = self.ask(path, accept).await?;
            match Limited::new(response.into_body(), MOST_BODY).collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) => bail!("the answer to {path} broke off: {error}"),
            }
        };
        let late = || format!("the Outrigger at {} did not answer in {} s", self.address, ANSWER_TIMEOUT.as_secs());
        tokio::time::timeout(ANSWER_TIMEOUT, whole).await.with_context(late)?
    }

    /// An answer as a whole; JSON, where there is a choice.
    pub(crate) fn get(&self, path: &str) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.run(self.fetch(path, "application/json"))?).into_owned())
    }

    /// A whole answer in JSON.
    pub(crate) fn json(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.get(path)?)?)
    }

    /// An answer piece by piece: `begun` when it begins, then `piece` for each, until one says that it is enough, or there
    /// are no more.
    pub(crate) fn stream(
        &self,
        path: &str,
        begun: impl FnOnce() -> anyhow::Result<()>,
        mut piece: impl FnMut(&[u8]) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let (_connection, response) = self.ask(path, "*/*").await?;
            begun()?;
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.context("the connection to Outrigger broke off")?;
                if let Ok(bytes) = frame.into_data()
                    && !piece(&bytes)?
                {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Asks, and sees to it that the answer is one. The connection is there as long as the first is.
    async fn ask(&self, path: &str, accept: &str) -> anyhow::Result<(JoinSet<()>, Response<Incoming>)> {
        let unreachable = || {
            format!(
                "cannot reach the admin API at {}: is Outrigger running? `--admin` or `-c` says where it listens",
                self.address
            )
        };
        match &self.address {
            ListenAddress::Ip(address) => {
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
                self.ask_over(stream.with_context(unreachable)?.with_context(unreachable)?, path, accept).await
            }
            ListenAddress::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.with_context(unreachable)?;
                self.ask_over(stream, path, accept).await
            }
        }
    }

    async fn ask_over<S>(
        &self,
        stream: S,
        path: &str,
        accept: &str,
    ) -> anyhow::Result<(JoinSet<()>, Response<Incoming>)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // What breaks is seen by who waits for the answer.
            let _ = connection.await;
        });
        let host = match &self.address {
            ListenAddress::Ip(address) => address.to_string(),
            ListenAddress::Unix(_) => "localhost".to_owned(),
        };
        let request = Request::get(path).header(header::HOST, host).header(header::ACCEPT, accept);
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?);
        let late = || format!("what listens at {} does not answer", self.address);
        let response = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.with_context(late)?;
        let response = response.with_context(|| format!("what listens at {} is no admin API", self.address))?;
        if response.status() == StatusCode::OK {
            return Ok((tasks, response));
        }
        let (status, place) = (response.status(), path.split('?').next().unwrap_or(path));
        ensure!(
            status != StatusCode::NOT_FOUND,
            "the Outrigger at {} has no {place}: its config has no section for it, or it is of another version",
            self.address
        );
        let body = Limited::new(response.into_body(), 4096).collect().await;
        let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()).unwrap_or_default();
        bail!("the Outrigger at {} refused ({}): {said}", self.address, status.as_u16());
    }
}

/// What a config says.
fn listen_address(path: &Path) -> anyhow::Result<ListenAddress> {
    match config::load(path) {
        Ok(loaded) => Ok(loaded.config.admin.listen.clone()),
        Err(diagnostics) => bail!("{}", diagnostics.render(false)),
    }
}

fn default_address() -> ListenAddress {
    config::Admin::default().listen
}

/// Reads `--admin`. Names are not resolved: the admin API listens on loopback only, and takes no other name.
fn address(text: &str) -> Result<ListenAddress, String> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    if let Some(port) = bare.strip_prefix("localhost:")
        && let Ok(port) = port.parse()
    {
        return Ok(ListenAddress::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    let help = "write `http://127.0.0.1:15000`, `127.0.0.1:15000` or `unix:/path`";
    if text.starts_with("unix:") { text.parse() } else { bare.parse() }.map_err(|_| help.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, read) in [
            ("http://127.0.0.1:15000", Some("127.0.0.1:15000")),
            ("http://127.0.0.1:15000/", Some("127.0.0.1:15000")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("localhost:15000", Some("127.0.0.1:15000")),
            ("http://[::1]:15000", Some("[::1]:15000")),
            ("unix:/run/outrigger/admin.sock", Some("unix:/run/outrigger/admin.sock")),
            ("https://127.0.0.1:15000", None),
            ("shop.example:15000", None),
            ("127.0.0.1", None),
            ("unix:admin.sock", None),
        ] {
            let found = address(text).ok().map(|address| address.to_string());
            assert_eq!(found.as_deref(), read, "{text}");
        }
    }
}
