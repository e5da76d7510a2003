"""The `simulate` step type: sleep, fail, return a value."""
