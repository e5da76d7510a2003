"""I/O toolkit without pipeline rules: kafka, redis, settings, log, metrics, tracing, lifecycle."""
