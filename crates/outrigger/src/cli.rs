//! The command line: verbs, flags and the help a stranger reads.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::admin::AdminArgs;
use crate::cluster::{self, CheckArgs};
use crate::connections::{self, ConnectionsArgs};
use crate::controller::{self, ControllerArgs};
use crate::expect::{self, TestArgs};
use crate::explain::{self, ExplainArgs};
use crate::fleet::{self, FleetArgs};
use crate::init::{self, InitArgs};
use crate::inject::{self, InjectArgs, UninjectArgs};
use crate::install::{self, InstallArgs, UninstallArgs};
use crate::output;
use crate::shop::ShopArgs;
use crate::tables::TableArgs;
use crate::tap::{self, TapArgs};
use crate::top::{self, TopArgs};
use crate::upgrade::{self, UpgradeArgs};
use crate::wait::{self, WaitArgs};

const EXIT_CODES: &str = "\
Exit codes:
  0        success
  1        the command failed, or the config is invalid
  2        the command line is wrong
  126/127  `run -- CMD`: CMD cannot be executed / was not found
  N        `run -- CMD`: CMD's own exit code, or 128 + the signal that ended it";

const KEEPER_HELP: &str = "\
Start it before the worker is told to stop; both name the same socket (`runtime.handover.socket` in the
worker's config), and run as the same user. It ends by itself.

Exit codes:
  0  the next worker has the sockets
  1  it could not start
  2  the command line is wrong
  3  no worker came for the sockets, or a signal came first: they were closed
  4  no worker gave any";

/// The commands as `--help` shows them: by who needs them.
const GROUPS: &[(&str, &[&str])] = &[
    ("In a pod, or beside an application", &["run", "init", "wait", "keeper", "demo"]),
    ("In a cluster", &["check", "install", "uninstall", "controller", "inject", "uninject", "upgrade", "fleet"]),
    ("What a running Outrigger does", &["tap", "top", "connections", "clusters", "routes", "listeners"]),
    ("Configs", &["validate", "config", "explain", "test", "schema"]),
    ("Others", &["completion", "version", "help"]),
];

/// Every Kubernetes sidecar in one process: mTLS proxy, log forwarder, secrets, metrics.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version = output::VERSION, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run beside an application, or start and supervise one: `run -c FILE -- CMD ARGS…`
    Run(RunArgs),
    /// Run a cluster's controller: the webhook that injects pods, and what looks after those it missed
    #[command(after_help = controller::HELP)]
    Controller(ControllerArgs),
    /// Show the main job on a small shop of two pods; needs nothing but this executable
    Demo(DemoArgs),
    /// Redirect the pod's TCP connections to Outrigger, by nftables rules; runs once, with NET_ADMIN
    #[command(after_help = init::HELP)]
    Init(Box<InitArgs>),
    /// Wait until a running Outrigger is ready: the barrier before the application
    #[command(after_help = wait::HELP)]
    Wait(WaitArgs),
    /// Put the sidecar into manifests: `inject -f FILE|-`; needs no cluster
    #[command(after_help = inject::HELP)]
    Inject(InjectArgs),
    /// Take the sidecar out of manifests again
    #[command(after_help = inject::UNINJECT_HELP)]
    Uninject(UninjectArgs),
    /// Print what a cluster needs to have Outrigger: `install | kubectl apply -f -`
    #[command(after_help = install::HELP)]
    Install(Box<InstallArgs>),
    /// Tell how a cluster is: `--pre` before an installation, else the installation itself
    #[command(after_help = cluster::HELP)]
    Check(CheckArgs),
    /// Print what to delete to have it no more
    #[command(after_help = install::UNINSTALL_HELP)]
    Uninstall(UninstallArgs),
    /// Take running pods to another image of the sidecar, in waves, while their applications go on
    #[command(after_help = upgrade::HELP)]
    Upgrade(Box<UpgradeArgs>),
    /// List a cluster's sidecars: image, version, config, identity, restarts, health
    #[command(after_help = fleet::HELP)]
    Fleet(FleetArgs),
    /// Hold the listening sockets while a `run` is replaced by the next, so that no connection is refused
    #[command(after_help = KEEPER_HELP)]
    Keeper(KeeperArgs),
    /// Show a running Outrigger's requests as they end: those that match
    #[command(after_help = tap::HELP)]
    Tap(Box<TapArgs>),
    /// Tell what becomes of a request, and why: route, filters, cluster, endpoints
    #[command(after_help = explain::HELP)]
    Explain(Box<ExplainArgs>),
    /// Run the `tests` of a config: requests, and what is expected to become of them
    #[command(after_help = expect::HELP)]
    Test(TestArgs),
    /// Show the routes of a running Outrigger, and how often each was taken
    Routes(TableArgs),
    /// Show the listeners of a running Outrigger, and their connections
    Listeners(TableArgs),
    /// Show a running Outrigger's rate, success and latency by route, cluster or peer, live
    #[command(after_help = top::HELP)]
    Top(TopArgs),
    /// List a running Outrigger's open connections: clients, peers, age, requests, state
    #[command(after_help = connections::HELP)]
    Connections(ConnectionsArgs),
    /// Check a config file; reports all mistakes at once
    Validate(ValidateArgs),
    /// Print the effective config with every default filled in and secrets masked
    Config(ConfigArgs),
    /// Show how the endpoints of a running Outrigger are: health, requests under way, latency
    Clusters(LiveArgs),
    /// Print the config's JSON Schema, or its reference as Markdown
    Schema(SchemaArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Print the version
    Version,
    /// The demo's sample program
    #[command(hide = true)]
    Shop(ShopArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The config file
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = "/etc/outrigger/outrigger.yaml")]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Stop as by SIGTERM when the process that started us ends, however it ends
    #[arg(long)]
    pub(crate) die_with_parent: bool,
    /// Command to start once everything is ready; its exit code becomes ours
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct KeeperArgs {
    /// The unix socket to meet the workers at; its folder must exist
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// How long sockets are held for a worker that does not come
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) wait: Duration,
    /// How long it waits to be given sockets
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub(crate) idle: Duration,
    /// How its own log is written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) log_format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// How mistakes are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// `text` is YAML
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct LiveArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// `text` is a table
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {
    /// `json` for editors and CI, `markdown` for people
    #[arg(long, value_enum, default_value_t = SchemaFormat::Json)]
    pub(crate) format: SchemaFormat,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell to print for
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End by itself after this long, then check everything shown; without it the demo runs until Ctrl-C
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Requests per second that the visitor sends
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) rate: u32,
    /// Folder to work in, kept afterwards; default: a fresh one under the temporary folder
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For machines
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaFormat {
    Json,
    Markdown,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<outrigger_config::Duration>().map(Duration::from).map_err(|error| error.to_string())
}

/// A name as the config takes them, which a query can hold as it is.
pub(crate) fn name(text: &str) -> Result<String, String> {
    text.parse::<outrigger_config::Name>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

/// The command line as described here, its commands in groups.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    let widest = command.get_subcommands().map(|one| one.get_name().len()).max().unwrap_or_default();
    // Only a terminal sees the styles.
    let mut list = String::new();
    for (title, names) in GROUPS {
        list.push_str(&format!("\x1b[1m\x1b[4m{title}:\x1b[0m\n"));
        for one in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = one.get_about().map(ToString::to_string).unwrap_or_default();
            list.push_str(&format!("  \x1b[1m{:<widest$}\x1b[0m  {about}\n", one.get_name()));
        }
        list.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{list}\x1b[1m\x1b[4mOptions:\x1b[0m\n{{options}}{{after-help}}"
    );
    Cli::command().help_template(template)
}

/// Reads the command line; ends the process when it is wrong, or asks for help.
pub(crate) fn parse() -> Cli {
    Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit())
}

/// Prints the completion script of a shell.
pub(crate) fn completion(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_shows_each_command_in_one_group() {
        let mut command = Cli::command();
        command.build();
        for one in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&one.get_name())).count();
            assert_eq!(groups, 1, "`{}` is in {groups} of GROUPS", one.get_name());
        }
        let help = super::command().render_help().to_string();
        assert!(help.contains("\n  install      Print what a cluster needs"), "{help}");
        assert!(
            help.contains("Usage: outrigger <COMMAND>\n") && help.contains("--version") && help.contains("Exit codes:"),
            "{help}"
        );
    }

    #[test]
    fn everything_behind_the_dashes_belongs_to_the_command() {
        let cli = Cli::try_parse_from(["outrigger", "run", "-c", "a.yaml", "--", "app", "-c", "b", "--help"]).unwrap();
        let Command::Run(args) = cli.command else { panic!("run was asked for") };
        assert_eq!(args.command, ["app", "-c", "b", "--help"]);
        assert_eq!(args.config.path, PathBuf::from("a.yaml"));
    }
}
