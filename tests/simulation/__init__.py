"""The whole system on an in-memory log and a virtual clock, with every fault drawn from a seed."""
