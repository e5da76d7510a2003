"""What the gateway counts."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from prometheus_client import CollectorRegistry

from anabranch.services.gateway.route_classes import CLASSES, UNMATCHED, RouteClass
from anabranch.shared.contracts.limits import MAX_STEP_TYPES
from anabranch.shared.runtime.metrics import AtMost, OneOf, ServiceMetrics

_MAX_PARTITIONS: Final = 1_000  # of the inbox, each with a series of its own

_METHODS: Final = OneOf("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_WAITING: Final = "?wait"  # added to the route of a request that asks to wait: how long it takes says nothing of us
_ROUTES: Final = OneOf(
    *sorted({path for _, path in CLASSES} | {UNMATCHED} | {"/v1/runs" + _WAITING, "/v1/runs/{id}" + _WAITING})
)
_STATUSES: Final = OneOf(*(int(status) for status in HTTPStatus))
_CACHES: Final = OneOf("definitions", "runs", "questions")
_REFUSALS: Final = OneOf(
    "inbox_lag", "large_bodies", "no_command_topic", "no_inbox", "receiving", "starting", "unacknowledged"
)


class GatewayMetrics(ServiceMetrics):
    """One method per fact."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__("gateway", registry)
        self._requests = self.counter(
            "api_requests",
            "HTTP requests that were answered.",
            {"method": _METHODS, "route": _ROUTES, "status": _STATUSES},
            as_known=True,
        )
        self._seconds = self.histogram(
            "api_request_duration_seconds",
            "From a request's head until its answer; of a request that waits, and of a stream, as long as that lasted.",
            {"method": _METHODS, "route": _ROUTES},
            as_known=True,
        )
        self._hits = self.counter("cache_hits", "What a cache had.", {"cache": _CACHES}, as_known=True)
        self._misses = self.counter("cache_misses", "What a cache did not have.", {"cache": _CACHES}, as_known=True)
        self._of_cache = {name: (self._misses.labels(name), self._hits.labels(name)) for name in _CACHES.names}
        self._left = self.counter("clients_left", "Clients that went away before their request was whole.")
        self._accepted = self.counter("runs_accepted", "Runs that Kafka acknowledged.")
        self._repeated = self.counter("runs_repeated", "Submissions of a key that was seen before.")
        self._cancels = self.counter("cancels_accepted", "Cancellations that Kafka acknowledged.")
        self._unknown = self.counter("appends_unknown", "Submissions and cancellations whose outcome is unknown.")
        self._refused = self.counter(
            "runs_refused", "Submissions refused for now, by what is short.", {"reason": _REFUSALS}
        )
        self._lag = self.gauge("inbox_lag", "Records the orchestrators are behind; -1 when unknown.")
        self._lag.set(-1)
        self._partition_lag = self.gauge(
            "inbox_partition_lag",
            "Records of one partition that the orchestrators are behind, as last known.",
            {"partition": AtMost(_MAX_PARTITIONS, "partitions of the inbox")},
        )
        self._command_lag = self.gauge(
            "command_lag",
            "Commands of one type and partition that no worker has answered for, as last known.",
            {"uses": AtMost(MAX_STEP_TYPES, "step types"), "partition": AtMost(100, "partitions of a command topic")},
        )
        self._waiters = self.gauge("waiters", "Requests that wait for a run's end.")
        self._followers = self.gauge("event_streams", "Streams of run events that are open.")
        self._redis_errors = self.counter(
            "redis_errors",
            "Calls to Redis that failed, by what for.",
            {"use": OneOf("rate_limit", "channels", "put_back", "idempotency", "read")},
        )
        self._reads = self.counter(
            "run_reads",
            "Runs that were read, by where they were found.",
            {"source": OneOf("redis", "sql", "accepted", "none")},
        )
        self._behind = self.gauge(
            "projection_behind_seconds",
            "For how long, at least, a projection has not reached what was in Kafka; of its partition furthest behind.",
            {"projection": OneOf("snapshots", "record")},
        )
        self._issuer = self.counter(
            "issuer_requests", "Requests for the keys of the tokens' issuer.", {"outcome": OneOf("answered", "failed")}
        )
        self._rate_limited = self.counter(
            "rate_limited",
            "Requests over their client's limit.",
            {"class": OneOf(*(each.value for each in RouteClass))},
        )
        self._turned_away = self.counter(
            "turned_away",
            "What was refused because of how many there are.",
            {"what": OneOf("requests", "requests_of_client")},
        )
        self._protocol_errors = self.counter(
            "protocol_errors", "Requests that are not HTTP as it should be.", {"status": _STATUSES}
        )
        self._no_tls = self.counter("tls_handshakes_failed", "Connections that did not agree on TLS, or not in time.")
        self._certificates = self.counter(
            "tls_certificates", "New certificates, by whether they work.", {"works": OneOf("yes", "no")}
        )
        self._step_types = self.gauge("step_types", "Step types announced.")
        self._bad_announcements = self.counter("announcements_refused", "Announcements that could not be decoded.")

    def answered(
        self, method: str, route: str, status: int, seconds: float, *, waits: bool = False, trace_id: str = ""
    ) -> None:
        """A request was answered; `waits` says that it asked to wait, `trace_id` is empty when it is in no trace."""
        if waits:
            route += _WAITING
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def _looked_up(self, cache: str, *, is_hit: bool) -> None:
        self._of_cache[cache][is_hit].inc()

    def client_left(self) -> None:
        """A client went away before its request was whole."""
        self._left.inc()

    def run_accepted(self) -> None:
        """Kafka acknowledged a submission."""
        self._accepted.inc()

    def run_repeated(self) -> None:
        """A key came again with the same body."""
        self._repeated.inc()

    def cancel_accepted(self) -> None:
        """Kafka acknowledged a cancellation."""
        self._cancels.inc()

    def append_unknown(self) -> None:
        """Nobody knows whether Kafka has the submission, or the cancellation."""
        self._unknown.inc()

    def run_refused(self, reason: str) -> None:
        """A submission was sent away for now."""
        self._refused.labels(reason).inc()

    def definition_read(self, *, cached: bool) -> None:
        """A definition was validated, or was known already."""
        self._looked_up("definitions", is_hit=cached)

    def inbox_lag(self, records: int, partitions: Mapping[int, int] = {}) -> None:
        """The orchestrators are this far behind, in all and in each partition."""
        self._lag.set(records)
        for partition, behind in partitions.items():
            self._partition_lag.labels(partition).set(behind)

    def command_lags(self, lags: Mapping[str, Mapping[int, int]]) -> None:
        """So many commands wait, by type and partition; of other types nothing is known."""
        self._command_lag.clear()
        for uses, partitions in lags.items():
            for partition, behind in partitions.items():
                self._command_lag.labels(uses, partition).set(behind)

    def waiting(self, change: int) -> None:
        """One more request waits, or one less."""
        self._waiters.inc(change)

    def following(self, change: int) -> None:
        """One more stream of events is open, or one less."""
        self._followers.inc(change)

    def redis_failed(self, use: str) -> None:
        """Redis did not answer."""
        self._redis_errors.labels(use).inc()

    def run_read(self, source: str) -> None:
        """Somebody read a run, and this is where it was: Redis was hit, or missed it."""
        self._reads.labels(source).inc()
        self._looked_up("runs", is_hit=source == "redis")

    def record_asked(self, source: str) -> None:
        """Somebody looked for runs or figures: the record was asked, or had just been."""
        self._looked_up("questions", is_hit=source == "memory")

    def projection_behind(self, projection: str, seconds: float) -> None:
        """Snapshots or record have not reached what was in Kafka so long ago."""
        self._behind.labels(projection).set(seconds)

    def issuer_asked(self, outcome: str) -> None:
        """The tokens' issuer was asked for its keys."""
        self._issuer.labels(outcome).inc()

    def rate_limited(self, route_class: str, count: int = 1) -> None:
        """A request was one too many of its client's, or so many runs of a batch were."""
        self._rate_limited.labels(route_class).inc(count)

    def turned_away(self, what: str) -> None:
        """There are too many connections or requests."""
        self._turned_away.labels(what).inc()

    def protocol_error(self, status: int) -> None:
        """A request was refused before anybody knew what it is for."""
        self._protocol_errors.labels(status).inc()

    def no_handshake(self) -> None:
        """A connection ended before TLS was agreed on."""
        self._no_tls.inc()

    def certificate_replaced(self, works: bool) -> None:
        """There is another certificate in the files."""
        self._certificates.labels("yes" if works else "no").inc()

    def step_types_known(self, count: int) -> None:
        """So many step types are announced."""
        self._step_types.set(count)

    def announcement_refused(self) -> None:
        """Something on the step-types topic is no announcement."""
        self._bad_announcements.inc()
