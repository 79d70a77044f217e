//! Gives back memory that only the start needed.
//!
//! Pages of the executable stay in our resident set once they were touched, 64 KiB around
//! each touch, though they are the page cache's and can be had again at any time. A start
//! touches most of them: the parser of the config, templates, certificates, messages about
//! mistakes. Waiting for the first request takes a tenth of that (docs/adr/0019-memory-at-rest.md).

use std::fs;

/// Drops the executable's pages from our resident set. What is needed comes back by itself.
pub(crate) fn drop_executable_pages() {
    let Ok(maps) = fs::read_to_string("/proc/self/smaps") else { return };
    for (start, end) in clean_file_mappings(&maps) {
        // SAFETY: the range is a private mapping of a file with no page of our own in it (its
        // `Anonymous` is 0) and cannot be written to, so the kernel reads the same bytes from the file again.
        #[expect(unsafe_code, reason = "advice about a mapping is given by its address")]
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Mappings of files that are read-only and hold nothing of our own, from the text of /proc/self/smaps.
fn clean_file_mappings(maps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(candidate.take()),
            (Some(range), Some(flags)) if range.contains('-') => {
                let path = words.nth(3).unwrap_or_default();
                let clean = flags.starts_with("r-") && flags.ends_with('p') && path.starts_with('/');
                candidate = if clean { parse(range) } else { None };
            }
            _ => {}
        }
    }
    found
}

fn parse(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_untouched_read_only_mappings_of_files_are_dropped() {
        let rows = [
            ("1000-2000 r-xp 00000000 fe:00 5 /bin/outrigger", "0", true),
            ("2000-3000 r--p 00000000 fe:00 5 /bin/outrigger (deleted)", "0", true),
            ("3000-4000 r--p 00000000 fe:00 5 /bin/outrigger", "4", false),
            ("4000-5000 rw-p 00000000 fe:00 5 /bin/outrigger", "0", false),
            ("5000-6000 r--s 00000000 fe:00 5 /some/shared", "0", false),
            ("6000-7000 r-xp 00000000 00:00 0 [vdso]", "0", false),
            ("7000-8000 r--p 00000000 00:00 0", "0", false),
        ];
        let text: String = rows
            .iter()
            .map(|(head, anonymous, _)| format!("{head}\nRss: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr\n"))
            .collect();
        let expected: Vec<_> =
            rows.iter().filter(|row| row.2).filter_map(|row| parse(row.0.split(' ').next()?)).collect();
        assert_eq!(clean_file_mappings(&text), expected);
    }

    #[test]
    fn the_program_runs_on_with_its_pages_dropped() {
        drop_executable_pages();
        assert!(fs::read_to_string("/proc/self/maps").unwrap().contains("r-xp"));
    }
}
