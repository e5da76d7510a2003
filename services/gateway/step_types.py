"""Which step types there are: what step services announced, and what the core answers itself."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.messages import STEP_TYPES, StepTypeAnnounced
from anabranch.shared.contracts.schemas import SchemaError, compile_schema

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

_TAKE_MS: Final = 1000


class StepTypes:
    """The step types by name. `version` changes whenever what a definition may use has changed."""

    def __init__(self) -> None:
        self.known: Mapping[str, StepTypeAnnounced] = {each.name: each for each in BUILT_IN}
        self.version = 0
        self.complete = False  # everything announced before this process started was read

    def announce(self, announced: StepTypeAnnounced) -> None:
        """A step service serves this type."""
        if self.known.get(announced.name) != announced:
            self._replace({**self.known, announced.name: announced})

    def forget(self, name: str) -> None:
        """Nobody serves this type any more."""
        if name in self.known:
            self._replace({known: each for known, each in self.known.items() if known != name})

    def document(self) -> bytes:
        """Return the answer to `GET /v1/step-types`."""
        listed = [self.known[name].model_dump(exclude={"type"}) for name in sorted(self.known)]
        return orjson.dumps({"step_types": listed})

    def _replace(self, known: dict[str, StepTypeAnnounced]) -> None:
        self.known = known | {each.name: each for each in BUILT_IN}
        self.version += 1


class Record(Protocol):
    """The part of a Kafka record that an announcement is in."""

    key: bytes | None
    value: bytes | None


class StepTypeReader:
    """Follows the step-types topic, without a group and from its beginning."""

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
        self._partition = TopicPartition(topic, 0)
        self._step_types = step_types
        self._metrics = metrics
        self._log = log

    async def follow(self) -> None:
        """Read for ever."""
        self._consumer.assign([self._partition])
        await self._consumer.seek_to_beginning(self._partition)
        end = (await self._consumer.end_offsets([self._partition]))[self._partition]
        while True:
            if not self._step_types.complete:
                self._step_types.complete = await self._consumer.position(self._partition) >= end
            batches: dict[Any, list[Record]] = await self._consumer.getmany(timeout_ms=_TAKE_MS)
            for records in batches.values():
                for record in records:
                    self.take(record)

    def take(self, record: Record) -> None:
        """Apply one record of the topic."""
        if record.value is None:
            self._step_types.forget((record.key or b"").decode(errors="replace"))
        else:
            self._announce(record.value)
        self._metrics.step_types_known(len(self._step_types.known))

    def _announce(self, value: bytes) -> None:
        match decode(STEP_TYPES, value):
            case Undecodable(reason=reason):
                self._metrics.announcement_refused()
                self._log.error("an announcement of a step type is passed over", reason=reason)
            case announced:
                self._take_over(announced)

    def _take_over(self, announced: StepTypeAnnounced) -> None:
        try:
            compile_schema(announced.input_schema)  # or else every definition that uses it would find out
        except SchemaError as error:
            self._metrics.announcement_refused()
            self._log.error(
                "a step type with a broken input schema is passed over", uses=announced.name, error=str(error)
            )
            return
        self._step_types.announce(announced)
