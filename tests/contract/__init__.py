"""What an in-memory port and the real one must both do: one suite, inherited by both."""
