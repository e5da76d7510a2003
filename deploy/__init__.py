"""Where Anabranch runs."""
