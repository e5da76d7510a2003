"""What the engine has not been sent yet: drawn cases, from the outside in (docs/hunting.md)."""
