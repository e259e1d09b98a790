//! The QRBD daemon.
