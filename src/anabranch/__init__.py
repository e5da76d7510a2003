"""Anabranch: an asynchronous, event-driven pipeline engine on Apache Kafka.

The folders at the top of the repository are the subpackages of this one (see docs/adr/0002-one-import-root.md).
"""

__version__ = "0.1.0"
