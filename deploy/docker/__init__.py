"""The image: which service it runs, and whether that is healthy."""
