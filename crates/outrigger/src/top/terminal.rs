//! The terminal while `top` has it.
//!
//! Promise: it is given back as it was, however we end: at the end of the value, at a panic
//! (before its message is printed), and at the signals that `top` waits for. Keys are read by a
//! thread, for to make a terminal's input non-blocking would make its output so, too.

use std::io::{self, Read, Write};
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::mpsc;

use super::screen::Key;

/// Alternate screen, no cursor, no line wrap; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Keys that wait to be taken; more are lost, for nobody types so fast.
const MOST_KEYS: usize = 64;

/// The terminal in raw mode.
pub(crate) struct Terminal {
    before: Arc<Mutex<Option<Termios>>>,
    keys: mpsc::Receiver<Key>,
}

impl Terminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When standard input is none.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let kept = Arc::new(Mutex::new(Some(before)));
        let (hook, for_panics) = (panic::take_hook(), Arc::clone(&kept));
        panic::set_hook(Box::new(move |info| {
            leave(&for_panics);
            hook(info);
        }));
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        let (sender, keys) = mpsc::channel(MOST_KEYS);
        let terminal = Self { before: kept, keys };
        std::thread::Builder::new().name("keys".to_owned()).spawn(move || read(&sender))?;
        write(ENTER)?;
        Ok(terminal)
    }

    /// The next key; `None` when there will be no more. Cancel-safe.
    pub(crate) async fn key(&mut self) -> Option<Key> {
        self.keys.recv().await
    }

    /// Its columns and lines.
    pub(crate) fn size(&self) -> (usize, usize) {
        match termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            // A terminal over a network may not say.
            _ => (80, 24),
        }
    }

    /// Shows a frame in one write, so that none is seen half.
    pub(crate) fn show(&self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (index, line) in lines.iter().enumerate() {
            text.push_str(if index > 0 { "\r\n" } else { "" });
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        leave(&self.before);
    }
}

/// Gives the terminal back, once.
fn leave(before: &Mutex<Option<Termios>>) {
    if let Some(before) = before.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that has gone needs nothing.
        let _ = write(LEAVE);
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Reads keys until the terminal, or who wants them, has gone.
fn read(keys: &mpsc::Sender<Key>) {
    let mut bytes = [0; 64];
    loop {
        let Ok(count @ 1..) = io::stdin().lock().read(&mut bytes) else { return };
        for key in decode(&bytes[..count]) {
            if let Err(mpsc::error::TrySendError::Closed(_)) = keys.try_send(key) {
                return;
            }
        }
    }
}

/// The keys in what a terminal sent at once. A sequence that came in two pieces is taken for an Escape and letters;
/// terminals send them in one.
fn decode(bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = bytes;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match first {
            3 => keys.push(Key::Interrupt),
            b'\r' | b'\n' => keys.push(Key::Enter),
            0x1b if matches!(rest.first(), Some(b'[' | b'O')) => {
                let end =
                    rest.iter().skip(1).position(|byte| matches!(byte, 0x40..=0x7e)).map_or(rest.len(), |at| at + 2);
                match &rest[..end] {
                    [_, b'A'] => keys.push(Key::Up),
                    [_, b'B'] => keys.push(Key::Down),
                    _ => {}
                }
                rest = &rest[end..];
            }
            0x1b => keys.push(Key::Escape),
            byte @ (b'\t' | b' '..=b'~') => keys.push(Key::Char(char::from(*byte))),
            _ => {}
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known() {
        for (bytes, keys) in [
            (&b"q"[..], &[Key::Char('q')][..]),
            (b"\x1b[A\x1bOBj", &[Key::Up, Key::Down, Key::Char('j')]),
            (b"\x1b", &[Key::Escape]),
            (b"\x1b[1;5C\r", &[Key::Enter]),
            (b"\x1b[", &[]),
            (b"\x03\t \xff", &[Key::Interrupt, Key::Char('\t'), Key::Char(' ')]),
        ] {
            assert_eq!(decode(bytes), keys, "{bytes:?}");
        }
    }
}
