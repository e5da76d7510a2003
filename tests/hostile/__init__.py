"""Attacks on a running stack while another client works with it (docs/hunting.md)."""
