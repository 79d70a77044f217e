//! `outrigger top`: rate, success and latency, live.
//!
//! In: `/metrics` of a running Outrigger, once a second. Out: a table that keys sort and drill
//! down; with `--once`, or where there is no terminal, one look. Promise: the terminal is given
//! back as it was; an Outrigger that goes away is told, and looked for again.

mod figures;
mod screen;
mod terminal;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{Admin, AdminArgs};
use crate::cli::Format;
use crate::output;
use figures::{By, Scrape};
use screen::{After, Screen};
use terminal::Terminal;

pub(crate) const HELP: &str = "\
Keys: 1-4 by route, cluster, peer, listener; Enter what is behind a row, Esc back; r s 5 6 9 f n sort; Space hold;
? help; q quit.

Examples:
  outrigger top
  kubectl exec -it shop-0 -c outrigger -- outrigger top --by peer
  outrigger top --once --format json --interval 10s | jq '.rows[] | select(.success < 0.99)'

Without a terminal, and with --once, two looks an interval apart are taken and what happened between is printed.

Exit codes:
  0  success, quit, or a signal
  1  Outrigger cannot be reached
  2  the command line is wrong";

/// Columns of a table that no terminal bounds.
const WIDE: usize = 160;

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// What rows stand for at first
    #[arg(long, value_enum, default_value_t = By::Route)]
    by: By,
    /// Time between looks, which the figures are of
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// How it is printed; `json` means `--once`
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

fn interval(text: &str) -> Result<Duration, String> {
    match crate::cli::duration(text)? {
        interval if interval < Duration::from_millis(100) => Err("it is shorter than 100ms".to_owned()),
        interval => Ok(interval),
    }
}

/// Shows what goes on.
pub(crate) fn top(args: &TopArgs) -> anyhow::Result<u8> {
    let admin = Admin::new(&args.admin)?;
    let live = !args.once && args.format == Format::Text && io::stdin().is_terminal() && io::stdout().is_terminal();
    let mut screen = Screen::new(admin.place().to_string(), args.by, live && output::stdout_takes_colour());
    // Should nobody be there, it is said before the terminal is taken.
    let first = admin.run(look(&admin))?;
    if live {
        admin.run(watch(&admin, &mut screen, first, args.interval))?;
        return Ok(0);
    }
    let since = Instant::now();
    std::thread::sleep(args.interval);
    let now = admin.run(look(&admin))?;
    let elapsed = since.elapsed();
    screen.take(&first, &now, elapsed);
    match args.format {
        Format::Json => output::print(&format!("{:#}\n", screen.json(elapsed, &now)))?,
        Format::Text => {
            let table: Vec<String> = screen.table(WIDE).iter().map(|line| line.trim_end().to_owned() + "\n").collect();
            output::print(&format!("{}\n{}", screen.summary(), table.concat()))?;
        }
    }
    Ok(0)
}

async fn look(admin: &Admin) -> anyhow::Result<Scrape> {
    let mut scrape = Scrape::parse(&admin.fetch("/metrics", "text/plain").await?)?;
    // Without a proxy there are none.
    if let Ok(listeners) = admin.fetch("/listeners", "application/json").await {
        scrape.limits(&serde_json::from_slice(&listeners)?);
    }
    Ok(scrape)
}

/// Shows one look after the other until it is enough.
async fn watch(admin: &Admin, screen: &mut Screen, first: Scrape, interval: Duration) -> anyhow::Result<()> {
    let mut ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .into_iter()
        .map(signal)
        .collect::<io::Result<Vec<_>>>()?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut terminal = Terminal::enter()?;
    let (mut before, mut now, mut elapsed) = (None, first, interval);
    let mut problem: Option<String> = None;
    let mut looked = Instant::now();
    let mut ticks = tokio::time::interval_at((looked + interval).into(), interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        screen.take(before.as_ref().unwrap_or(&now), &now, elapsed);
        if let Some(problem) = &problem {
            screen.fail(problem.clone());
        }
        let (columns, lines) = terminal.size();
        terminal.show(&screen.frame(columns, lines))?;
        tokio::select! {
            key = terminal.key() => match key.map(|key| screen.press(key)) {
                None | Some(After::Quit) => return Ok(()),
                Some(After::Show) => {}
            },
            _ = resized.recv() => {}
            () = any(&mut ends) => return Ok(()),
            _ = ticks.tick() => {
                if screen.hold {
                    continue;
                }
                // Keys wait for no answer.
                let answer = tokio::select! {
                    answer = look(admin) => answer,
                    () = any(&mut ends) => return Ok(()),
                };
                match answer {
                    Ok(new) => {
                        let at = Instant::now();
                        before = Some(std::mem::replace(&mut now, new));
                        problem = None;
                        elapsed = at - looked;
                        looked = at;
                    }
                    Err(error) => problem = Some(format!("{error:#}")),
                }
            }
        }
    }
}

async fn any(signals: &mut [tokio::signal::unix::Signal]) {
    std::future::poll_fn(|cx| {
        if signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
}
