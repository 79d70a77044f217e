//! The cluster's processes: they outlive the command that starts them.
//!
//! In: a name and a command line. Out: a file with the process's id and the time it started. Promise: an id that
//! the system has given to somebody else meanwhile is never signalled; each writes to a log of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end after SIGKILL; the kernel has its memory to free.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of a log is shown.
const SHOWN_LINES: usize = 12;

/// The processes of the cluster in `state`.
pub(super) struct Processes<'a> {
    pub(super) state: &'a Path,
}

impl Processes<'_> {
    /// Starts one, away from this terminal.
    pub(super) fn start(&self, name: &str, command: &mut Command) -> Result<()> {
        let log = self.log(name);
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let id = child.id();
        let born = start_time(id).with_context(|| format!("{name} ended at once; see {}", log.display()))?;
        fs::write(self.file(name), format!("{id} {born}\n"))?;
        // Who starts it may run on for long, such as a test: then its end has to be noticed there.
        std::thread::spawn(move || {
            let mut child = child;
            child.wait()
        });
        Ok(())
    }

    /// Its id, if it runs.
    pub(super) fn alive(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.file(name)).ok()?;
        let (id, born) = text.trim().split_once(' ')?;
        let id = id.parse().ok()?;
        (start_time(id)?.to_string() == born).then_some(id)
    }

    /// All that were started, running or not.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state.join("pids")).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Fails when one of them has ended, with the end of its log.
    pub(super) fn all_alive(&self) -> Result<()> {
        match self.names().into_iter().find(|name| self.alive(name).is_none()) {
            None => Ok(()),
            Some(name) => bail!("{name} ended; the end of its log:\n{}", self.tail(&name)),
        }
    }

    fn tail(&self, name: &str) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// Ends these at once, without a goodbye: nothing of theirs is needed any more.
    pub(super) fn stop(&self, names: &[&str]) -> Result<()> {
        for pid in names.iter().filter_map(|name| pid(self.alive(name)?)) {
            // It may end right now.
            let _ = kill_process(pid, Signal::KILL);
        }
        for name in names {
            let begun = Instant::now();
            while self.alive(name).is_some() {
                if begun.elapsed() > PATIENCE {
                    bail!("{name} does not end, even by SIGKILL");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            // It may never have been started.
            let _ = fs::remove_file(self.file(name));
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.join("pids").join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.state.join("logs").join(format!("{name}.log"))
    }
}

/// As the system's calls take it.
pub(super) fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// When a process started, in ticks since the machine did; `None` when it has ended.
pub(super) fn start_time(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let has_ended = matches!(fields.next()?, "Z" | "X") && !has_threads(id);
    if has_ended { None } else { fields.nth(18)?.parse().ok() }
}

/// Whether a process has threads beside its first. That one may have ended before the others, and until they have, too, the
/// process has its sockets.
fn has_threads(id: u32) -> bool {
    fs::read_dir(format!("/proc/{id}/task")).is_ok_and(|threads| threads.count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_first_thread_has_ended_is_still_there() {
        let script = "import ctypes, platform, threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n\
                      ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";
        let mut child = Command::new("python3").args(["-c", script]).spawn().unwrap();
        let begun = Instant::now();
        let is_zombie = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains(") Z ");
        while !is_zombie() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(start_time(child.id()).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(start_time(child.id()), None);
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let folder = std::env::temp_dir().join(format!("outrigger-xtask-{}", std::process::id()));
        for name in ["pids", "logs"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let processes = Processes { state: &folder };
        processes.start("sleep", Command::new("sleep").arg("600")).unwrap();
        let id = processes.alive("sleep").unwrap();
        assert!(processes.all_alive().is_ok());
        let file = folder.join("pids/sleep");
        let right = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{id} 1\n")).unwrap();
        assert_eq!(processes.alive("sleep"), None, "another process of that id");
        assert!(processes.all_alive().unwrap_err().to_string().contains("sleep ended"));
        fs::write(&file, right).unwrap();
        processes.stop(&["sleep", "never started"]).unwrap();
        assert_eq!(start_time(id), None);
        assert!(processes.names().is_empty());
        fs::remove_dir_all(folder).unwrap();
    }
}
