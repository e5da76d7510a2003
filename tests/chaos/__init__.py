"""Kill tests: processes are killed and paused under load, and every accepted run must end right."""
