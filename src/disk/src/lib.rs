//! Disk shell of QRBD: direct I/O through io_uring behind one trait
