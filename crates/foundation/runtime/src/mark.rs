//! Which config a process has, in sixteen characters: so that who wrote a file can ask whether it was taken over.
//!
//! In: the bytes of a file. Out: its mark, told at the health port with each answer about readiness. Promise: it says nothing of what the
//! file holds; the same bytes have the same mark in every version.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The header of an answer to `/readyz` that tells the mark of the config that runs, and behind `; refused=` that of the file
/// as it was last read, if it was refused.
pub const CONFIG_MARK: &str = "outrigger-config";

/// Files above this have none: what would be asked for comes by an annotation, which is far smaller.
const MOST_BYTES: u64 = 1 << 20;

/// The mark of a config's text ([FNV-1a], 64 bits).
///
/// [FNV-1a]: https://datatracker.ietf.org/doc/draft-eastlake-fnv/
pub fn config_mark(text: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", text.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The mark of a file, as it is now; empty when it has none.
pub(crate) fn of(path: &Path) -> String {
    let Ok(file) = File::open(path) else { return String::new() };
    let mut text = Vec::new();
    let fits = file.metadata().is_ok_and(|metadata| metadata.len() <= MOST_BYTES);
    let read = fits && file.take(MOST_BYTES + 1).read_to_end(&mut text).is_ok();
    if read && text.len() as u64 <= MOST_BYTES { config_mark(&text) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_never_change() {
        assert_eq!(config_mark(b""), "cbf29ce484222325");
        assert_eq!(config_mark(b"a"), "af63dc4c8601ec8c");
        assert_eq!(of(Path::new("/nowhere")), "");
    }
}
