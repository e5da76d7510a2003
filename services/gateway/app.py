"""The application: routes, and what stands around every handler."""

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway import keys
from anabranch.services.gateway.addresses import Addresses, counted_address, networks_of
from anabranch.services.gateway.answering import problems, refusal
from anabranch.services.gateway.api_keys import ApiKeys
from anabranch.services.gateway.authentication import Doors, authentication, permission
from anabranch.services.gateway.body import Bodies
from anabranch.services.gateway.crowd import limits
from anabranch.services.gateway.feed import EventFeed
from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.headers import add_headers
from anabranch.services.gateway.intake import Intake
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.origin import origin
from anabranch.services.gateway.origins import origins_of
from anabranch.services.gateway.packing import packing
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.rate_limit import RateLimits, rate_limit
from anabranch.services.gateway.reads import RunReads
from anabranch.services.gateway.recent import RecentAnswers
from anabranch.services.gateway.request_log import request_log
from anabranch.services.gateway.routes import ROUTES
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.staleness import Staleness
from anabranch.services.gateway.step_types import StepTypes
from anabranch.services.gateway.submissions import SubmissionReader
from anabranch.services.gateway.tokens import Tokens
from anabranch.services.gateway.tracing import RequestSpans
from anabranch.services.gateway.waiting import Watches
from anabranch.shared.contracts.limits import MAX_BODY_BYTES
from anabranch.shared.record.events import EventReader
from anabranch.shared.record.reading import RecordReader
from anabranch.shared.runtime.listener import LISTENING, Listening
from anabranch.shared.runtime.tls import ServerCertificate


def create_app(
    *,
    settings: GatewaySettings,
    log: FilteringBoundLogger,
    metrics: GatewayMetrics,
    step_types: StepTypes,
    pressure: Pressure,
    intake: Intake,
    reads: RunReads,
    record: AsyncEngine | None,
    staleness: Staleness,
    watches: Watches,
    followers: Followers,
    rate_limits: RateLimits,
    api_keys: ApiKeys,
    tokens: Tokens,
    certificate: ServerCertificate | None = None,
    spans: RequestSpans | None = None,
) -> web.Application:
    """Return the application; nothing in it starts or stops anything."""
    addresses = Addresses(networks_of(settings.trusted_proxies))
    doors = Doors(
        api_keys if settings.takes_keys else None, tokens if settings.takes_tokens else None, rate_limits, metrics
    )
    around = [  # the outermost first
        request_log(addresses, log, metrics, share=settings.request_log),
        *([] if spans is None else [spans.middleware()]),
        packing(),
        problems(),
        origin(origins_of(settings.cors_origins)),
        limits(settings.max_requests, settings.max_requests_of_client, metrics),
        authentication(doors if settings.asks else None, settings.default_tenant),
        rate_limit(rate_limits, metrics),
        permission(),
    ]
    app = web.Application(middlewares=around, client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    app[LISTENING] = Listening(
        refusal=refusal,
        refused=metrics.protocol_error,
        counted_as=lambda peer: "" if addresses.is_proxy(peer) else counted_address(peer),
        max_connections=settings.max_connections,
        max_connections_of_client=settings.max_connections_of_client,
        head_timeout_s=settings.head_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        keepalive_timeout_s=settings.keepalive_timeout_s,
        certificate=certificate,
        no_handshake=metrics.no_handshake,
    )
    app[keys.SETTINGS] = settings
    app[keys.LOG] = log
    app[keys.METRICS] = metrics
    app[keys.RATE_LIMITS] = rate_limits
    app[keys.STEP_TYPES] = step_types
    app[keys.READER] = SubmissionReader(step_types, metrics)
    app[keys.BODIES] = Bodies(settings.body_timeout_s, metrics)
    app[keys.PRESSURE] = pressure
    app[keys.INTAKE] = intake
    app[keys.READS] = reads
    app[keys.RECORD] = record
    app[keys.RECORD_READER] = RecordReader(record) if record else None
    app[keys.FEED] = EventFeed(RecordReader(record), EventReader(record)) if record else None
    app[keys.RECENT_ANSWERS] = RecentAnswers(metrics)
    app[keys.FOLLOWERS] = followers
    app[keys.STALENESS] = staleness
    app[keys.WATCHES] = watches
    app[keys.SPANS] = spans
    app.add_routes(ROUTES)
    return app
