//! How a rollout goes: a bar on a terminal, a line for each change elsewhere, or an object in JSON for each change.

use std::io::{self, IsTerminal, Write};

use outrigger_rollout::Status;
use serde_json::json;

use crate::cli::Format;
use crate::output;
use crate::table::shown;

const WIDTH: usize = 24;

/// Shows a rollout as it changes.
pub(super) struct Progress {
    name: String,
    image: String,
    format: Format,
    /// Whether one line is written again and again.
    live: bool,
    said: String,
}

impl Progress {
    pub(super) fn new(name: &str, image: &str, format: Format, wait: bool) -> Self {
        let live = wait && format == Format::Text && io::stdout().is_terminal();
        Self { name: name.to_owned(), image: image.to_owned(), format, live, said: String::new() }
    }

    /// Shows it, if it is not as it was.
    pub(super) fn show(&mut self, status: &Status) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => json!({ "name": self.name, "image": self.image, "status": status }).to_string(),
            Format::Text if self.live => bar(&self.name, status),
            Format::Text => line(&self.name, &self.image, status),
        };
        if text == self.said {
            return Ok(());
        }
        let shown = if self.live { format!("\r\x1b[K{text}") } else { format!("{text}\n") };
        self.said = text;
        output::print(&shown)
    }

    /// Leaves the last line as it is.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        if self.live {
            io::stdout().write_all(b"\n")?;
        }
        Ok(())
    }
}

fn bar(name: &str, status: &Status) -> String {
    let (done, total) = (status.updated as usize, status.total.max(1) as usize);
    let full = (WIDTH * done / total).min(WIDTH);
    let under_way = (WIDTH * (done + status.rolling as usize)).div_ceil(total).clamp(full, WIDTH) - full;
    let bar = format!("{}{}{}", "#".repeat(full), ">".repeat(under_way), ".".repeat(WIDTH - full - under_way));
    // One line, whatever a message holds; a terminal's width is cut by most terminals themselves at 80.
    let pod = status.pods.first().map(|pod| format!("{}/{} {}", pod.namespace, pod.name, pod.about));
    let about = if status.phase.has_ended() { None } else { pod }.unwrap_or_else(|| status.message.clone());
    let about: String = shown(&about).chars().take(if status.phase.has_ended() { 400 } else { 70 }).collect();
    format!("{name} [{bar}] {}/{} {} {about}", status.updated, status.total, status.phase.name())
}

fn line(name: &str, image: &str, status: &Status) -> String {
    let Status { phase, updated, rolling, waiting, rolled_back, skipped, .. } = status;
    let mut text =
        format!("{name} to {image}: {}, {updated} updated, {rolling} on their way, {waiting} waiting", phase.name());
    if *rolled_back > 0 {
        text.push_str(&format!(", {rolled_back} rolled back"));
    }
    if *skipped > 0 {
        text.push_str(&format!(", {skipped} passed over"));
    }
    if !status.message.is_empty() {
        text.push_str(&format!("; {}", shown(&status.message)));
    }
    text
}

#[cfg(test)]
mod tests {
    use outrigger_rollout::Phase;

    use super::*;

    #[test]
    fn a_bar_is_full_at_the_end() {
        let status = |updated, rolling, phase| Status { updated, rolling, total: 8, phase, ..Status::default() };
        assert_eq!(bar("a", &status(2, 1, Phase::Rolling)), format!("a [######>>>{}] 2/8 Rolling ", ".".repeat(15)));
        assert!(bar("a", &status(8, 0, Phase::Completed)).contains(&"#".repeat(WIDTH)));
        assert!(bar("a", &Status::default()).contains(&".".repeat(WIDTH)), "nothing is known yet");
        let wild = Status { message: "a\x1b[31mb\n".to_owned(), ..status(0, 0, Phase::Paused) };
        assert!(!bar("a", &wild).contains(['\n', '\x1b']));
        assert!(
            line("a", "i:2", &wild)
                .starts_with("a to i:2: Paused, 0 updated, 0 on their way, 0 waiting; a\\u{1b}[31mb")
        );
    }
}
