//! The keeper: holds listening sockets between two workers.
//!
//! In: a path. Out: an exit code that tells what became of the sockets. Promise: one
//! thread, no runtime, about a megabyte; a client that is slow, silent or talks rubbish
//! is sent away and disturbs nobody; it always ends: when the next worker is ready, or
//! when its time is over.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use outrigger_config::{MetricsRegistry, OwnLog};
use outrigger_telemetry::Registry;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::PATIENCE;
use super::channel::{ChannelError, Inbox, send, trusted_peer};
use super::client::Passed;
use super::message::{Message, gather};
use super::stop_signals::StopSignals;
use crate::resident;
use crate::sockets::{SocketError, Sockets, is_listening};

/// Clients at a time; there is one worker that gives, and one that takes.
const MOST_CLIENTS: usize = 16;
/// How long one client that does not read may hold up the others.
const SEND: Duration = Duration::from_secs(1);

/// What a keeper needs to know.
pub struct KeeperOptions {
    /// Where it listens: `runtime.handover.socket` of the workers.
    pub socket: PathBuf,
    /// How long it holds sockets for a worker that does not come.
    pub wait: Duration,
    /// How long it waits to be given sockets.
    pub idle: Duration,
    /// How it logs.
    pub log: OwnLog,
}

/// How a keeper ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The next worker has the sockets.
    HandedOver,
    /// No worker came for the sockets; they are closed.
    Closed,
    /// There was nothing to hand over.
    NothingGiven,
}

/// Keeps sockets until they are handed over, or its time is over. Call it on the main thread, before any other thread is started.
///
/// The exit code is 0 when the next worker has the sockets, 1 when the keeper could not start, 3 when it closed
/// sockets that nobody came for, 4 when it was given none.
pub fn keep(options: KeeperOptions) -> i32 {
    let registry = Registry::new(&MetricsRegistry::default(), 1);
    let log = outrigger_telemetry::log::init(&options.log, &registry);
    let code = match Keeper::open(options) {
        Ok(mut keeper) => keeper.serve().code(),
        Err(error) => {
            tracing::error!(component = "keeper", error = %outrigger_telemetry::log::chain(&error), "the keeper cannot start");
            1
        }
    };
    log.flush();
    code
}

impl End {
    fn code(self) -> i32 {
        match self {
            Self::HandedOver => 0,
            Self::Closed => 3,
            Self::NothingGiven => 4,
        }
    }
}

/// Why a keeper could not start.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot take over signals")]
    Signals(#[source] io::Error),
}

struct Keeper {
    listener: UnixListener,
    path: PathBuf,
    signals: StopSignals,
    wait: Duration,
    clients: Vec<Client>,
    held: Vec<Passed>,
    stage: Stage,
    /// When the stage is over.
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No worker has given sockets yet.
    Empty,
    /// Nobody else has the sockets.
    Holding { since: Instant },
    /// A worker has copies of them and is not ready yet.
    Lent,
    /// The worker is ready.
    Done,
}

struct Client {
    stream: UnixStream,
    inbox: Inbox,
    /// Its process id, where it can be seen from here.
    pid: u32,
    /// When it has been silent for too long.
    until: Option<Instant>,
    /// What it has given so far.
    given: Vec<Passed>,
    /// It took the sockets.
    borrows: bool,
}

impl Keeper {
    fn open(options: KeeperOptions) -> Result<Self, OpenError> {
        let KeeperOptions { socket: path, wait, idle, .. } = options;
        let files = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
            tracing::warn!(component = "keeper", %error, "cannot raise the limit of open files");
        }
        let signals = StopSignals::take_over().map_err(OpenError::Signals)?;
        let listener = Sockets::new().listen_unix("--socket", &path, 0o600)?;
        tracing::info!(component = "keeper", socket = %path.display(), ?idle, ?wait, "waiting for a worker's sockets");
        let until = Instant::now() + idle;
        Ok(Self { listener, path, signals, wait, clients: Vec::new(), held: Vec::new(), stage: Stage::Empty, until })
    }

    fn serve(&mut self) -> End {
        loop {
            resident::drop_executable_pages();
            let ready = self.next();
            if ready.stop {
                tracing::info!(component = "keeper", "told to stop");
                return self.give_up();
            }
            if ready.newcomer {
                self.admit();
            }
            let clients = std::mem::take(&mut self.clients);
            for (index, client) in clients.into_iter().enumerate() {
                let spoke = ready.clients.get(index).copied().unwrap_or(false);
                if let Some(client) = self.attend(client, spoke) {
                    self.clients.push(client);
                }
            }
            if self.stage == Stage::Done {
                tracing::info!(
                    component = "keeper",
                    sockets = self.held.len(),
                    "handed over: the next worker is ready"
                );
                return End::HandedOver;
            }
            if self.until <= Instant::now() {
                return self.give_up();
            }
        }
    }

    /// The end without a worker that said it is ready.
    fn give_up(&self) -> End {
        let sockets = self.held.len();
        match self.stage {
            Stage::Empty => {
                tracing::warn!(component = "keeper", "no worker gave its sockets; nothing is kept");
                End::NothingGiven
            }
            Stage::Holding { since } => {
                let held = since.elapsed();
                tracing::error!(
                    component = "keeper",
                    sockets,
                    ?held,
                    "no worker came for the sockets; they are closed, and connections that wait on them are reset"
                );
                End::Closed
            }
            Stage::Lent | Stage::Done => {
                tracing::warn!(
                    component = "keeper",
                    sockets,
                    "the next worker has the sockets but has not become ready; they are left to it"
                );
                End::HandedOver
            }
        }
    }

    /// Waits until something happens, or is overdue.
    fn next(&self) -> Ready {
        let deadline = self.clients.iter().filter_map(|client| client.until).fold(self.until, Instant::min);
        let timeout = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        let mut waiting = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        waiting.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)));
        if let Err(error) = poll(&mut waiting, timeout.as_ref()) {
            if error != rustix::io::Errno::INTR {
                tracing::error!(component = "keeper", %error, "cannot wait");
                std::thread::sleep(Duration::from_millis(100));
            }
            return Ready::default();
        }
        let mut ready = waiting.iter().map(|one| !one.revents().is_empty());
        Ready { stop: ready.next() == Some(true), newcomer: ready.next() == Some(true), clients: ready.collect() }
    }

    fn admit(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(component = "keeper", %error, "cannot accept");
                    // Want of descriptors does not pass in an instant.
                    std::thread::sleep(Duration::from_millis(50));
                }
                return;
            }
        };
        // What is readable is there, so that a read does not wait; should it, then not for long.
        let _ = stream.set_read_timeout(Some(SEND)).and_then(|()| stream.set_write_timeout(Some(SEND)));
        match trusted_peer(&stream) {
            Ok(peer) if self.clients.len() < MOST_CLIENTS => {
                let until = Some(Instant::now() + PATIENCE);
                // 0: as the kernel says it of who is in another container.
                let pid = peer.pid.unwrap_or(0);
                let client = Client { stream, inbox: Inbox::default(), pid, until, given: Vec::new(), borrows: false };
                self.clients.push(client);
            }
            Ok(_) => refuse(&stream, "there are too many clients"),
            Err(error) => {
                tracing::warn!(component = "keeper", %error, "client refused");
                refuse(&stream, &error.to_string());
            }
        }
    }

    /// Hears a client out; gives it back when it stays.
    fn attend(&mut self, mut client: Client, spoke: bool) -> Option<Client> {
        let outcome = if spoke { self.hear(&mut client) } else { Ok(()) };
        let late = client.until.is_some_and(|until| until <= Instant::now());
        if late && outcome.is_ok() {
            tracing::warn!(component = "keeper", pid = client.pid, "client refused: it was silent for too long");
            return None;
        }
        match outcome {
            Ok(()) => return Some(client),
            Err(ChannelError::Closed) if !client.inbox.is_midway() && client.given.is_empty() => {}
            Err(error) => {
                tracing::warn!(component = "keeper", pid = client.pid, %error, "client refused");
                if let ChannelError::Protocol(error) = error {
                    refuse(&client.stream, &error.to_string());
                }
            }
        }
        if client.borrows && self.stage == Stage::Lent {
            tracing::warn!(
                component = "keeper",
                pid = client.pid,
                "the worker ended before it was ready; the sockets are kept for the next one"
            );
            self.hold();
        }
        None
    }

    fn hear(&mut self, client: &mut Client) -> Result<(), ChannelError> {
        client.inbox.fill(&client.stream)?;
        while let Some((message, descriptors)) = client.inbox.next()? {
            match message {
                Message::Give { from, sockets, more } => {
                    if self.stage != Stage::Empty {
                        return Err(not_now("another worker has handed its sockets over already"));
                    }
                    if !descriptors.iter().all(is_listening) {
                        return Err(not_now("one of the descriptors is no listening socket"));
                    }
                    let part = sockets.into_iter().zip(descriptors);
                    gather(&mut client.given, part.map(|(description, socket)| Passed { description, socket }))?;
                    client.until = Some(Instant::now() + PATIENCE);
                    if !more {
                        self.keep(client, &from)?;
                    }
                }
                Message::Take { from } => self.lend(client, &from)?,
                Message::Ready if client.borrows => self.stage = Stage::Done,
                _ => return Err(not_now("that is nothing a worker says to a keeper")),
            }
        }
        Ok(())
    }

    /// From here on the sockets are ours.
    fn keep(&mut self, client: &mut Client, from: &str) -> Result<(), ChannelError> {
        self.held = std::mem::take(&mut client.given);
        self.hold();
        for Passed { description, .. } in &self.held {
            tracing::debug!(component = "keeper", socket = %description, "kept");
        }
        tracing::info!(component = "keeper", sockets = self.held.len(), from, "keeping sockets for the next worker");
        // Whether the worker hears it or not: it closes its own sockets only when it does.
        Ok(send(&client.stream, &Message::Kept { sockets: self.held.len() }, &[])?)
    }

    fn hold(&mut self) {
        let now = Instant::now();
        self.stage = Stage::Holding { since: now };
        self.until = now + self.wait;
    }

    /// Gives a worker copies of the sockets.
    fn lend(&mut self, client: &mut Client, to: &str) -> Result<(), ChannelError> {
        let Stage::Holding { since } = self.stage else {
            // Nothing yet, or another one has them and may yet fail: it asks again.
            return Ok(send(&client.stream, &Message::Empty, &[])?);
        };
        let descriptions: Vec<_> = self.held.iter().map(|socket| socket.description.clone()).collect();
        let mut descriptors = self.held.iter().map(|socket| socket.socket.as_fd());
        for message in Message::split(&descriptions, |sockets, more| Message::Sockets { sockets, more }) {
            let part: Vec<_> = descriptors.by_ref().take(message.descriptors()).collect();
            send(&client.stream, &message, &part)?;
        }
        let held = since.elapsed();
        tracing::info!(
            component = "keeper",
            sockets = self.held.len(),
            to,
            ?held,
            "gave the sockets to the next worker"
        );
        client.borrows = true;
        client.until = None;
        self.stage = Stage::Lent;
        self.until = Instant::now() + self.wait;
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    stop: bool,
    newcomer: bool,
    clients: Vec<bool>,
}

fn not_now(reason: &'static str) -> ChannelError {
    ChannelError::Protocol(super::message::ProtocolError::Refused(reason))
}

fn refuse(stream: &UnixStream, reason: &str) {
    // It may not listen any more.
    let _ = send(stream, &Message::Refused { reason: reason.to_owned() }, &[]);
}
