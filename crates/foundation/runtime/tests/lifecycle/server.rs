//! A component that serves TCP on every worker and counts datagrams: something to hand over.
//!
//! It drains as a proxy should: what waits in the backlog is served, and a request on an
//! open connection is answered with `connection: close`.

use std::time::Duration;

use outrigger_runtime::{BoxError, Context};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a drained connection is given for a request that is on its way.
const LINGER: Duration = Duration::from_secs(2);

/// Listens on `TEST_SERVER`, and for datagrams on the same address.
pub(crate) async fn run(ctx: &Context, note: fn(&str)) -> Result<(), BoxError> {
    let Ok(address) = std::env::var("TEST_SERVER") else { return Ok(()) };
    let address = address.parse()?;
    let sockets = ctx.sockets.listen_tcp_shared("server", address, ctx.workers.count())?;
    note(&format!("server has {} sockets", sockets.len()));
    let drain = CancellationToken::new();
    let tasks: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(index, socket)| {
            let drain = drain.clone();
            ctx.workers.spawn(index, move || serve(socket, drain))
        })
        .collect();
    let datagrams = UdpSocket::from_std(ctx.sockets.bind_udp("server", address, 65_536)?)?;
    ctx.status.ready();
    let mut buffer = [0; 64];
    loop {
        tokio::select! {
            () = ctx.stop.requested() => break,
            length = datagrams.recv(&mut buffer) => {
                note(&format!("datagram {}", String::from_utf8_lossy(&buffer[..length?])));
            }
        }
    }
    drain.cancel();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

async fn serve(socket: std::net::TcpListener, drain: CancellationToken) {
    let listener = TcpListener::from_std(socket).unwrap();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => {
                connections.spawn_local(connection(accepted.unwrap().0, drain.clone()));
            }
            () = drain.cancelled() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(mut stream: TcpStream, drain: CancellationToken) {
    let mut buffer = [0; 1024];
    let mut have = 0;
    loop {
        let drained = drain.is_cancelled();
        let read = tokio::select! {
            read = stream.read(&mut buffer[have..]) => read,
            () = drain.cancelled(), if !drained => continue,
            () = tokio::time::sleep(LINGER), if drained => return,
        };
        match read {
            Ok(length) if length > 0 => have += length,
            _ => return,
        }
        if !buffer[..have].ends_with(b"\r\n\r\n") {
            continue;
        }
        have = 0;
        let body = std::process::id().to_string();
        let last = if drain.is_cancelled() { "connection: close\r\n" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{last}\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() || !last.is_empty() {
            return;
        }
    }
}
