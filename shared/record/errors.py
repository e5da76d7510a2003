"""What goes wrong with the database of the record."""

from anabranch.shared.contracts.errors import AnabranchError


class RecordUnavailable(AnabranchError):
    """The database does not answer, or not in time, or has not the tables that are used. Trying again is safe."""


class RowsRefused(AnabranchError):
    """The database will never take these rows; nothing of their batch was written."""
