"""Run events in, the read side out."""
