//! Which run of this machine it is: the kernel draws a number each time that it starts.

use std::path::Path;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A number that stays the same until the machine is started anew; `otherwise` where the kernel does not tell.
pub(crate) fn of_machine(otherwise: u64) -> u64 {
    read(Path::new(BOOT_ID)).unwrap_or(otherwise)
}

fn read(path: &Path) -> Option<u64> {
    parse(&std::fs::read_to_string(path).ok()?)
}

/// The two halves of the kernel's number, one over the other.
fn parse(text: &str) -> Option<u64> {
    let digits: String = text.trim().chars().filter(|&sign| sign != '-').collect();
    let whole = u128::from_str_radix(&digits, 16).ok()?;
    Some((whole >> 64) as u64 ^ whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_number_is_read_and_stays_the_same() {
        assert_eq!(parse("00000000-0000-0003-0000-000000000005\n"), Some(3 ^ 5));
        let mine = of_machine(1);
        assert_ne!(mine, 1, "this kernel tells");
        assert_eq!(mine, of_machine(2));
    }

    #[test]
    fn a_machine_that_does_not_tell_counts_as_started_anew_with_each_process() {
        assert_eq!(parse("none"), None);
        assert_eq!(parse(""), None);
        assert_eq!(read(Path::new("/nonexistent/boot_id")), None);
    }
}
