//! NBD protocol without I/O: server session, validator and a small client
