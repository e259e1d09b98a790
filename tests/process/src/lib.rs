//! Tests of the real programs as separate processes
