"""The `html` step type: extract with CSS selectors."""
