"""Tracks every run through the log: the pure core and the partition task around it."""
