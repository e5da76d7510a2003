"""The `anabranch` command and the async Python client it uses."""
