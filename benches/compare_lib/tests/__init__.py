"""Tests of what the comparison computes and shows: `benches/compare --self-test`."""
