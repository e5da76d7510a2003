"""The worker runtime, and one package per step type of the house."""
