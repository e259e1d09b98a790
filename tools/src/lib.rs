//! The administrator's programs of QRBD: `qrbdadm` and `qrbd-load`.
//!
//! [`admin`] is `qrbdadm`, [`show`] renders reports, [`signature`] recognises what a disk holds, [`keygen`] makes the
//! cluster's key, [`load`] is the load generator that remembers.
#![forbid(unsafe_code)]

pub mod admin;
pub mod keygen;
pub mod load;
pub mod show;
pub mod signature;
