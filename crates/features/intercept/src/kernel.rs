//! Puts the rules into the kernel, and takes them out.
//!
//! Promise: what is there and what is changed belong to one generation of the kernel's rules, so
//! that nobody's table slips in between; a batch is taken whole or not at all.

use std::io;

use rustix::io::Errno;

use crate::error::Error;
use crate::netlink::{Batch, Kind, MARK, NFPROTO_INET, NFPROTO_UNSPEC, Reply, Request, Socket, rule_expressions};
use crate::rules::{Chain, Hook, PRIORITY, Ruleset, TABLE};

/// How often somebody else's change may come between.
const MOST_TRIES: u32 = 10;

/// What was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// Nothing of ours.
    Fresh,
    /// A table of ours, which is replaced.
    Replaced,
}

/// Puts the rules into this network namespace, in the place of older ones of ours.
///
/// # Errors
/// When the kernel cannot or may not take them; then nothing has changed.
pub fn install(ruleset: &Ruleset) -> Result<Installed, Error> {
    change(|generation, present| Some(installation(ruleset, generation, present)))
        .map(|present| if present { Installed::Replaced } else { Installed::Fresh })
}

/// Takes our rules out of this network namespace. Whether there were any.
///
/// # Errors
/// When the kernel cannot or may not change them.
pub fn remove() -> Result<bool, Error> {
    change(|generation, present| {
        present.then(|| {
            let mut batch = Batch::begin(generation);
            delete_table(&mut batch);
            batch
        })
    })
}

/// Whether our rules are in this network namespace.
///
/// # Errors
/// When the kernel may not tell, or the table is not ours.
pub fn is_installed() -> Result<bool, Error> {
    change(|_, _| None)
}

/// Makes a change that depends on whether our table is there; tells whether it was.
fn change(make: impl Fn(u32, bool) -> Option<Batch>) -> Result<bool, Error> {
    let socket = Socket::open().map_err(no_netlink)?;
    for _ in 0..MOST_TRIES {
        let generation = generation(&socket)?;
        let present = table_is_there(&socket)?;
        let Some(batch) = make(generation, present) else { return Ok(present) };
        if send(&socket, batch)? {
            return Ok(present);
        }
    }
    Err(Error::Unsteady)
}

fn installation(ruleset: &Ruleset, generation: u32, present: bool) -> Batch {
    let mut batch = Batch::begin(generation);
    if present {
        delete_table(&mut batch);
    }
    batch.add(Kind::NewTable, NFPROTO_INET, "the table".to_owned(), |table| {
        table.text(1, TABLE).number(2, 0).comment(6, MARK);
    });
    for chain in &ruleset.chains {
        add_chain(&mut batch, chain);
    }
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            batch.add(Kind::NewRule, NFPROTO_INET, format!("the rule `{rule}` in `{}`", chain.name), |message| {
                message.text(1, TABLE).text(2, chain.name).nested(4, |list| rule_expressions(rule, list));
                if !rule.comment.is_empty() {
                    message.comment(7, rule.comment);
                }
            });
        }
    }
    batch
}

fn delete_table(batch: &mut Batch) {
    batch.add(Kind::DeleteTable, NFPROTO_INET, "the end of the old table".to_owned(), |table| {
        table.text(1, TABLE);
    });
}

fn add_chain(batch: &mut Batch, chain: &Chain) {
    const NF_ACCEPT: u32 = 1;
    batch.add(Kind::NewChain, NFPROTO_INET, format!("the chain `{}`", chain.name), |message| {
        message.text(1, TABLE).text(3, chain.name);
        let Some(hook) = chain.hook else { return };
        let number = match hook {
            Hook::Prerouting => 0,
            Hook::Output => 3,
        };
        message.text(7, "nat").number(5, NF_ACCEPT).nested(4, |hook| {
            hook.number(1, number).bytes(2, &PRIORITY.to_be_bytes());
        });
    });
}

fn generation(socket: &Socket) -> Result<u32, Error> {
    let request = Request::encode(Kind::GetGeneration, NFPROTO_UNSPEC, 1, |_| {});
    match ask(socket, &request)? {
        Ok(Reply::Generation(generation)) => Ok(generation),
        Ok(_) => Err(Error::Netlink(io::Error::new(io::ErrorKind::InvalidData, "no generation was told"))),
        // The subsystem is not there.
        Err(errno) => Err(Error::NoNftables(errno.into())),
    }
}

/// Whether our table is there; one of that name that is not ours is an error.
fn table_is_there(socket: &Socket) -> Result<bool, Error> {
    let request = Request::encode(Kind::GetTable, NFPROTO_INET, 2, |table| {
        table.text(1, TABLE);
    });
    match ask(socket, &request)? {
        Ok(Reply::Table { comment: Some(comment), .. }) if comment == MARK => Ok(true),
        Ok(Reply::Table { .. }) => Err(Error::Foreign),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::Refused { what: "to look for the table".to_owned(), source: errno.into() }),
        Ok(_) => Err(Error::Netlink(io::Error::new(io::ErrorKind::InvalidData, "no table was told"))),
    }
}

/// One question, one answer: what was asked for, or the kernel's `errno`.
fn ask(socket: &Socket, request: &[u8]) -> Result<Result<Reply, Errno>, Error> {
    socket.send(request).map_err(Error::Netlink)?;
    loop {
        for reply in socket.receive().map_err(Error::Netlink)? {
            match reply {
                Reply::Status { outcome: Err(Errno::PERM), .. } => return Err(Error::Privilege),
                Reply::Status { outcome: Err(errno), .. } => return Ok(Err(errno)),
                Reply::Status { outcome: Ok(()), .. } | Reply::Other => {}
                reply => return Ok(Ok(reply)),
            }
        }
    }
}

/// Sends a batch. `false` when the rules have changed since its generation.
fn send(socket: &Socket, batch: Batch) -> Result<bool, Error> {
    let (bytes, changes) = batch.end();
    socket.send(&bytes).map_err(Error::Netlink)?;
    let last = changes.len();
    loop {
        for reply in socket.receive().map_err(Error::Netlink)? {
            let Reply::Status { sequence, outcome } = reply else { continue };
            let change = sequence as usize;
            match outcome {
                Ok(()) if change == last => return Ok(true),
                Ok(()) => {}
                Err(errno) if errno.raw_os_error() == ERESTART => return Ok(false),
                Err(Errno::PERM) => return Err(Error::Privilege),
                Err(errno) => {
                    let what = change.checked_sub(1).and_then(|index| changes.get(index));
                    return Err(refused(what.map_or("the batch", String::as_str), errno));
                }
            }
        }
    }
}

/// The kernel's own ERESTART, which no program sees otherwise: the rules have another generation by now.
const ERESTART: i32 = 85;

fn refused(what: &str, errno: Errno) -> Error {
    let (what, source) = (what.to_owned(), io::Error::from(errno));
    match errno {
        // The kernel knows no such type of chain, or no such expression: the rest of them are always there.
        Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT => Error::NoNat { what, source },
        _ => Error::Refused { what, source },
    }
}

fn no_netlink(error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT) => Error::NoNftables(error),
        Some(Errno::PERM | Errno::ACCESS) => Error::Privilege,
        _ => Error::Netlink(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{Action, MOST_RULES, Match, Rule};
    use crate::settings::Cidr;

    #[test]
    fn the_largest_batch_fits_into_a_socket_of_the_usual_size() {
        // `net.core.wmem_default`, less what the kernel keeps for itself.
        const ROOM: usize = 212_992 - 1024;
        let network = Cidr { address: "fd00::".parse().unwrap(), prefix: 61 };
        let rule = Rule {
            matches: vec![Match::Destination(network)],
            action: Action::Goto("outbound_only_interfaces"),
            comment: "the inbound listener calls the application",
        };
        let chain = Chain { name: "outbound_only_interfaces", hook: None, rules: vec![rule; MOST_RULES] };
        let (bytes, changes) = installation(&Ruleset { chains: vec![chain] }, 1, true).end();
        assert_eq!(changes.len(), MOST_RULES + 3);
        assert!(bytes.len() < ROOM, "{} bytes", bytes.len());
    }
}
