//! Configuration of QRBD: the .res grammar and the typed model
