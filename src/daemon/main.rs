//! The QRBD daemon.
fn main() {}
