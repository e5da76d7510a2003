"""Which step types there are: what step services announced, and what the core answers itself."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.whole_topic import Record, records_of
from anabranch.shared.contracts.announcements import BadAnnouncement, read_announcement
from anabranch.shared.contracts.limits import KIB, MAX_ANNOUNCED_BYTES, MAX_STEP_TYPES
from anabranch.shared.contracts.messages import StepTypeAnnounced
from anabranch.shared.contracts.topics import TopicNames

BUILT_IN: Final = (
    StepTypeAnnounced(
        name="transform",
        version="1",
        description="Reshapes values with CEL; answered by the orchestrator, without a worker.",
        input_schema={
            "type": "object",
            "properties": {"value": {"description": "What the step's output is."}},
            "required": ["value"],
            "additionalProperties": False,
        },
        output_schema={},
    ),
)

_LARGE_BYTES: Final = 16 * KIB  # an announcement that takes milliseconds to check: not on the loop
_LOOK_EVERY_S: Final = 5.0  # for command topics


class StepTypes:
    """The step types by name. `version` changes whenever what a definition may use has changed."""

    def __init__(self) -> None:
        self.known: Mapping[str, StepTypeAnnounced] = {each.name: each for each in BUILT_IN}
        self.version = 0
        self.complete = False  # everything announced before this process started was read
        self.changed = asyncio.Event()
        self.without_topic: frozenset[str] = frozenset()  # announced, but nobody can send them commands
        self._sizes: dict[str, int] = {}

    def announce(self, announced: StepTypeAnnounced, size: int = 0) -> None:
        """A step service serves this type; its announcement takes `size` bytes. Raises `BadAnnouncement`."""
        if self.known.get(announced.name) == announced:
            return
        if announced.name not in self.known and len(self.known) >= MAX_STEP_TYPES + len(BUILT_IN):
            raise BadAnnouncement(f"there are {MAX_STEP_TYPES} step types already")
        sizes = self._sizes | {announced.name: size}
        if sum(sizes.values()) > MAX_ANNOUNCED_BYTES:
            raise BadAnnouncement(f"all announcements together take more than {MAX_ANNOUNCED_BYTES} bytes")
        self._sizes = sizes
        self._replace({**self.known, announced.name: announced})

    def forget(self, name: str) -> None:
        """Nobody serves this type any more."""
        if name in self.known:
            self._sizes.pop(name, None)
            self._replace({known: each for known, each in self.known.items() if known != name})

    def document(self) -> bytes:
        """Return the answer to `GET /v1/step-types`."""
        listed = [self.known[name].model_dump(exclude={"type"}) for name in sorted(self.known)]
        return orjson.dumps({"step_types": listed})

    def _replace(self, known: dict[str, StepTypeAnnounced]) -> None:
        self.known = known | {each.name: each for each in BUILT_IN}
        self.version += 1
        self.changed.set()


class StepTypeReader:
    """Follows the step-types topic."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        topic: str,
        step_types: StepTypes,
        *,
        metrics: GatewayMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._step_types = step_types
        self._metrics = metrics
        self._log = log

    async def follow(self) -> None:
        """Read for ever."""
        async for record in records_of(self._consumer, self._topic, self._is_complete):
            await self.take(record)

    def _is_complete(self) -> None:
        self._step_types.complete = True

    async def take(self, record: Record) -> None:
        """Apply one record of the topic; one that cannot be changes nothing."""
        if record.value is None:
            self._step_types.forget((record.key or b"").decode(errors="replace"))
        else:
            await self._announce(record.key, record.value)
        self._metrics.step_types_known(len(self._step_types.known))

    async def _announce(self, key: bytes | None, value: bytes) -> None:
        try:
            if len(value) > _LARGE_BYTES:
                announced = await asyncio.to_thread(read_announcement, key, value)
            else:
                announced = read_announcement(key, value)
            self._step_types.announce(announced, len(value))
        except BadAnnouncement as error:
            self._metrics.announcement_refused()
            name = (key or b"")[:80].decode(errors="replace")
            self._log.error("an announcement of a step type is passed over", uses=name, reason=str(error))


class CommandTopicWatch:
    """Looks now and then which announced types have no command topic: no step of theirs could be sent out."""

    def __init__(
        self, admin: AIOKafkaAdminClient, topics: TopicNames, step_types: StepTypes, log: FilteringBoundLogger
    ) -> None:
        self._admin = admin
        self._topics = topics
        self._step_types = step_types
        self._log = log
        self._is_blind = False  # Kafka does not tell, and that was said

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self._step_types.changed.clear()
            await self.look()
            try:
                await asyncio.wait_for(self._step_types.changed.wait(), _LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Look once. What Kafka does not tell (an outage, an ACL) counts as there: the orchestrator holds back."""
        topics = {self._topics.steps(name): name for name in self._step_types.known if name not in _BUILT_IN_NAMES}
        try:
            found = await self._admin.describe_topics(list(topics)) if topics else []
        except (KafkaError, OSError, TimeoutError) as error:
            if not self._is_blind:
                self._log.warning("command topics cannot be looked for", error=repr(error))
            self._is_blind = True
            return
        if self._is_blind:
            self._log.info("command topics can be looked for again")
            self._is_blind = False
        missing = frozenset(topics[name] for name in _missing(found))
        if missing != self._step_types.without_topic:
            self._log.warning("step types without a command topic", uses=sorted(missing))
        self._step_types.without_topic = missing


_BUILT_IN_NAMES: Final = frozenset(each.name for each in BUILT_IN)


def _missing(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (entry["topic"] for entry in found if entry["error_code"] == UnknownTopicOrPartitionError.errno)
