//! qrbdadm, the administrator's tool of QRBD
