"""Attacks, each drawn from a seeded grammar: what a client, a server and authors of SQL, HTML and handlers may do."""

import asyncio
import random
import socket
import struct
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.messages import StepTypeAnnounced
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import TopicNames
from tests.fuzz import language, targets
from tests.fuzz.values import Deep, Long, Many, as_json, plain, wires
from tests.hostile import misdeeds, zoo

_TIMEOUT: Final = "20s"  # of the runs that are submitted here
_POOL: Final = 150
_LEAVERS: Final = 300
_LORISES: Final = 50


@dataclass(slots=True)
class Arena:
    """What an attacker has: the gateway, Kafka, a zoo, and what was drawn beforehand."""

    gateway_url: str
    zoo_url: str
    session: aiohttp.ClientSession
    producer: AIOKafkaProducer
    pools: dict[str, list[Any]]
    topics: TopicNames = field(default_factory=TopicNames)
    accepted: list[tuple[str, str]] = field(default_factory=list)  # kind, run id
    kind: str = ""  # of the attack under way in this lane


Attack = Callable[[Arena, random.Random], Awaitable[str]]


def drawn(strategy: st.SearchStrategy[Any], seed_: int, count: int = _POOL) -> list[Any]:
    """Return so many draws of a strategy, always the same for a seed."""
    pool: list[Any] = []

    @seed(seed_)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(case: Any) -> None:
        pool.append(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw()
    return pool


def pools(seed_: int) -> dict[str, list[Any]]:
    """Draw what the grammars of the fuzzer have to give."""
    return {
        "submissions": drawn(language.submissions(), seed_),
        "bodies": drawn(wires(language.submissions()), seed_),
        "expressions": drawn(language.expressions, seed_),
        "schemas": drawn(st.tuples(language.schemas, language.instances), seed_),
        "inbox": drawn(wires(targets.inbox_messages), seed_),
        "commands": drawn(wires(targets.commands), seed_),
        "control": drawn(wires(targets.cancellations), seed_),
        "events": drawn(st.one_of(wires(st.sampled_from(targets.EVENTS), most=3), wires(plain)), seed_),
        "announcements": drawn(wires(targets.announcements, most=1), seed_),
    }


# --- what a client sends --------------------------------------------------------------------------------------------


async def submit(arena: Arena, body: bytes, media_type: str = "application/json", *, wait_s: int = 0) -> str:
    """POST a body and return how it was answered; the ids of accepted runs are kept."""
    query = f"?wait={wait_s}s" if wait_s else ""
    try:
        async with arena.session.post(
            f"{arena.gateway_url}/v1/runs{query}", data=body, headers={"Content-Type": media_type}
        ) as answer:
            if answer.status in (200, 202):
                arena.accepted.append((arena.kind, (await answer.json())["id"]))
            elif answer.status >= 500 and answer.status != 503:
                return f"{answer.status}: {(await answer.text())[:200]}"
            return str(answer.status)
    except TimeoutError:
        return "no answer in time"
    except (aiohttp.ClientError, OSError) as error:
        return f"no answer: {type(error).__name__}"


def a_pipeline(steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a submission of these steps, which may take 20 s."""
    inputs = more.pop("values", {})
    return {"definition": {"name": "hostile", "timeout": _TIMEOUT, "steps": steps, **more}, "inputs": inputs}


async def run(arena: Arena, chance: random.Random, submission: dict[str, Any]) -> str:
    """Submit a run, and wait for it or not."""
    return await submit(arena, as_json(submission).encode(), wait_s=chance.choice((0, 0, 10)))


def _one(uses: str, given_: Any, **more: Any) -> dict[str, Any]:
    return a_pipeline({"a": {"uses": uses, "with": given_, "timeout": "10s", **more}})


async def drawn_body(arena: Arena, chance: random.Random) -> str:
    """A body with harm done to it, in JSON or in YAML."""
    media_type = chance.choice(("application/json", "application/json", "application/yaml", "text/plain"))
    return await submit(arena, chance.choice(arena.pools["bodies"]).raw, media_type)


async def drawn_pipeline(arena: Arena, chance: random.Random) -> str:
    """A pipeline of the fuzzer's, nearly right, bounded in time."""
    body = dict(chance.choice(arena.pools["submissions"]))
    body["definition"] = {**body["definition"], "timeout": _TIMEOUT}
    return await run(arena, chance, body)


async def large_body(arena: Arena, chance: random.Random) -> str:
    """Deep, wide and long bodies, right and wrong."""
    large = chance.choice(
        (
            Many(150_000, "object", 1),
            Many(400_000, "list", 1),
            Deep(100_000, "list", 1),
            Deep(64, "object", 1),
            Long(2_000_000, "x"),
            Long(3_000_000, "x"),
            Many(1000, "object", Deep(60, "list", 1)),
            Long(600_000, "\U0001f4a5"),
        )
    )
    place = chance.choice(("envelope", "inputs", "labels", "with", "needs", "name", "steps"))
    right = a_pipeline({"a": {"uses": "simulate"}})
    match place:
        case "envelope":
            body: Any = large
        case "with":
            body = _one("simulate", {"value": large})
        case "needs":
            body = a_pipeline({"a": {"uses": "simulate", "needs": large}})
        case "name" | "steps":
            body = {"definition": {**right["definition"], place: large}}
        case _:
            body = {**right, place: large}
    return await submit(arena, as_json(body).encode())


async def yaml_bomb(arena: Arena, chance: random.Random) -> str:
    """Aliases of aliases, deep flows, long scalars, many documents."""
    laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    text = chance.choice(
        (
            laughs,
            "[" * 50_000,
            "{a: " * 10_000,
            "- " * 60_000,
            "a: |\n " + "x" * 2_000_000,
            "---\n" * 100_000,
            "? " * 20_000,
            "&a " * 9999,
            "!!python/object/apply:os.system [x]",
            "'" * 99_999,
        )
    )
    return await submit(arena, text.encode(), "application/yaml")


async def schema_bomb(arena: Arena, chance: random.Random) -> str:
    """Schemas of inputs that cost more than they look."""
    schema, instance = chance.choice(
        (
            ({"propertyNames": {"pattern": "^.{5000}$"}}, Many(20_000, "object", 1)),
            ({"propertyNames": {"pattern": "^.{500}$"}}, Many(2_000, "object", 1)),
            ({"allOf": Many(3000, "list", {"items": {"type": "string"}})}, Many(40_000, "list", "aaaa")),
            (language.doubling(24), 1),
            (language.doubling(14), 1),
            ({"items": {"anyOf": Many(300, "list", {"const": 1})}}, Many(10_000, "list", 2)),
            ({"uniqueItems": True}, [*range(20_000)]),
            ({"pattern": "(x?){400}x{400}"}, Long(200_000, "x")),
            ({"not": Deep(60, "object", 1)}, 1),
            *([chance.choice(arena.pools["schemas"])] * 6),
        )
    )
    body = a_pipeline({"a": {"uses": "simulate"}}, inputs={"x": schema}, values={"x": instance})
    return await run(arena, chance, body)


async def expression_bomb(arena: Arena, chance: random.Random) -> str:
    """Expressions that take time, memory, or both; many of them in a step, many steps of them."""
    expression = chance.choice(
        (
            "range(9000).filter(i, i in inputs.l)",
            "inputs.s.matches('^(a+)+$' + inputs.s)",
            "inputs.s.replace('', inputs.s)",
            "range(9999).map(i, inputs.s)",
            "inputs.l.map(i, inputs.l)",
            "inputs.s + inputs.s + inputs.s + inputs.s",
            "[1].map(a, " * 30 + "1" + ")" * 30,
            "range(99).map(i, range(99).map(j, inputs.s))",
            "'%s'.format([inputs.l])",
            "cel.bind(a, inputs.s + inputs.s, cel.bind(b, a + a, b + b))",
            "inputs.s.split('')",
            "inputs.l.map(i, string(i)).join(inputs.s)",
            *arena.pools["expressions"][:40],
        )
    )
    count, width = chance.choice(((1, 1), (30, 1), (30, 40), (1, 250), (4, 250)))
    with_ = {f"v{number}": "${{ " + expression + " }}" for number in range(count)}
    steps = {
        f"s{number}": {"uses": chance.choice(("transform", "simulate")), "with": {"value": with_}}
        for number in range(width)
    }
    values = {"l": [*range(chance.choice((10, 20_000)))], "s": "a" * chance.choice((10, 20_000, 60_000))}
    return await run(arena, chance, a_pipeline(steps, inputs={"l": {}, "s": {}}, values=values))


async def macro_nest(arena: Arena, chance: random.Random) -> str:
    """A body of nested macros, which takes long to compile."""
    nest = "[1].map(i, " * chance.choice((8, 12, 60)) + "1" + ")" * 60
    steps = {
        f"s{n}": {"uses": "transform", "with": {"value": "${{ " + nest + f" + {n} }}}}"}}
        for n in range(chance.choice((1, 60, 250)))
    }
    return await run(arena, chance, a_pipeline(steps))


async def many_steps(arena: Arena, chance: random.Random) -> str:
    """Wide, deep and heavy graphs; outputs that every step repeats."""
    count = chance.choice((50, 500, 3000))
    heavy = "x" * chance.choice((1, 100_000, 240_000))
    kind = chance.choice(("chain", "fan", "copies", "comb"))
    steps: dict[str, Any] = {"a": {"uses": "transform", "with": {"value": "${{ inputs.s }}"}}}
    for number in range(count):
        before = f"s{number - 1}" if kind == "chain" and number else "a"
        value = "${{ steps.a.output }}" if kind == "copies" else number
        uses = "transform" if kind in ("copies", "comb") else "simulate"
        needs = [f"s{n}" for n in range(max(0, number - 20), number)] if kind == "comb" and number else [before]
        steps[f"s{number}"] = {"uses": uses, "needs": needs, "with": {"value": value}}
    return await run(arena, chance, a_pipeline(steps, inputs={"s": {}}, values={"s": heavy}))


async def deep_output(arena: Arena, chance: random.Random) -> str:
    """Outputs around the depths that parsers know, made by wrapping."""
    levels = chance.choice((15, 16, 40, 50, 62))
    steps = {"a": {"uses": "transform", "with": {"value": 1}}}
    for number, (before, name) in enumerate((("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))):
        value = "${{ " + "[" * levels + f"steps.{before}.output" + "]" * levels + " }}"
        steps[name] = {"uses": "transform" if number < 3 else "simulate", "needs": [before], "with": {"value": value}}  # type: ignore[dict-item]
    return await run(arena, chance, a_pipeline(steps, outputs={"o": "${{ steps.d.output }}"}))


async def odd_simulation(arena: Arena, chance: random.Random) -> str:
    """Retries without end, sleeps without end, values of all kinds, cancelled by time-outs."""
    retry = {"max_attempts": chance.choice((3, 1000)), "initial": chance.choice((0, "1ms", "1s")), "jitter": "none"}
    with_ = chance.choice(
        (
            {"error": "Boom"},
            {"sleep": "1h"},
            {"sleep": 1e9},
            {"fail_attempts": 999},
            {"value": Many(100_000, "list", 1)},
            {"value": Long(1_048_000, "x")},
            {"error": "x" * 2000},
            {"value": Deep(60, "list", "\x00")},
            {"value": 2**63},
            {"value": 1e308},
        )
    )
    return await run(arena, chance, _one("simulate", with_, retry=retry))


# --- what other authors write ----------------------------------------------------------------------------------------


async def zoo_visit(arena: Arena, chance: random.Random) -> str:
    """An `http` step that meets one of the zoo, and a step that uses what it brings."""
    with_: dict[str, Any] = {
        "url": arena.zoo_url + zoo.drawn_path(chance),
        "method": chance.choice(("GET", "GET", "HEAD", "POST")),
    }
    if chance.random() < 0.2:
        with_["body"] = "digest"
    if chance.random() < 0.2:
        with_ |= chance.choice(
            (
                {"timeout": "1s"},
                {"headers": {"a\r\nb": "c"}},
                {"headers": {"a": "\x00"}},
                {"json": {"a": 1}},
                {"content": "é"},
                {"query": {"a": ["b", "ü"]}},
            )
        )
    if chance.random() < 0.1:
        with_["url"] = chance.choice(
            (
                "http://[::1",
                "http://a..b/",
                "http://127.0.0.1:1/",
                "https://127.0.0.1:1/",
                "http://\x00/",
                "http://ü:99999/",
                "http://u:p@127.0.0.1:1/",
            )
        )
    steps = {
        "a": {"uses": "http", "with": with_, "timeout": "10s"},
        "b": {"uses": "transform", "needs": ["a"], "with": {"value": ["${{ steps.a.output }}"]}},
    }
    return await run(arena, chance, a_pipeline(steps))


async def sql_bomb(arena: Arena, chance: random.Random) -> str:
    """Queries that take time or memory, that cannot be interrupted, or that look around."""
    query = chance.choice(
        (
            "SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))",
            " UNION ALL ".join(["SELECT 1"] * 20_000),
            "SELECT repeat('x', 900000) FROM range(10000)",
            "SELECT count(*) FROM range(1000000) a, range(1000000) b",
            "SELECT * FROM range(100000000) ORDER BY hash(range)",
            "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
            "SELECT list(range) FROM range(50000000)",
            "SELECT string_agg(repeat('x', 1000), '') FROM range(1000000)",
            "SELECT " + "(" * 5000 + "1" + ")" * 5000,
            "SELECT " + " + ".join(["1"] * 50_000),
            "SELECT regexp_matches(repeat('a', 100000), '(a*)*b')",
            "SELECT * FROM read_csv('/etc/passwd')",
            "INSTALL httpfs",
            "SET memory_limit='100GB'",
            "ATTACH '/tmp/x.db'",
            "COPY (SELECT 1) TO '/tmp/x'",
            "SELECT 1; SELECT 2",
            "",
            "SELECT",
            "SELECT '\x00'",
            "SELECT 'nan'::DOUBLE, 'inf'::DOUBLE, 170141183460469231731687303715884105727",
            "SELECT a, count(*) FROM t GROUP BY a",
            "SELECT * FROM t",
            "PRAGMA threads=64",
            "SELECT printf('%1000000d', 1)",
            "SELECT map([1],[2]), interval 1 day, '\\xff'::BLOB",
            "SELECT " + ", ".join(f"{n} AS c{n}" for n in range(5000)),
            "SELECT " + "[" * 500 + "1" + "]" * 500,
        )
    )
    source = zoo.animal(
        200,
        chance.choice(("text/csv", "application/json")),
        chance.choice(("csv-100000", "wide-300000", "deep-5000", "latin", "endless", "gzip-bomb")),
        chance.choice(zoo.HOWS),
    )
    sources = (
        {"t": {"url": arena.zoo_url + source, "format": chance.choice(("csv", "json", "parquet"))}}
        if " t" in query
        else {}
    )
    return await run(arena, chance, _one("sql", {"query": query, "sources": sources, "max_rows": 100_000}))


async def html_bomb(arena: Arena, chance: random.Random) -> str:
    """Documents and selectors that take time."""
    html = chance.choice(
        (
            "<div>" * 20_000,
            "<div>" * 60_000,
            "<b><i>" * 20_000,
            "<table>" * 5_000,
            "<a " + " ".join(f"x{n}=1" for n in range(50_000)) + ">",
            "<!--" * 100_000,
            "<p>x" * 100_000,
            "&" * 500_000,
            "<select><option>" * 20_000,
            "\x00<script>" * 1000,
            "<svg><![CDATA[" * 9999,
            "<div id=a>" * 3000 + "</div>" * 3000,
        )
    )
    select = chance.choice(
        (
            {"a": "div"},
            {"a": "div div div div div div"},
            {"a": "*"},
            {"a": ":has(:has(:has(div)))"},
            {"a": "div:not(" * 50 + "a" + ")" * 50},
            {"a": "a" * 100_000},
            {"a": ":nth-last-child(2n+1)"},
            {"a": "div ~ div ~ div"},
            {f"n{n}": "div" for n in range(500)},
            {"a": "@x"},
            {"a": "[" * 9999},
            {"a": ""},
            {"a": "p@\ud800"},
        )
    )
    return await run(arena, chance, _one("html", {"html": html, "select": select}))


async def misdeed(arena: Arena, chance: random.Random) -> str:
    """A handler that misbehaves, next to one that does not."""
    text = chance.choice(("", " x ", None, Deep(60, "list", 1)))
    steps = {
        name: {
            "uses": "misdeeds",
            "with": {"kind": chance.choice(misdeeds.KINDS), "text": text},
            "timeout": "10s",
            "continue_on_error": True,
        }
        for name in ("a", "b")
    }
    return await run(arena, chance, a_pipeline(steps))


# --- connections ----------------------------------------------------------------------------------------------------


def _address(arena: Arena) -> tuple[str, int]:
    host, _, port = arena.gateway_url.removeprefix("http://").partition(":")
    return host, int(port)


def _head(length: int) -> bytes:
    lines = (
        "POST /v1/runs?wait=10s HTTP/1.1",
        "Host: x",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


async def leavers(arena: Arena, chance: random.Random) -> str:
    """Clients that leave in the middle of a body, with a reset."""
    length = chance.choice((10, 100_000, 2_000_000))
    sent = chance.choice((0, 1, 9, 65_000))
    head = _head(length)
    opened = [await _opened(arena) for _ in range(_LEAVERS)]
    for _, writer in opened:
        writer.write(head + b"{" * min(sent, length - 1))
    await asyncio.sleep(chance.choice((0, 0.05, 0.5)))
    for _, writer in opened:
        _reset(writer)
    return "left"


async def _opened(arena: Arena) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*_address(arena))


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def slow_loris(arena: Arena, chance: random.Random) -> str:
    """Clients that send a byte at a time, of the head or of the body, or that read nothing."""
    kind = chance.choice(("head", "body", "silent", "reads-nothing"))
    head = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    opened = [await _opened(arena) for _ in range(_LORISES)]
    with suppress(OSError):
        for number in range(8):
            for _, writer in opened:
                if kind == "head":
                    writer.write(head[number : number + 1])
                elif kind == "body":
                    writer.write(head if not number else b"{")
                elif kind == "reads-nothing" and not number:
                    writer.write(b"GET /v1/step-types HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
            await asyncio.sleep(0.5)
    for _, writer in opened:
        _reset(writer)
    return kind


async def broken_http(arena: Arena, chance: random.Random) -> str:
    """Requests that are hardly HTTP."""
    start = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw = chance.choice(
        (
            b"\x16\x03\x01\x02\x00\x01",
            b"GET / HTTP/9.9\r\n\r\n",
            b"\x00" * 10_000,
            b"A" * 100_000,
            start + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
            start + b"".join(b"X%d: y\r\n" % n for n in range(5000)) + b"\r\n",
            start + b"Content-Length: -1\r\n\r\n",
            start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
            start + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            start + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            start + b"Content-Length: 99999999999999999999\r\n\r\n",
            start + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8bx",
            start + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",
            start + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
            start + b"Expect: x\r\n\r\n",
            b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n\r\n",
            b"GET /v1/runs/%ff%00/../x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET //x\xff?wait=1s&&&=== HTTP/1.1\r\nHost: \xff\r\n\r\n",
            b"GET /v1/runs/" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
            start + b"traceparent: \xff\r\nIdempotency-Key: \xff\r\nContent-Length: 2\r\n\r\n{}",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        )
    )
    reader, writer = await _opened(arena)
    try:
        writer.write(raw)
        async with asyncio.timeout(5):
            status = (await reader.readline()).split(b" ")[1:2]
    except (OSError, TimeoutError, ValueError, asyncio.LimitOverrunError):
        return "closed"
    finally:
        _reset(writer)
    said = status[0].decode(errors="replace") if status else "closed"
    return f"{said}: {raw[:80]!r}" if said.startswith("5") and said not in ("501", "503", "505") else said


async def waiters(arena: Arena, chance: random.Random) -> str:
    """Clients that wait for a run and go, one after the other."""
    body = as_json(_one("simulate", {"sleep": "2s"})).encode()
    head = _head(len(body))
    opened = [await _opened(arena) for _ in range(30)]
    for _, writer in opened:
        writer.write(head + body)
    await asyncio.sleep(chance.choice((0.0, 0.1, 1.0)))
    for _, writer in opened:
        _reset(writer)
    return "left"


# --- records that nobody of ours has written -----------------------------------------------------------------------


async def _appended(
    arena: Arena, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
) -> bool:
    """Append a record for which nobody waits; return whether the client took it."""
    try:
        appended = await arena.producer.send(topic, value, key=key, partition=partition, headers=headers)
    except (KafkaError, AssertionError, TypeError, ValueError):
        return False
    appended.add_done_callback(lambda each: each.cancelled() or each.exception())
    return True


async def forged(arena: Arena, chance: random.Random) -> str:
    """Records written to the topics directly."""
    topics = arena.topics
    pool, topic, partitions = chance.choice(
        (
            ("inbox", topics.inbox, topics.runs),
            ("inbox", topics.inbox, topics.runs),
            ("commands", topics.steps("simulate"), topics.steps_partitions),
            ("commands", topics.steps("misdeeds"), topics.steps_partitions),
            ("control", topics.control, 1),
            ("events", topics.run_events, topics.runs),
            ("announcements", topics.step_types, 1),
            ("events", topics.definitions, 1),
            ("inbox", topics.dead_letters, topics.runs),
        )
    )
    taken = 0
    for _ in range(chance.choice((1, 5, 20))):
        key = chance.choice((b"r", b"x" * 5000, b"\xff", b"", targets.RUN.encode(), None))
        value = chance.choice((None, chance.choice(arena.pools[pool]).raw, chance.choice(arena.pools[pool]).raw))
        if value is not None and len(value) > 4_000_000:
            continue
        headers = chance.choice(((), (("ce_type", b"\xff"),), (("traceparent", b"x" * 1000), ("", b""))))
        partition = partition_of(key or b"", partitions) if partitions > 1 else 0
        taken += await _appended(arena, topic, partition, key, value, headers)
    return f"to {pool}" if taken else "the client takes none"


async def forged_announcement(arena: Arena, chance: random.Random) -> str:
    """A step type that nobody serves, or a house's with another schema; then runs that use it."""
    name = chance.choice(("simulate", "nobody", "no-topic", "x" * 63, "http"))
    schema = chance.choice(
        (
            language.doubling(24),
            {},
            {"type": "string"},
            {"allOf": [{}] * 3000},
            {"propertyNames": {"pattern": "^.{5000}$"}},
        )
    )
    if chance.random() < 0.2:
        await _appended(arena, arena.topics.step_types, 0, name.encode(), None, ())
    else:
        message = StepTypeAnnounced(name=name, version="9", input_schema=schema, output_schema={})
        await _appended(arena, arena.topics.step_types, 0, name.encode(), message.model_dump_json().encode(), ())
    await asyncio.sleep(0.2)
    return await run(arena, chance, _one(name, {"value": 1}))


ATTACKS: Final[dict[str, tuple[Attack, int]]] = {
    "drawn body": (drawn_body, 6),
    "drawn pipeline": (drawn_pipeline, 8),
    "large body": (large_body, 3),
    "yaml bomb": (yaml_bomb, 2),
    "schema bomb": (schema_bomb, 4),
    "expression bomb": (expression_bomb, 4),
    "macro nest": (macro_nest, 2),
    "many steps": (many_steps, 2),
    "deep output": (deep_output, 3),
    "odd simulation": (odd_simulation, 3),
    "zoo visit": (zoo_visit, 8),
    "sql bomb": (sql_bomb, 4),
    "html bomb": (html_bomb, 3),
    "misdeed": (misdeed, 5),
    "leavers": (leavers, 2),
    "slow loris": (slow_loris, 2),
    "broken http": (broken_http, 5),
    "waiters": (waiters, 2),
    "forged records": (forged, 6),
    "forged announcement": (forged_announcement, 2),
}
"""Each attack, and how often it is drawn compared with the others."""
