"""What the services share: contracts (pure) and runtime (I/O without pipeline rules)."""
