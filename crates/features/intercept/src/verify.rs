//! Proves the rules by a round trip: calls an address nobody has, and sees who answers.
//!
//! In: the settings the rules were made from. Out: for each direction and family whether a connection came to the
//! listener's port and knew where it had wanted to go. Promise: everything is opened and closed within this
//! network namespace; a connection that is not redirected goes to an address kept for documentation.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use rustix::process::{Uid, getegid, geteuid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::error::Error;
use crate::kernel::is_installed;
use crate::rules::{Hook, Packet, Ruleset};
use crate::settings::{Cidr, Filter, Interface, Ports, Settings};

/// A redirected connection stays within the kernel.
const PATIENCE: Duration = Duration::from_secs(2);
/// Addresses kept for documentation ([RFC 5737], [RFC 3849]): nobody has them.
///
/// [RFC 5737]: https://www.rfc-editor.org/rfc/rfc5737
/// [RFC 3849]: https://www.rfc-editor.org/rfc/rfc3849
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// Anybody's port to try when the settings name none.
const SOME_PORTS: [u16; 3] = [80, 8080, 40_000];
/// Anybody but the proxy.
const NOBODY: u32 = 65_534;

/// What was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// `outbound IPv4`, and so on.
    pub what: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A connection to this address came to the listener's port.
    Proved(SocketAddr),
    /// It could not be tried, and why.
    Skipped(String),
    /// The rules do not do it, and how that was seen.
    Failed(String),
}

/// Tries each direction with both families. Needs the listeners' ports free: it comes before Outrigger starts.
///
/// # Errors
/// When the kernel does not tell whether there are rules.
pub fn verify(settings: &Settings) -> Result<Vec<Proof>, Error> {
    let ruleset = Ruleset::new(settings)?;
    if !is_installed()? {
        let text = "there are no rules in this network namespace; run `outrigger init` first";
        return Ok(vec![Proof { what: "rules", outcome: Outcome::Failed(text.to_owned()) }]);
    }
    let mut proofs = Vec::new();
    for (what, nobody) in [("outbound IPv4", NOBODY_V4), ("outbound IPv6", NOBODY_V6)] {
        if settings.outbound.is_some() {
            proofs.push(Proof { what, outcome: outbound(settings, &ruleset, nobody) });
        }
    }
    for (what, nobody) in [("inbound IPv4", NOBODY_V4), ("inbound IPv6", NOBODY_V6)] {
        // From within the pod only the proxy's calls are sent through the inbound rules.
        if settings.inbound.is_some() {
            let outcome = match settings.outbound {
                Some(_) => inbound(settings, &ruleset, nobody),
                None => Outcome::Skipped("needs the outbound rules, to be tried from within the pod".to_owned()),
            };
            proofs.push(Proof { what, outcome });
        }
    }
    Ok(proofs)
}

/// An application's call to somewhere.
fn outbound(settings: &Settings, ruleset: &Ruleset, nobody: IpAddr) -> Outcome {
    let Some(outbound) = &settings.outbound else { return Outcome::Skipped("not redirected".to_owned()) };
    let own = match own_address(nobody) {
        Ok(own) => own,
        Err(why) => return Outcome::Skipped(why),
    };
    let interface = some_interface(&outbound.interfaces);
    let uids = [vec![geteuid().as_raw()], outbound.uids.include.clone(), vec![NOBODY]].concat();
    let addresses = some_addresses(&outbound.addresses, nobody);
    for uid in uids {
        for address in &addresses {
            for port in some_ports(&outbound.ports) {
                let gid = getegid().as_raw();
                let packet =
                    Packet { tcp: true, uid, gid, interface: &interface, source: own, destination: *address, port };
                if ruleset.decide(Hook::Output, &packet) == Some(outbound.listener) {
                    return round_trip(outbound.listener, SocketAddr::new(*address, port), uid);
                }
            }
        }
    }
    Outcome::Skipped("the settings leave no connection to try".to_owned())
}

/// A peer's call, tried as the proxy's call to its own pod, which goes through the same rules.
fn inbound(settings: &Settings, ruleset: &Ruleset, nobody: IpAddr) -> Outcome {
    let (Some(inbound), Some(uid)) = (&settings.inbound, settings.proxy_uids.first()) else {
        return Outcome::Skipped("not redirected".to_owned());
    };
    let own = match own_address(nobody) {
        Ok(own) => own,
        Err(why) => return Outcome::Skipped(why),
    };
    for port in some_ports(&inbound.ports) {
        let packet = Packet { tcp: true, uid: *uid, gid: 0, interface: "lo", source: own, destination: own, port };
        if ruleset.decide(Hook::Output, &packet) == Some(inbound.listener) {
            return round_trip(inbound.listener, SocketAddr::new(own, port), *uid);
        }
    }
    Outcome::Skipped("the settings leave no port to try".to_owned())
}

/// Connects to `wanted` as a user, and sees whether the connection comes to `port` of this pod.
fn round_trip(port: u16, wanted: SocketAddr, uid: u32) -> Outcome {
    let listener = match listen(port, wanted.is_ipv6()) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text = format!("port {port} is taken: try before Outrigger starts, and not while it runs");
            return Outcome::Failed(text);
        }
        Err(error) => return Outcome::Failed(format!("cannot listen on port {port}: {error}")),
    };
    // On a thread of its own, for the user is changed for good.
    let caller = thread::Builder::new().spawn(move || -> Result<TcpStream, Outcome> {
        if geteuid().as_raw() != uid {
            let user = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(user, user, user).map_err(|_| {
                Outcome::Skipped(format!("must call as user {uid}: run as that user, or with the capability SETUID"))
            })?;
        }
        TcpStream::connect_timeout(&wanted, PATIENCE)
            .map_err(|error| Outcome::Failed(format!("a connection to {wanted} did not come to port {port}: {error}")))
    });
    let outcome = caller.and_then(|caller| caller.join().map_err(|_| io::Error::other("the caller's thread panicked")));
    let stream = match outcome {
        Ok(Ok(stream)) => stream,
        Ok(Err(outcome)) => return outcome,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    match accept(&listener, &stream) {
        Ok(came) if original_destination(&came).is_some_and(|original| original == wanted) => Outcome::Proved(wanted),
        Ok(came) => {
            let known = original_destination(&came).map_or("nothing".to_owned(), |original| original.to_string());
            Outcome::Failed(format!(
                "a connection to {wanted} came to port {port}, but its original destination is {known}"
            ))
        }
        Err(error) => {
            Outcome::Failed(format!("a connection to {wanted} was taken by somebody else, not by port {port}: {error}"))
        }
    }
}

fn listen(port: u16, v6: bool) -> io::Result<TcpListener> {
    let (domain, any): (_, IpAddr) =
        if v6 { (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()) } else { (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()) };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.listen(8)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// The other end of `caller`'s connection; strangers' are let go.
fn accept(listener: &TcpListener, caller: &TcpStream) -> io::Result<TcpStream> {
    let (from, begun) = (caller.local_addr()?, Instant::now());
    loop {
        match listener.accept() {
            Ok((stream, peer)) if peer == from => {
                // It ends in a reset: a port with a connection in TIME_WAIT is not free for everybody.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                return Ok(stream);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if begun.elapsed() > PATIENCE {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    match stream.local_addr().ok()? {
        SocketAddr::V4(_) => sockopt::ip_original_dst(stream).ok().map(SocketAddr::V4),
        SocketAddr::V6(_) => sockopt::ipv6_original_dst(stream).ok().map(SocketAddr::V6),
    }
}

/// Our address towards the world, if the family is in use here. Sends nothing.
fn own_address(nobody: IpAddr) -> Result<IpAddr, String> {
    let any: IpAddr = if nobody.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((nobody, 80))?;
        socket.local_addr()
    });
    match found {
        Ok(address) if !address.ip().is_loopback() => Ok(address.ip()),
        Ok(_) => Err("there is no route out of this network namespace".to_owned()),
        Err(error) => Err(format!("there is no route out of this network namespace ({error})")),
    }
}

fn some_ports(filter: &Filter<Ports>) -> Vec<u16> {
    let mut ports: Vec<u16> = filter.include.iter().flat_map(|ports| [ports.first, ports.last]).collect();
    if ports.is_empty() {
        ports.extend(SOME_PORTS);
        // Just beside what is left out.
        ports.extend(filter.exclude.iter().filter_map(|ports| ports.last.checked_add(1)));
    }
    ports
}

fn some_addresses(filter: &Filter<Cidr>, nobody: IpAddr) -> Vec<IpAddr> {
    let included =
        filter.include.iter().map(|cidr| cidr.address).filter(|address| address.is_ipv4() == nobody.is_ipv4());
    [nobody].into_iter().chain(included).collect()
}

/// An interface that the settings do not leave out, if the true one is not known.
fn some_interface(filter: &Filter<Interface>) -> String {
    filter.include.first().map_or("outrigger-probe".to_owned(), |interface| interface.name.clone())
}
