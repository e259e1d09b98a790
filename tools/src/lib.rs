//! The administrator's programs of QRBD: `qrbdadm` and `qrbd-load`.
//!
//! [`admin`] is `qrbdadm`, [`show`] renders reports, [`signature`] recognises what a disk holds, [`keygen`] makes the
//! cluster's key, [`load`] is the load generator that remembers.
#![forbid(unsafe_code)]

/// `println!` that does not mind a reader who went away: what the program does must not depend on it.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($argument)*);
    }};
}

/// `print!` that does not mind a reader who went away.
#[macro_export]
macro_rules! put {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = write!(std::io::stdout(), $($argument)*);
    }};
}

/// `eprintln!` that does not mind a reader who went away.
#[macro_export]
macro_rules! complain {
    ($($argument:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

pub mod admin;
pub mod keygen;
pub mod load;
pub mod show;
pub mod signature;
