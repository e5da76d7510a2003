"""HTTP in, requests out, reads."""
