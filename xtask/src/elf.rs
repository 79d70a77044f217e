//! Tells whether an executable is fully static.
//!
//! In: the bytes of an ELF file (64-bit, little-endian: our targets). Out: nothing, or
//! what it needs from the system. Promise: never reads past the bytes given.

use anyhow::{Context, Result, bail};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;

/// Fails when the executable asks for a dynamic loader or a shared library.
pub(crate) fn require_static(elf: &[u8]) -> Result<()> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("it is no 64-bit little-endian ELF file");
    }
    let headers = usize::try_from(number(elf, 0x20, 8)?)?;
    let size = usize::try_from(number(elf, 0x36, 2)?)?;
    let count = usize::try_from(number(elf, 0x38, 2)?)?;
    for index in 0..count {
        let at = headers + index * size;
        match u32::try_from(number(elf, at, 4)?)? {
            PT_INTERP => bail!("it is linked dynamically (it names a program interpreter)"),
            PT_DYNAMIC => {
                let begin = usize::try_from(number(elf, at + 0x08, 8)?)?;
                let length = usize::try_from(number(elf, at + 0x20, 8)?)?;
                for entry in (begin..begin + length).step_by(16) {
                    if number(elf, entry, 8)? == DT_NEEDED {
                        bail!("it needs a shared library");
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn number(elf: &[u8], at: usize, length: usize) -> Result<u64> {
    let bytes = elf.get(at..at + length).context("the ELF file is cut short")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_and_dynamic_are_told_apart() {
        // xtask itself is built with the flags of the workspace, so it is static as well.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        require_static(&own).unwrap();
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(require_static(&shell).is_err());
        assert!(require_static(&own[..100]).is_err());
        assert!(require_static(b"#!/bin/sh\n").is_err());
    }
}
