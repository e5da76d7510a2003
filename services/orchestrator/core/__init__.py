"""PURE: `decide(run, message, at) -> Decision`. Imports `shared.contracts` only."""
