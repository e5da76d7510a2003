"""Metrics of one service: one registry, names `anabranch_<service>_…`, label children looked up once."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ServiceMetrics:
    """Base of a service's metrics container: subclass it, declare metrics in `__init__`, give each fact a method.

    Labels come from enums and registered names, never from ids.
    """

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self.service = service
        self.registry = registry

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """Declare `anabranch_<service>_<name>_total`."""
        raise NotImplementedError

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        """Declare `anabranch_<service>_<name>`."""
        raise NotImplementedError

    def histogram(self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = ()) -> Histogram:
        """Declare `anabranch_<service>_<name>`, in seconds unless the name says otherwise."""
        raise NotImplementedError
