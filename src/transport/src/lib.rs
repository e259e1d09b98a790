//! QUIC transport of QRBD: authenticated sessions with ordered lanes
