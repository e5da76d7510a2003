"""The `http` step type: call an endpoint."""
