//! Control-socket messages shared by the daemon and the tools
