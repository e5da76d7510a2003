"""What handlers find in the application."""

from typing import TYPE_CHECKING, Final

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.body import Bodies
from anabranch.services.gateway.feed import EventFeed
from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.intake import Intake
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.pressure import Pressure
from anabranch.services.gateway.principal import Principal
from anabranch.services.gateway.reads import RunReads
from anabranch.services.gateway.recent import RecentAnswers
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.services.gateway.staleness import Staleness
from anabranch.services.gateway.step_types import StepTypes
from anabranch.services.gateway.submissions import SubmissionReader
from anabranch.services.gateway.waiting import Watches
from anabranch.shared.record.reading import RecordReader

if TYPE_CHECKING:
    # which find their own things by these keys
    from anabranch.services.gateway.rate_limit import RateLimits
    from anabranch.services.gateway.tracing import RequestSpans

SETTINGS: Final = web.AppKey("settings", GatewaySettings)
LOG: Final[web.AppKey[FilteringBoundLogger]] = web.AppKey("log")
METRICS: Final = web.AppKey("metrics", GatewayMetrics)
RATE_LIMITS: Final["web.AppKey[RateLimits]"] = web.AppKey("rate_limits")
STEP_TYPES: Final = web.AppKey("step_types", StepTypes)
READER: Final = web.AppKey("reader", SubmissionReader)
BODIES: Final = web.AppKey("bodies", Bodies)
PRESSURE: Final = web.AppKey("pressure", Pressure)
INTAKE: Final = web.AppKey("intake", Intake)
READS: Final = web.AppKey("reads", RunReads)
RECORD: Final[web.AppKey[AsyncEngine | None]] = web.AppKey("record")  # none where no database is set
RECORD_READER: Final[web.AppKey[RecordReader | None]] = web.AppKey("record_reader")  # likewise
FEED: Final[web.AppKey[EventFeed | None]] = web.AppKey("feed")  # likewise
RECENT_ANSWERS: Final = web.AppKey("recent_answers", RecentAnswers)
FOLLOWERS: Final = web.AppKey("followers", Followers)
STALENESS: Final = web.AppKey("staleness", Staleness)
WATCHES: Final = web.AppKey("watches", Watches)
SPANS: Final["web.AppKey[RequestSpans | None]"] = web.AppKey("spans")  # none where tracing is off

# Of one request.
REQUEST_ID: Final = web.RequestKey("request_id", str)
CLIENT: Final = web.RequestKey("client", str)  # whom it is counted for
PRINCIPAL: Final = web.RequestKey("principal", Principal)
HEADERS: Final = web.RequestKey("headers", dict[str, str])  # of its answer, whatever the answer is
RUN_ID: Final = web.RequestKey("run_id", str)  # the run it is about, for its line in the log
TRACE_ID: Final = web.RequestKey("trace_id", str)  # of its span
