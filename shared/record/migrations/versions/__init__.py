"""One file per step, in the order of their numbers.

A step must leave the service of the version before able to read and write (expand, migrate, contract): it adds what
may be null or has a default; what nobody reads or writes any more goes in a release after the one that stopped using
it. docs/record.md says how.
"""
