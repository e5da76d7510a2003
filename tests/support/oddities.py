"""Whatever a user's code may raise, return or say on a bad day, by name: in the loop, in a thread and in a process."""

import asyncio
import builtins
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, field_serializer, model_validator

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import RunsIn, StepType, step_type
from anabranch.shared.contracts.errors import RetryableError, TerminalError

PLACES = ("before-validator", "after-validator", "handler", "serializer", "__str__", "details", "progress")


class OwnBase(BaseException):
    """A subclass of `BaseException`, as libraries have them."""


class TwoArguments(Exception):
    """It pickles and does not unpickle."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(f"{message} ({code})")


class TerminalOfTwo(TerminalError):
    """A terminal error of its own."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(f"{message} ({code})", details={"code": code})


class NoSuper(TerminalError):
    """It forgets the constructor of its base."""

    def __init__(self) -> None:
        pass


class MuteText(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class MuteExit(Exception):
    """Its text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class NoText(Exception):
    """Its text is none."""

    def __str__(self) -> Any:
        return _nothing()


def _nothing() -> Any:
    return None


class SlowText(Exception):
    """Its text takes its time."""

    def __str__(self) -> str:
        time.sleep(0.05)
        return "slow"


class OddClass(Exception):
    """It will not say what it is."""

    @property
    def __class__(self) -> Any:
        raise OwnBase("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise NotImplementedError


class OddCause(Exception):
    """It will not say why."""

    @property
    def __cause__(self) -> Any:
        raise OwnBase("no cause")

    @__cause__.setter
    def __cause__(self, value: Any) -> None:
        raise NotImplementedError


class OddEquality(Exception):
    """It can be neither compared nor hashed."""

    def __eq__(self, other: object) -> bool:
        raise OwnBase("no equality")

    def __hash__(self) -> int:
        raise OwnBase("no hash")


class OddArguments(Exception):
    """Its arguments are no text."""

    def __init__(self) -> None:
        super().__init__(object(), {1, 2}, b"\xff", "\udcff", None, float("nan"))


class TextOfClass(str):
    """A text that does not behave as one."""

    def __getitem__(self, key: Any) -> str:
        raise OwnBase("no slice")

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Raise."""
        raise OwnBase("no bytes")


class OddText(Exception):
    """Its text is of a class of its own."""

    def __str__(self) -> str:
        return TextOfClass("odd text")


class Rude:
    """An object that raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise OwnBase(name)

    def __repr__(self) -> str:
        raise OwnBase("repr")

    def __str__(self) -> str:
        raise OwnBase("str")

    def __eq__(self, other: object) -> bool:
        raise OwnBase("eq")

    def __hash__(self) -> int:
        raise OwnBase("hash")

    def __bool__(self) -> bool:
        raise OwnBase("bool")

    def __iter__(self) -> Any:
        raise OwnBase("iter")

    def __len__(self) -> int:
        raise OwnBase("len")

    @property
    def __class__(self) -> Any:
        raise OwnBase("class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise NotImplementedError


_WITH_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "UnicodeDecodeError": ("utf-8", b"\xff", 0, 1, "bad"),
    "UnicodeEncodeError": ("utf-8", "\udcff", 0, 1, "bad"),
    "UnicodeTranslateError": ("\udcff", 0, 1, "bad"),
    "BaseExceptionGroup": ("several", [SystemExit(3), ValueError("v")]),
    "ExceptionGroup": ("several", [ValueError("v"), OSError(2, "none")]),
}


def _built_in() -> dict[str, Callable[[], Any]]:
    kinds = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)]
    return {kind.__name__: _made(kind, *_WITH_ARGUMENTS.get(kind.__name__, ("bad day",))) for kind in kinds}


def _made(kind: type[Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: kind(*arguments)


def _nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def _cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _cyclic_causes() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _many_causes() -> BaseException:
    error = last = ValueError("last")
    for number in range(5_000):
        cause = ValueError(number)
        error.__cause__ = cause
        error = cause
    return last


def _deep_group() -> BaseException:
    error: Exception = ValueError("deep down")
    for number in range(900):
        error = ExceptionGroup(f"level {number}", [error])
    return error


def _doubled_group() -> BaseException:
    error: Exception = ValueError("deep down")
    for _ in range(25):
        error = ExceptionGroup("twice the same", [error, error])
    return error


def _endless() -> None:
    _endless()


def _recursion() -> BaseException:
    try:
        _endless()
    except RecursionError as error:
        return error
    raise AssertionError("the stack has an end")


ERRORS: dict[str, Callable[[], Any]] = _built_in() | {
    "CancelledError": asyncio.CancelledError,
    "OwnBase": _made(OwnBase, "own"),
    "SystemExit with an object": _made(SystemExit, Rude()),
    "TwoArguments": _made(TwoArguments, "two", 2),
    "TerminalOfTwo": _made(TerminalOfTwo, "two", 2),
    "NoSuper": NoSuper,
    "MuteText": MuteText,
    "MuteExit": MuteExit,
    "NoText": NoText,
    "SlowText": SlowText,
    "OddClass": _made(OddClass, "odd"),
    "OddCause": _made(OddCause, "odd"),
    "OddEquality": _made(OddEquality, "odd"),
    "OddArguments": OddArguments,
    "OddText": OddText,
    "ExceptionGroup of 900 levels": _deep_group,
    "ExceptionGroup of 10,000": lambda: ExceptionGroup("many", [ValueError(n) for n in range(10_000)]),
    "ExceptionGroup of 2**25": _doubled_group,
    "a cyclic cause": _cyclic_causes,
    "5,000 causes": _many_causes,
    "a recursion": _recursion,
    "a type without ASCII": lambda: type("Größenfehler", (Exception,), {})("zu groß"),
    "a type of 10,000 characters": lambda: type("E" * 10_000, (Exception,), {})("long"),
    "a text of 10,000,000 characters": lambda: ValueError("x" * 10_000_000),
    "a text with a lone surrogate": lambda: ValueError("caf\udce9.csv"),
    "a text with NUL": lambda: ValueError("a\x00b"),
    "TerminalError with odd details": lambda: TerminalError("odd", details=Rude()),
    "TerminalError with a surrogate type": lambda: TerminalError("odd", error_type="\udcff"),
    "TerminalError(error_type=404)": lambda: TerminalError("odd", error_type=404),  # type: ignore[arg-type]
    "TerminalError of an object": lambda: TerminalError(Rude()),  # type: ignore[arg-type]
    "RetryableError(after=timedelta)": lambda: RetryableError("later", after=timedelta(seconds=1)),
    'RetryableError(after="1s")': lambda: RetryableError("later", after="1s"),
    "RetryableError(after=Decimal)": lambda: RetryableError("later", after=Decimal("1.5")),
    "RetryableError(after=nan)": lambda: RetryableError("later", after=float("nan")),
    "RetryableError(after=inf)": lambda: RetryableError("later", after=float("inf")),
    "RetryableError(after=-1)": lambda: RetryableError("later", after=-1),
    "RetryableError(after=10**5000)": lambda: RetryableError("later", after=10**5000),
    "RetryableError(after=[])": lambda: RetryableError("later", after=[]),  # type: ignore[arg-type]
}
"""By name, what makes an exception to raise; a few raise while they are made."""

VALUES: dict[str, Callable[[], Any]] = {
    "null": lambda: None,
    "a lone surrogate": lambda: "caf\udce9.csv",
    "a key with a lone surrogate": lambda: {"\udce9": 1},
    "bytes that are no UTF-8": lambda: b"\x00\xff",
    "64 levels": lambda: _nested(63),  # it is held by an object
    "65 levels": lambda: _nested(65),
    "255 levels": lambda: _nested(255),
    "1,500 levels": lambda: _nested(1_500),
    "20,000 levels": lambda: _nested(20_000),
    "a set": lambda: {1, "a"},
    "NaN": lambda: float("nan"),
    "a NaN key": lambda: {float("nan"): 1},
    "keys of all kinds": lambda: {None: 1, (1, 2): 2, 3.5: 3, True: 4},
    "an object as key": lambda: {object(): 1},
    "a cycle": _cyclic,
    "an integer of 400 digits": lambda: 10**400,
    "an integer of 5,000 digits": lambda: 10**5000,
    "an object": object,
    "a rude object": Rude,
    "a list of rude objects": lambda: [Rude(), Rude()],
    "a text of a class of its own": lambda: TextOfClass("odd"),
    "a class": lambda: Rude,
    "a function": lambda: _nested,
    "a generator that raises": lambda: (1 / 0 for _ in "a"),
    "a generator that exits": lambda: (exec("raise SystemExit(3)") for _ in "a"),
    "2 MiB": lambda: "x" * (2 * 1024 * 1024),
    "an exception": lambda: ValueError("as a value"),
}
"""By name, what makes a value to return, to give as details, or to tell as progress."""

ODDITIES = ERRORS | VALUES


class OddOrder(BaseModel):
    """Where something odd is to happen, and what."""

    place: str
    odd: str

    @model_validator(mode="before")
    @classmethod
    def _before(cls, given: Any) -> Any:
        return _act(given["odd"]) if given["place"] == "before-validator" else given

    @model_validator(mode="after")
    def _after(self) -> "OddOrder":
        if self.place == "after-validator":
            _act(self.odd)
        return self


class OddAnswer(BaseModel):
    """Whatever came of it."""

    value: Any = None
    odd: str = ""

    @field_serializer("odd")
    def _serialized(self, odd: str) -> Any:
        return _act(odd) if odd else odd


class _Says(Exception):
    def __init__(self, odd: str) -> None:
        self.odd = odd

    def __str__(self) -> str:
        return _act(self.odd)  # type: ignore[no-any-return]


def _act(odd: str) -> Any:
    """Raise the oddity if it is an error, else return it."""
    made = ODDITIES[odd]()
    if issubclass(type(made), BaseException) and odd in ERRORS:
        raise made
    return made


def _handle(order: OddOrder, context: StepContext) -> OddAnswer:
    match order.place:
        case "handler":
            return OddAnswer(value=_act(order.odd))
        case "serializer":
            return OddAnswer(odd=order.odd)
        case "__str__":
            raise _Says(order.odd)
        case "details":
            raise TerminalError("with details", details=ODDITIES[order.odd]())
        case "progress":
            context.heartbeat(ODDITIES[order.odd]())
    return OddAnswer(value="well")


@step_type("odd", concurrency=64)
async def odd_in_loop(order: OddOrder, context: StepContext) -> OddAnswer:
    """Do something odd in the loop."""
    return _handle(order, context)


@step_type("odd", runs_in="thread", concurrency=4)
def odd_in_thread(order: OddOrder, context: StepContext) -> OddAnswer:
    """Do something odd in a thread."""
    return _handle(order, context)


@step_type("odd", runs_in="process", concurrency=2)
def odd_in_process(order: OddOrder, context: StepContext) -> OddAnswer:
    """Do something odd in a process."""
    return _handle(order, context)


ODD_TYPES: dict[RunsIn, StepType[OddOrder, OddAnswer]] = {
    "loop": odd_in_loop,
    "thread": odd_in_thread,
    "process": odd_in_process,
}
