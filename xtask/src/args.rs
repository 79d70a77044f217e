//! The arguments of one verb, taken away as they are understood.
//!
//! In: the process's arguments. Out: flags, values and the rest. Promise: what nobody
//! took is an error, so a mistyped flag never runs as if it were not there.

use std::collections::VecDeque;

use anyhow::{Result, bail};

/// What is left of the command line.
pub(crate) struct Args {
    left: VecDeque<String>,
    /// All after `--`.
    passed: Vec<String>,
}

impl Args {
    pub(crate) fn from_env() -> Self {
        Self::from(std::env::args().skip(1))
    }

    fn from(all: impl Iterator<Item = String>) -> Self {
        let mut left: VecDeque<String> = all.collect();
        let split = left.iter().position(|arg| arg == "--").unwrap_or(left.len());
        let passed = left.split_off(split).into_iter().skip(1).collect();
        Self { left, passed }
    }

    /// The next argument, whatever it is.
    pub(crate) fn next(&mut self) -> Option<String> {
        self.left.pop_front()
    }

    /// Takes `name` away and tells whether it was there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let before = self.left.len();
        self.left.retain(|arg| arg != name);
        self.left.len() < before
    }

    /// Takes `name VALUE` or `name=VALUE` away.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<String>> {
        for index in 0..self.left.len() {
            if self.left[index] == name {
                self.left.remove(index);
                return match self.left.remove(index) {
                    Some(value) => Ok(Some(value)),
                    None => bail!("`{name}` needs a value"),
                };
            }
            if let Some(value) = self.left[index].strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                let value = value.to_owned();
                self.left.remove(index);
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Everything else, and everything after `--`.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        self.left.drain(..).chain(self.passed.drain(..)).collect()
    }

    /// Everything after `--`.
    pub(crate) fn passed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.passed)
    }

    /// Refuses what is still there.
    pub(crate) fn done(&self) -> Result<()> {
        match self.left.front().or(self.passed.first()) {
            None => Ok(()),
            Some(unknown) => bail!("`{unknown}` is not understood here; add --help for what is"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::from(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn takes_flags_and_values() {
        let mut args = args("test --fast --only unit --for=5s -- a --fast");
        assert_eq!(args.next().as_deref(), Some("test"));
        assert!(args.flag("--fast"));
        assert_eq!(args.value("--only").unwrap().as_deref(), Some("unit"));
        assert_eq!(args.value("--for").unwrap().as_deref(), Some("5s"));
        assert_eq!(args.value("--none").unwrap(), None);
        assert_eq!(args.passed(), ["a", "--fast"]);
        args.done().unwrap();
    }

    #[test]
    fn refuses_what_nobody_took() {
        assert!(args("--oops").done().is_err());
        assert!(args("-- x").done().is_err());
        assert!(args("--only").value("--only").is_err());
    }
}
