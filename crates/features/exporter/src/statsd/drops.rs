//! Datagrams that the kernel dropped because its receive buffer was full.
//!
//! In: `/proc/net/udp` and `udp6`, at each scrape. Out: a counter. Promise: loss is
//! never silent; the counter keeps growing over a change of sockets.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use outrigger_telemetry::{Counter, Registry};

/// Follows the drops of one socket at a time.
pub(crate) struct KernelDrops {
    watched: Arc<Mutex<Watched>>,
}

struct Watched {
    counter: Counter,
    /// The socket's inode.
    inode: Option<u64>,
    /// Its drops that are in the counter already.
    counted: u64,
}

impl KernelDrops {
    pub(crate) fn new(registry: &Registry) -> Self {
        let counter = registry.counter(
            "outrigger_statsd_kernel_drops_total",
            "StatsD datagrams that the kernel dropped because the receive buffer was full; raise metrics.statsd.receiveBuffer.",
            &[],
        );
        let watched = Arc::new(Mutex::new(Watched { counter: counter.with(&[]), inode: None, counted: 0 }));
        let at_scrape = Arc::clone(&watched);
        registry.on_scrape(Box::new(move |_| lock(&at_scrape).update()));
        Self { watched }
    }

    /// Follows another socket from now on; call it while the former is still open.
    pub(crate) fn watch(&self, inode: Option<u64>) {
        let mut watched = lock(&self.watched);
        if watched.inode != inode {
            watched.update();
            (watched.inode, watched.counted) = (inode, 0);
        }
    }
}

impl Watched {
    fn update(&mut self) {
        let Some(inode) = self.inode else { return };
        let tables = ["/proc/net/udp", "/proc/net/udp6"];
        let drops = tables.iter().find_map(|table| find_drops(&fs::read_to_string(table).ok()?, inode));
        if let Some(drops) = drops {
            self.counter.add(drops.saturating_sub(self.counted));
            self.counted = drops;
        }
    }
}

fn lock(watched: &Mutex<Watched>) -> std::sync::MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The inode of a socket; its link in `/proc` leads there.
pub(crate) fn inode(socket: &impl AsRawFd) -> Option<u64> {
    let metadata = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    Some(metadata.ino())
}

/// Finds a socket's row in `/proc/net/udp`: the tenth column is the inode, the last one its drops.
fn find_drops(table: &str, inode: u64) -> Option<u64> {
    table.lines().skip(1).find_map(|row| {
        let mut columns = row.split_ascii_whitespace();
        let found: u64 = columns.nth(9)?.parse().ok()?;
        (found == inode).then(|| columns.next_back()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops             
  341: 0100007F:1FBD 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 81234 2 0000000000000000 17        
  342: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000   105        0 22222 2 0000000000000000 0         
";

    #[test]
    fn a_sockets_row_is_found_by_its_inode() {
        assert_eq!(find_drops(TABLE, 81234), Some(17));
        assert_eq!(find_drops(TABLE, 22222), Some(0));
        assert_eq!(find_drops(TABLE, 1), None);
        assert_eq!(find_drops("nonsense\nof some kind", 1), None);
    }

    #[test]
    fn real_drops_are_counted_over_a_change_of_sockets() {
        let registry = Registry::new(&Default::default(), 1);
        let drops = KernelDrops::new(&registry);
        let counter = lock(&drops.watched).counter.clone();
        let mut expected = 0;
        for _ in 0..2 {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            drops.watch(inode(&socket));
            let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            // Nobody reads, so what the buffer cannot hold is dropped.
            for _ in 0..100 {
                sender.send_to(&[b'x'; 60_000], socket.local_addr().unwrap()).unwrap();
            }
            registry.encode(outrigger_telemetry::Format::Text, &mut Vec::new());
            assert!(counter.value() > expected, "no drops were seen");
            expected = counter.value();
            drops.watch(None);
        }
    }
}
