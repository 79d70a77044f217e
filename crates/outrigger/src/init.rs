//! `outrigger init`: redirects a pod's connections to Outrigger, once, before it starts.
//!
//! In: flags, perhaps a command of Outrigger to go on with. Out: rules in the kernel, or as text, or a proof of them; an
//! exit code that says whose turn it is; or the command in our place, without any privilege. The work is in
//! `outrigger-intercept`.

use std::ffi::OsString;

use clap::{Args, ValueEnum};
use outrigger_intercept::{
    Cidr, Error, Filter, Inbound, Installed, Interface, Outbound, Outcome, Ports, Proof, Ruleset, Settings, TABLE, text,
};
use serde_json::{Value, json};

use crate::cli::Format;
use crate::{output, privileges};

pub(crate) const HELP: &str = "\
Runs in the pod's network namespace with the capability NET_ADMIN and nothing else, such as in an init container,
and ends. A second run replaces the rules in one step. Lists are separated by commas, and flags may be repeated.
What leaves out wins over what includes. Never redirected: UDP, ICMP, localhost, a pod's own calls to itself.

With a command, such as `outrigger init -- run -c FILE`, Outrigger makes the rules in its own container and needs no init
container: afterwards it becomes the first user of --proxy-uid, gives up every capability in every set, and goes on with
the command. For that it starts as root (`runAsUser: 0`) of another group (`runAsGroup: 65532`) and with NET_ADMIN,
SETUID and SETPCAP alone. Nothing from outside is read before.

Exit codes:
  0  done; with --verify: all that could be tried is proved
  1  the rules could not be changed
  2  the command line is wrong
  3  the capability NET_ADMIN is missing; with a command: SETUID or SETPCAP, or the group is root's
  4  the kernel lacks nf_tables, or its NAT
  5  the table `inet outrigger` was made by somebody else
  6  with --verify: a connection was not redirected as it should be, or none could be tried";

const OWN_PORTS: &str = "15000,15020,15021";

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Print the rules for `nft -f` instead of making them; needs no privilege
    #[arg(long, group = "action")]
    dry_run: bool,
    /// Remove the rules; nothing to remove is no error
    #[arg(long, group = "action")]
    undo: bool,
    /// Prove the rules that are there by a round trip, given the same flags as they were made with; before Outrigger starts
    #[arg(long, group = "action")]
    verify: bool,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Go on with this command of Outrigger, as the user of --proxy-uid and without any privilege
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "action")]
    command: Vec<OsString>,
    /// What to redirect
    #[arg(long, value_enum, default_value_t = Directions::Both)]
    direction: Directions,

    /// User that Outrigger runs as: its own connections are left alone. The application must run as another
    #[arg(
        long = "proxy-uid",
        value_name = "UID",
        value_delimiter = ',',
        default_value = "65532",
        help_heading = "Outrigger"
    )]
    proxy_uids: Vec<u32>,
    /// Group that Outrigger runs as: connections of this group are left alone, too
    #[arg(long = "proxy-gid", value_name = "GID", value_delimiter = ',', help_heading = "Outrigger")]
    proxy_gids: Vec<u32>,
    /// Port of the outbound listener
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = port, help_heading = "Outrigger")]
    outbound_listener: u16,
    /// Port of the inbound listener
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = port, help_heading = "Outrigger")]
    inbound_listener: u16,
    /// Ports that Outrigger serves itself (admin, metrics, health), beside its listeners'
    #[arg(long, value_name = "PORTS", value_delimiter = ',', default_value = OWN_PORTS, help_heading = "Outrigger")]
    own_ports: Vec<Ports>,

    /// Redirect only connections to these ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',', help_heading = "Connections from the application")]
    include_outbound_ports: Vec<Ports>,
    /// Leave connections to these ports alone
    #[arg(long, value_name = "PORTS", value_delimiter = ',', help_heading = "Connections from the application")]
    exclude_outbound_ports: Vec<Ports>,
    /// Redirect only connections to these networks or addresses
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Connections from the application")]
    include_outbound_cidrs: Vec<Cidr>,
    /// Leave connections to these networks or addresses alone
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Connections from the application")]
    exclude_outbound_cidrs: Vec<Cidr>,
    /// Redirect only connections that leave through these interfaces; `eth*` is all that begin so
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Connections from the application")]
    include_outbound_interfaces: Vec<Interface>,
    /// Leave connections through these interfaces alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Connections from the application")]
    exclude_outbound_interfaces: Vec<Interface>,
    /// Redirect only connections of these users
    #[arg(long, value_name = "UIDS", value_delimiter = ',', help_heading = "Connections from the application")]
    include_outbound_uids: Vec<u32>,
    /// Leave connections of these users alone
    #[arg(long, value_name = "UIDS", value_delimiter = ',', help_heading = "Connections from the application")]
    exclude_outbound_uids: Vec<u32>,
    /// Redirect DNS over TCP (port 53), too; DNS over UDP is never redirected
    #[arg(long, help_heading = "Connections from the application")]
    redirect_dns: bool,

    /// Redirect only connections to these ports
    #[arg(long, value_name = "PORTS", value_delimiter = ',', help_heading = "Connections to the application")]
    include_inbound_ports: Vec<Ports>,
    /// Leave connections to these ports alone
    #[arg(long, value_name = "PORTS", value_delimiter = ',', help_heading = "Connections to the application")]
    exclude_inbound_ports: Vec<Ports>,
    /// Redirect only connections from these networks or addresses
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Connections to the application")]
    include_inbound_cidrs: Vec<Cidr>,
    /// Leave connections from these networks or addresses alone
    #[arg(long, value_name = "CIDRS", value_delimiter = ',', help_heading = "Connections to the application")]
    exclude_inbound_cidrs: Vec<Cidr>,
    /// Redirect only connections that come in through these interfaces; `eth*` is all that begin so
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Connections to the application")]
    include_inbound_interfaces: Vec<Interface>,
    /// Leave connections through these interfaces alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Connections to the application")]
    exclude_inbound_interfaces: Vec<Interface>,
}

/// Which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Directions {
    Both,
    /// Only those to the application
    Inbound,
    /// Only those from the application
    Outbound,
}

/// Makes, prints, removes or proves the rules; gives the exit code.
pub(crate) fn init(args: &InitArgs) -> anyhow::Result<u8> {
    match act(args) {
        Ok(code) => Ok(code),
        Err(failure) => {
            let code = match failure {
                Failure::Rules(Error::Privilege) | Failure::Privileges(_) => 3,
                Failure::Rules(Error::NoNftables(_) | Error::NoNat { .. }) => 4,
                Failure::Rules(Error::Foreign) => 5,
                Failure::Rules(Error::TooMany(_)) | Failure::Conflict(_) => 2,
                Failure::Rules(_) | Failure::Output(_) => 1,
            };
            let error = anyhow::Error::from(failure);
            if args.format == Format::Json {
                let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
                print(&json!({ "result": "failed", "code": code, "error": error.to_string(), "causes": causes }))?;
            }
            output::error(&error);
            Ok(code)
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Rules(#[from] Error),
    #[error("{0}")]
    Conflict(String),
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
    #[error(transparent)]
    Output(#[from] anyhow::Error),
}

fn act(args: &InitArgs) -> Result<u8, Failure> {
    let json = args.format == Format::Json;
    if args.undo {
        let removed = outrigger_intercept::remove()?;
        let said = if removed { "removed" } else { "there were none" };
        say(json, &json!({ "result": if removed { "removed" } else { "absent" } }), &format!("rules: {said}\n"))?;
        return Ok(0);
    }
    let settings = args.settings()?;
    let ruleset = Ruleset::new(&settings)?;
    if args.dry_run {
        let text = text(&ruleset);
        say(json, &json!({ "result": "dry-run", "rules": ruleset.len(), "nft": text }), &text)?;
        return Ok(0);
    }
    if args.verify {
        return prove(json, &outrigger_intercept::verify(&settings)?);
    }
    let (result, said) = match outrigger_intercept::install(&ruleset)? {
        Installed::Fresh => ("installed", "made"),
        Installed::Replaced => ("replaced", "replaced"),
    };
    let value = json!({ "result": result, "table": format!("inet {TABLE}"), "rules": ruleset.len() });
    say(json, &value, &format!("rules: {said}, {} in the table `inet {TABLE}`\n", ruleset.len()))?;
    if args.command.is_empty() {
        return Ok(0);
    }
    let user = args.proxy_uids.first().copied().filter(|uid| *uid != 0);
    let user = user.ok_or_else(|| Failure::Conflict("--proxy-uid names root, as whom nothing may go on".to_owned()))?;
    privileges::drop_all(user)?;
    match privileges::execute_self(&args.command)? {}
}

/// Tells the proofs: 0 when what could be tried is proved, 6 otherwise.
fn prove(json: bool, proofs: &[Proof]) -> Result<u8, Failure> {
    let lines: Vec<(&str, &str, String)> = proofs
        .iter()
        .map(|proof| match &proof.outcome {
            Outcome::Proved(address) => {
                (proof.what, "proved", format!("a connection to {address} came to the listener"))
            }
            Outcome::Skipped(why) => (proof.what, "skipped", why.clone()),
            Outcome::Failed(how) => (proof.what, "failed", how.clone()),
        })
        .collect();
    let any = |wanted: &str| lines.iter().any(|(_, outcome, _)| *outcome == wanted);
    let proved = any("proved") && !any("failed");
    let members =
        lines.iter().map(|(what, outcome, detail)| json!({ "what": what, "outcome": outcome, "detail": detail }));
    let value =
        json!({ "result": if proved { "proved" } else { "not-proved" }, "proofs": members.collect::<Vec<_>>() });
    let text: String = lines.iter().map(|(what, outcome, detail)| format!("{what}: {outcome}: {detail}\n")).collect();
    say(json, &value, &text)?;
    Ok(if proved { 0 } else { 6 })
}

fn say(json: bool, value: &Value, text: &str) -> anyhow::Result<()> {
    if json { print(value) } else { output::print(text) }
}

fn print(value: &Value) -> anyhow::Result<()> {
    output::print(&format!("{value:#}\n"))
}

impl InitArgs {
    fn settings(&self) -> Result<Settings, Failure> {
        let filter = |include: &[Ports], exclude: &[Ports]| Filter { include: include.into(), exclude: exclude.into() };
        let outbound = Outbound {
            listener: self.outbound_listener,
            dns: self.redirect_dns,
            ports: filter(&self.include_outbound_ports, &self.exclude_outbound_ports),
            addresses: Filter {
                include: self.include_outbound_cidrs.clone(),
                exclude: self.exclude_outbound_cidrs.clone(),
            },
            interfaces: Filter {
                include: self.include_outbound_interfaces.clone(),
                exclude: self.exclude_outbound_interfaces.clone(),
            },
            uids: Filter { include: self.include_outbound_uids.clone(), exclude: self.exclude_outbound_uids.clone() },
        };
        let inbound = Inbound {
            listener: self.inbound_listener,
            own_ports: self.own_ports.clone(),
            ports: filter(&self.include_inbound_ports, &self.exclude_inbound_ports),
            addresses: Filter {
                include: self.include_inbound_cidrs.clone(),
                exclude: self.exclude_inbound_cidrs.clone(),
            },
            interfaces: Filter {
                include: self.include_inbound_interfaces.clone(),
                exclude: self.exclude_inbound_interfaces.clone(),
            },
        };
        if self.direction == Directions::Both && self.outbound_listener == self.inbound_listener {
            return Err(Failure::Conflict(format!(
                "--outbound-listener and --inbound-listener are both {}; give them different ports",
                self.inbound_listener
            )));
        }
        if let Some(uid) = self.include_outbound_uids.iter().find(|uid| self.proxy_uids.contains(uid)) {
            return Err(Failure::Conflict(format!(
                "--include-outbound-uids names {uid}, which is Outrigger's own user (--proxy-uid) and would call itself"
            )));
        }
        Ok(Settings {
            proxy_uids: self.proxy_uids.clone(),
            proxy_gids: self.proxy_gids.clone(),
            outbound: (self.direction != Directions::Inbound).then_some(outbound),
            inbound: (self.direction != Directions::Outbound).then_some(inbound),
        })
    }
}

fn port(word: &str) -> Result<u16, String> {
    word.parse().ok().filter(|port| *port > 0).ok_or_else(|| "is no port from 1 to 65535".to_owned())
}
