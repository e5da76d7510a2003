"""The `notify` step type: tell others, by a webhook or by e-mail."""
