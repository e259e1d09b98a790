//! Error numbers of the transmission phase. Owns the closed set of `doc/proto.md`, "Error values", and the mapping from
//! Linux numbers; which error answers which bad request is decided in `server::request`.

use std::fmt;

/// An error number that a reply may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a change of a read-only export.
    Eperm = 1,
    /// Input/output error.
    Eio = 5,
    /// Cannot allocate memory. Servers avoid it.
    Enomem = 12,
    /// Invalid argument.
    Einval = 22,
    /// No space left, also: write beyond the end.
    Enospc = 28,
    /// Value too large: only for DF reads and oversized requests without payload.
    Eoverflow = 75,
    /// Not supported: only for a fast zero that would be slow.
    Enotsup = 95,
    /// The server is stopping.
    Eshutdown = 108,
}

impl Errno {
    const ALL: [Self; 8] = [
        Self::Eperm,
        Self::Eio,
        Self::Enomem,
        Self::Einval,
        Self::Enospc,
        Self::Eoverflow,
        Self::Enotsup,
        Self::Eshutdown,
    ];

    /// The number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The error of a reply; `None` for 0. Numbers outside the set mean `EINVAL`, as the spec asks clients to read them.
    pub fn from_wire(number: u32) -> Option<Self> {
        if number == 0 {
            return None;
        }
        Some(
            Self::ALL
                .into_iter()
                .find(|errno| errno.number() == number)
                .unwrap_or(Self::Einval),
        )
    }

    /// The reply for a failed system call, from its Linux number. `ENOTSUP` is never the result: the spec reserves it for
    /// fast zeroes, so a server answers it there by name.
    pub fn from_linux(number: i32) -> Self {
        match number {
            1 | 13 | 30 => Self::Eperm,    // EPERM, EACCES, EROFS
            12 => Self::Enomem,            // ENOMEM
            22 => Self::Einval,            // EINVAL
            27 | 28 | 122 => Self::Enospc, // EFBIG, ENOSPC, EDQUOT
            108 => Self::Eshutdown,        // ESHUTDOWN
            _ => Self::Eio,
        }
    }

    /// The name in the spec.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Eio => "EIO",
            Self::Enomem => "ENOMEM",
            Self::Einval => "EINVAL",
            Self::Enospc => "ENOSPC",
            Self::Eoverflow => "EOVERFLOW",
            Self::Enotsup => "ENOTSUP",
            Self::Eshutdown => "ESHUTDOWN",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_the_wire() {
        for errno in Errno::ALL {
            assert_eq!(Errno::from_wire(errno.number()), Some(errno));
        }
    }

    #[test]
    fn zero_is_no_error_and_foreign_numbers_mean_einval() {
        assert_eq!(Errno::from_wire(0), None);
        assert_eq!(Errno::from_wire(2), Some(Errno::Einval));
        assert_eq!(Errno::from_wire(u32::MAX), Some(Errno::Einval));
    }

    #[test]
    fn quota_and_file_size_errors_become_enospc() {
        for number in [27, 28, 122] {
            assert_eq!(Errno::from_linux(number), Errno::Enospc);
        }
    }

    #[test]
    fn a_failed_system_call_never_becomes_enotsup() {
        assert!((0..200).all(|number| Errno::from_linux(number) != Errno::Enotsup));
    }
}
