//! What the commands print: results to standard output, errors to standard error.

use std::io::{self, IsTerminal, Write};

/// Version of this executable.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Writes to standard output; a reader that has gone (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints what is wrong with a config file, if anything is.
pub(crate) fn diagnostics(diagnostics: &outrigger_config::Diagnostics) -> io::Result<()> {
    if diagnostics.is_empty() {
        return Ok(());
    }
    io::stderr().write_all(format!("{}\n", diagnostics.render(stderr_takes_colour())).as_bytes())
}

/// Prints an error with its chain of causes.
pub(crate) fn error(error: &anyhow::Error) {
    let (bold, plain) = if stderr_takes_colour() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let mut text = format!("{bold}error:{plain} {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether standard error is a terminal that wants colour ([NO_COLOR]).
///
/// [NO_COLOR]: https://no-color.org
pub(crate) fn stderr_takes_colour() -> bool {
    io::stderr().is_terminal() && wants_colour()
}

/// Whether standard output is a terminal that wants colour.
pub(crate) fn stdout_takes_colour() -> bool {
    io::stdout().is_terminal() && wants_colour()
}

fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
