"""Benchmarks: ratios to a floor that is measured in the same minute, never asserted in a timed test."""
