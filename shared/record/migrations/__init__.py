"""How the record's tables came to be what they are: each step up, and down again. Run by `anabranch db`."""
