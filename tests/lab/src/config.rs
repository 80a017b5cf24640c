// SPDX-License-Identifier: GPL-2.0

//! A function's configuration space as `lspci -xxxx` prints it, and what may differ in a guest.

use anyhow::{ensure, Context, Result};

/// Bits that the policy virtualises, so that a guest may read something else than the device has.
pub struct Virtual {
    offset: usize,
    bits: u32,
    why: &'static str,
}

/// Those of a NIC with power management at 0xc8, as QEMU's e1000e has it.
pub const E1000E: &[Virtual] = &[
    Virtual {
        offset: 0x04,
        bits: 0xfd43,
        why: "COMMAND: decoders, parity, SERR, INTx are the guest's own copy",
    },
    Virtual {
        offset: 0x3c,
        bits: 0x00ff,
        why: "the interrupt line is Xen's number",
    },
    Virtual {
        offset: 0xc8,
        bits: 0xf800_0000,
        why: "PMC: a guest cannot wake the host, no PME",
    },
];

/// Reads the hexadecimal lines.
pub fn parse(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let Some((at, values)) = line.split_once(": ") else {
            continue;
        };
        let Ok(at) = usize::from_str_radix(at, 16) else {
            continue;
        };
        ensure!(at == bytes.len(), "line {at:x} is not the next one");
        for value in values.split_whitespace() {
            bytes.push(u8::from_str_radix(value, 16).context("a byte")?);
        }
    }
    ensure!(
        matches!(bytes.len(), 256 | 4096),
        "{} bytes of configuration space",
        bytes.len()
    );
    Ok(bytes)
}

/// Differences that the list does not explain, one line for each dword.
pub fn differences(device: &[u8], guest: &[u8], list: &[Virtual]) -> Vec<String> {
    if device.len() != guest.len() {
        return vec![format!(
            "the device has {} bytes, the guest sees {}",
            device.len(),
            guest.len()
        )];
    }
    let dword = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0, |all, byte| (all << 8) | u32::from(*byte))
    };
    (0..device.len())
        .step_by(4)
        .filter_map(|at| {
            let (real, seen) = (dword(&device[at..at + 4]), dword(&guest[at..at + 4]));
            let excused = list
                .iter()
                .filter(|v| v.offset == at)
                .fold(0, |all, v| all | v.bits);
            ((real ^ seen) & !excused != 0)
                .then(|| format!("{at:#05x}: the device has {real:08x}, the guest sees {seen:08x}"))
        })
        .collect()
}

/// The list as text.
pub fn explain(list: &[Virtual]) -> String {
    let mut text = String::new();
    for v in list {
        text += &format!("      {:#04x} & {:08x}: {}\n", v.offset, v.bits, v.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut text = String::from("00:05.0 Class 0200: Device 8086:10d3\n");
        for (line, chunk) in bytes.chunks(16).enumerate() {
            let values: Vec<_> = chunk.iter().map(|b| format!("{b:02x}")).collect();
            text += &format!("{:02x}: {}\n", line * 16, values.join(" "));
        }
        text
    }

    #[test]
    fn a_dump_round_trips_and_a_cut_one_is_refused() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parse(&text(&bytes)).unwrap(), bytes);
        assert!(parse(&text(&bytes[..240])).is_err());
    }

    #[test]
    fn only_listed_bits_may_differ() {
        let device = vec![0; 256];
        for bit in 0..256 * 8 {
            let mut guest = device.clone();
            guest[bit / 8] ^= 1 << (bit % 8);
            let excused = E1000E
                .iter()
                .any(|v| bit / 32 * 4 == v.offset && v.bits & (1 << (bit % 32)) != 0);
            assert_eq!(
                differences(&device, &guest, E1000E).is_empty(),
                excused,
                "bit {bit}"
            );
        }
    }
}
