"""What the dashboards show, as data: title, unit, queries, and the heading of the runbook that helps.

`$uses` and `$instance` are variables of the dashboards. No panel is by tenant or pipeline: their names are made by
clients, so that no metric has them (docs/metrics.md); `GET /v1/statistics` and `anabranch stats` answer that.
"""

from dataclasses import dataclass, field
from typing import Final

RATE: Final = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: a time series, or a single number when `is_stat`."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    help: str = ""
    runbook: str = ""
    is_stat: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard: rows of panels; `uid` stays, for links."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]] = field(default_factory=dict)


def one(title: str, unit: str, expr: str, legend: str = "", **more: str | bool) -> Panel:
    """Return a panel with one query."""
    return Panel(title, unit, (Query(expr, legend),), **more)  # type: ignore[arg-type]


def quantiles(title: str, metric: str, by: str = "", where: str = "", runbook: str = "") -> Panel:
    """Return a panel of the median and the 95th and 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return Panel(
        title,
        "s",
        tuple(
            Query(
                f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{{{where}}}{RATE})))",
                f"p{round(100 * share)}{legend}",
            )
            for share in (0.5, 0.95, 0.99)
        ),
        runbook=runbook,
    )


def rate(title: str, metric: str, by: str, where: str = "", **more: str) -> Panel:
    """Return a panel of a counter's rate by a label."""
    return one(title, "cps", f"sum by ({by}) (rate({metric}{{{where}}}{RATE}))", f"{{{{{by}}}}}", **more)


def total(title: str, metric: str, where: str = "", **more: str) -> Panel:
    """Return a panel of a counter's rate."""
    return one(title, "cps", f"sum(rate({metric}{{{where}}}{RATE}))", "all", **more)


_OF_USES: Final = 'uses=~"$uses"'
_ANSWERED_AT_ONCE: Final = 'route!~".*wait|.*events"'

OVERVIEW: Final = Dashboard(
    "anabranch-overview",
    "Anabranch / Overview",
    {
        "Objectives": (
            one(
                "Requests answered without error",
                "percentunit",
                "1 - anabranch:api_errors:ratio_rate1h",
                is_stat=True,
                help="Objective 99.9 %",
                runbook="AnabranchApiErrorBudgetBurns",
            ),
            one(
                "Requests within 0.5 s",
                "percentunit",
                "1 - anabranch:api_slow:ratio_rate1h",
                is_stat=True,
                help="Objective 99 %",
                runbook="AnabranchApiLatencyBudgetBurns",
            ),
            one(
                "Runs that did not fail",
                "percentunit",
                "1 - anabranch:runs_failed:ratio_rate1h",
                is_stat=True,
                help="Objective 99 %",
                runbook="AnabranchRunSuccessBudgetBurns",
            ),
            one(
                "Processes that answer",
                "short",
                'sum(up{job="anabranch"})',
                is_stat=True,
                runbook="AnabranchTargetDown",
            ),
        ),
        "Traffic, errors, latency, saturation": (
            rate("Requests by status", "api_requests_total", "status"),
            quantiles(
                "Latency of requests that do not wait",
                "api_request_duration_seconds",
                where=_ANSWERED_AT_ONCE,
                runbook="AnabranchApiLatencyBudgetBurns",
            ),
            rate("Runs ended", "pipeline_duration_seconds_count", "status", runbook="AnabranchRunSuccessBudgetBurns"),
            quantiles("Duration of runs", "pipeline_duration_seconds"),
            one("Active runs", "short", "sum(active_pipelines)", "active"),
            one(
                "Records that orchestrators are behind",
                "short",
                "max(anabranch_gateway_inbox_lag)",
                "inbox",
                runbook="AnabranchInboxLagGrows",
            ),
            one(
                "Projections behind",
                "s",
                "max by (projection) (anabranch_gateway_projection_behind_seconds)",
                "{{projection}}",
                runbook="AnabranchProjectionBehind",
            ),
            one(
                "CPU",
                "percentunit",
                f"sum by (role) (rate(process_cpu_seconds_total{RATE}))",
                "{{role}}",
                runbook="AnabranchEventLoopBlocked",
            ),
        ),
    },
)

PIPELINES: Final = Dashboard(
    "anabranch-pipelines",
    "Anabranch / Pipelines",
    {
        "Runs": (
            total("Runs accepted", "anabranch_gateway_runs_accepted_total"),
            rate(
                "Runs ended, by how",
                "pipeline_duration_seconds_count",
                "status",
                runbook="AnabranchRunSuccessBudgetBurns",
            ),
            quantiles("Duration, by how they ended", "pipeline_duration_seconds", by="status"),
            one("Active runs by orchestrator", "short", "sum by (instance) (active_pipelines)", "{{instance}}"),
            one(
                "Longest silence of a run",
                "s",
                "max(anabranch_orchestrator_quiet_run_seconds)",
                "longest",
                runbook="AnabranchRunStuck",
            ),
        ),
        "What happens to them": (
            rate("Run events", "anabranch_orchestrator_run_events_total", "type"),
            rate(
                "Steps that failed or timed out",
                "anabranch_orchestrator_run_events_total",
                "type",
                'type=~"StepFailed|StepTimedOut"',
            ),
            total("Retries", "anabranch_orchestrator_run_events_total", 'type="StepRetrying"'),
            rate(
                "Submissions refused for now",
                "anabranch_gateway_runs_refused_total",
                "reason",
                runbook="AnabranchInboxLagGrows",
            ),
        ),
    },
)

STEPS: Final = Dashboard(
    "anabranch-steps",
    "Anabranch / Steps",
    {
        "Queues": (
            one(
                "Commands that wait",
                "short",
                f"max by (uses) (sum by (uses, instance) (anabranch_gateway_command_lag{{{_OF_USES}}}))",
                "{{uses}}",
                runbook="AnabranchCommandLagGrows",
            ),
            one(
                "Workers",
                "short",
                f"count by (uses) (anabranch_steps_busy{{{_OF_USES}}})",
                "{{uses}}",
                runbook="AnabranchNoWorker",
            ),
            one("Busy handlers", "short", f"sum by (uses) (anabranch_steps_busy{{{_OF_USES}}})", "{{uses}}"),
            quantiles("Wait in the queue", "anabranch_steps_queue_wait_seconds", by="uses", where=_OF_USES),
        ),
        "Handlers": (
            quantiles("Duration", "anabranch_steps_handler_seconds", by="uses", where=_OF_USES),
            rate("Answers by kind", "anabranch_steps_answers_total", "kind", _OF_USES),
            rate("Answers by type", "anabranch_steps_answers_total", "uses", _OF_USES),
            rate("Leases", "anabranch_steps_leases_total", "uses", _OF_USES),
            rate(
                "Leases lapsed", "anabranch_steps_leases_lapsed_total", "uses", _OF_USES, runbook="AnabranchWorkersLost"
            ),
            rate("Repeats dropped", "anabranch_steps_repeats_total", "why", _OF_USES),
            rate(
                "Dead letters", "anabranch_steps_dead_letters_total", "uses", _OF_USES, runbook="AnabranchDeadLetters"
            ),
            total("Lost workers", "anabranch_orchestrator_lost_workers_total", runbook="AnabranchWorkersLost"),
        ),
    },
)

ORCHESTRATOR: Final = Dashboard(
    "anabranch-orchestrator",
    "Anabranch / Orchestrator",
    {
        "Partitions": (
            one(
                "Partitions owned",
                "short",
                "sum by (instance) (anabranch_orchestrator_partitions)",
                "{{instance}}",
                runbook="AnabranchPartitionsWithoutOwner",
            ),
            one(
                "Lag by partition",
                "short",
                "max by (partition) (anabranch_gateway_inbox_partition_lag)",
                "{{partition}}",
                runbook="AnabranchInboxLagGrows",
            ),
            rate("Rebalances", "anabranch_orchestrator_rebalances_total", "instance"),
            quantiles("Restore", "anabranch_orchestrator_restore_seconds", runbook="AnabranchRestoreSlow"),
            total("Records restored", "anabranch_orchestrator_restored_records_total"),
        ),
        "Deciding": (
            rate("Messages decided", "anabranch_orchestrator_decisions_total", "type", 'outcome="applied"'),
            rate(
                "Messages ignored, by reason", "anabranch_orchestrator_decisions_total", "outcome", 'outcome!="applied"'
            ),
            rate("Dead letters", "anabranch_orchestrator_dead_letters_total", "error", runbook="AnabranchDeadLetters"),
            rate("Commands refused by their topic", "anabranch_orchestrator_refused_commands_total", "uses"),
            total("Times held back", "anabranch_orchestrator_held_back_seconds_count"),
        ),
        "Checkpoints": (
            quantiles("Duration", "anabranch_orchestrator_checkpoint_seconds", runbook="AnabranchCheckpointFailing"),
            one(
                "Bytes",
                "Bps",
                f"sum by (instance) (rate(anabranch_orchestrator_checkpoint_bytes_sum{RATE}))",
                "{{instance}}",
            ),
            total("Records", "anabranch_orchestrator_checkpointed_records_total"),
            one(
                "Oldest decision in no checkpoint",
                "s",
                "max by (instance) (anabranch_orchestrator_unwritten_seconds)",
                "{{instance}}",
                runbook="AnabranchCheckpointFailing",
            ),
            rate(
                "Errors of the log",
                "anabranch_orchestrator_partition_errors_total",
                "error",
                runbook="AnabranchCheckpointFailing",
            ),
        ),
        "Process": (
            quantiles(
                "Event loop is late",
                "anabranch_process_event_loop_lag_seconds",
                by="instance",
                where='instance=~"$instance"',
                runbook="AnabranchEventLoopBlocked",
            ),
            one("Memory", "bytes", 'process_resident_memory_bytes{instance=~"$instance"}', "{{instance}}"),
            one("Versions", "short", "count by (version) (anabranch_process_build_info)", "{{version}}"),
        ),
    },
)

GATEWAY: Final = Dashboard(
    "anabranch-gateway",
    "Anabranch / Gateway and security",
    {
        "Requests": (
            rate("By route", "api_requests_total", "route"),
            rate("By status", "api_requests_total", "status", runbook="AnabranchApiErrorBudgetBurns"),
            quantiles(
                "Latency by route",
                "api_request_duration_seconds",
                by="route",
                where=_ANSWERED_AT_ONCE,
                runbook="AnabranchApiLatencyBudgetBurns",
            ),
            one("Requests that wait for a run", "short", "sum(anabranch_gateway_waiters)", "waiting"),
            one("Streams of events", "short", "sum(anabranch_gateway_event_streams)", "open"),
            total("Clients that left", "anabranch_gateway_clients_left_total"),
        ),
        "Who is turned away": (
            rate("Over their limit", "anabranch_gateway_rate_limited_total", "class"),
            total("Without or with wrong credentials", "api_requests_total", 'status=~"401|403"'),
            rate("Too many", "anabranch_gateway_turned_away_total", "what"),
            rate("Not HTTP as it should be", "anabranch_gateway_protocol_errors_total", "status"),
            total("TLS handshakes failed", "anabranch_gateway_tls_handshakes_failed_total"),
            rate("Questions to the tokens' issuer", "anabranch_gateway_issuer_requests_total", "outcome"),
        ),
        "Caches and Redis": (
            one(
                "Share that caches had",
                "percentunit",
                f"sum by (cache) (rate(cache_hits_total{RATE})) / (sum by (cache) (rate(cache_hits_total{RATE}))"
                f" + sum by (cache) (rate(cache_misses_total{RATE})))",
                "{{cache}}",
            ),
            rate("Runs read, by where they were", "anabranch_gateway_run_reads_total", "source"),
            rate("Errors of Redis", "anabranch_gateway_redis_errors_total", "use", runbook="AnabranchRedisAway"),
        ),
    },
)

KAFKA_AND_HISTORY: Final = Dashboard(
    "anabranch-history",
    "Anabranch / Kafka and history",
    {
        "Kafka, as the services see it": (
            one("Inbox lag", "short", "max(anabranch_gateway_inbox_lag)", "records", runbook="AnabranchInboxLagGrows"),
            one(
                "Command lag by type",
                "short",
                "max by (uses) (sum by (uses, instance) (anabranch_gateway_command_lag))",
                "{{uses}}",
                runbook="AnabranchCommandLagGrows",
            ),
            total("Appends with unknown outcome", "anabranch_gateway_appends_unknown_total"),
            total("Commits that Kafka refused", "anabranch_history_commits_failed_total"),
        ),
        "Snapshots in Redis": (
            rate("Run events", "anabranch_history_events_total", "outcome"),
            quantiles(
                "From an event until readers saw it",
                "anabranch_history_event_age_seconds",
                runbook="AnabranchProjectionBehind",
            ),
            one("Paused", "short", "max(anabranch_history_paused)", "paused", runbook="AnabranchRedisAway"),
            total("Events missing", "anabranch_history_missing_events_total"),
        ),
        "The record in SQL": (
            rate("Run events recorded", "anabranch_history_record_events_total", "outcome"),
            quantiles(
                "From an event until it was in the record",
                "anabranch_history_record_age_seconds",
                runbook="AnabranchProjectionBehind",
            ),
            one("Paused by SQL", "short", "max(anabranch_history_record_paused)", "paused", runbook="AnabranchSqlAway"),
            total("Runs deleted", "anabranch_history_record_runs_deleted_total"),
        ),
    },
)

ALL: Final = (OVERVIEW, PIPELINES, STEPS, ORCHESTRATOR, GATEWAY, KAFKA_AND_HISTORY)
