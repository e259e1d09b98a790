//! Deterministic simulator of QRBD with its checkers and scenarios
