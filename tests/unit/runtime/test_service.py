"""A service's life, seen from outside: its exit code and its lines."""

import signal
import socket
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pytest

HEAD = """
import asyncio
from aiohttp import web
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.service import Service, run_service
"""


class Running:
    """A service in a process of its own, whose `main` is the given text."""

    def __init__(self, program: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD + textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
        )
        self.lines: list[dict[str, Any]] = []

    def line(self, event: str) -> dict[str, Any]:
        """Return the line that says it, waiting for it; fail when the process ends without it."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self.lines.append(orjson.loads(raw))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]
        raise AssertionError(f"{event!r} was never said: {self.lines}")

    def get(self, path: str) -> tuple[int, Any]:
        port = next(line["port"] for line in self.lines if line["event"] == "listening")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def exit_code(self) -> int:
        return self.process.wait(10)


@pytest.fixture
def run() -> Iterator[Any]:
    started: list[Running] = []

    def start(program: str, **env: str) -> Running:
        started.append(Running(program, env))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait()
        assert service.process.stdout is not None
        service.process.stdout.close()


WAITS = """
async def main(service):
    service.ready_when("kafka", lambda: "no broker answers")
    service.ready_when("restored", lambda: False)
    service.ready_when("redis", lambda: True)
    service.log.info("in main")
    await service.stopping.wait()
    assert service.deadline.remaining() > 0
run_service("x", Settings(), main)
"""


def test_service_stops_in_good_order_on_sigterm(run: Any) -> None:
    service = run(WAITS)
    service.line("in main")
    service.process.send_signal(signal.SIGTERM)
    service.line("stopped")
    assert service.exit_code() == 0


def test_service_says_what_is_not_ready_and_that_it_is_alive(run: Any) -> None:
    service = run(WAITS)
    service.line("in main")
    status, body = service.get("/readyz")
    assert (status, orjson.loads(body)) == (
        503,
        {"status": "not ready", "not_ready": {"kafka": "no broker answers", "restored": "not ready"}},
    )
    assert service.get("/healthz")[0] == 200
    assert b"process_cpu_seconds_total" in service.get("/metrics")[1]


def test_ready_is_200(run: Any) -> None:
    service = run(
        """
        async def main(service):
            service.log.info("in main")
            await service.stopping.wait()
        run_service("x", Settings(), main)
        """
    )
    service.line("in main")
    assert service.get("/readyz")[0] == 200


def test_application_of_the_service_gets_the_three_routes(run: Any) -> None:
    service = run(
        """
        async def hello(request): return web.Response(text="hello")
        def app(service):
            app = web.Application()
            app.router.add_get("/hello", hello)
            return app
        async def main(service): await service.stopping.wait()
        run_service("x", Settings(), main, app=app)
        """
    )
    service.line("listening")
    assert service.get("/hello") == (200, b"hello")
    assert service.get("/healthz")[0] == 200


def test_errors_out_of_main_end_the_process_with_one_line_that_says_why(run: Any) -> None:
    service = run(
        """
        async def broken(): raise ValueError("the reason")
        async def main(service):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(broken())
        run_service("x", Settings(), main)
        """
    )
    line = service.line("failed")
    assert line["why"] == "ValueError: the reason"
    assert "in broken" in line["exception"]
    assert service.exit_code() == 1


def test_failure_reported_from_elsewhere_cancels_main_and_is_the_reason(run: Any) -> None:
    service = run(
        """
        async def main(service):
            await service.fail(OSError("the disk"))
            try: await service.stopping.wait()
            finally: service.log.info("closed")
        run_service("x", Settings(), main)
        """
    )
    service.line("closed")
    assert service.line("failed")["why"] == "OSError: the disk"
    assert service.exit_code() == 1


def test_main_that_returns_unasked_is_an_error(run: Any) -> None:
    service = run("async def main(service): pass\nrun_service('x', Settings(), main)")
    assert "nothing asked" in service.line("failed")["why"]
    assert service.exit_code() == 1


def test_overrun_names_the_tasks_that_hang(run: Any) -> None:
    service = run(
        """
        async def main(service):
            task = asyncio.create_task(asyncio.sleep(60), name="the slow one")
            service.log.info("in main")
            await task
        run_service("x", Settings(), main)
        """,
        ANABRANCH_STOP_TIMEOUT_S="0.1",
    )
    service.line("in main")
    service.process.send_signal(signal.SIGTERM)
    assert any("the slow one" in task for task in service.line("did not stop in time")["hanging"])
    assert service.exit_code() == 1


def test_thread_that_never_ends_does_not_keep_the_process(run: Any) -> None:
    service = run(
        """
        import time
        from anabranch.shared.runtime import service as life
        life._WATCHDOG_MARGIN_S = 0.2
        async def main(service):
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
            service.log.info("in main")
            await service.stopping.wait()
        run_service("x", Settings(), main)
        """,
        ANABRANCH_STOP_TIMEOUT_S="0.1",
    )
    service.line("in main")
    service.process.send_signal(signal.SIGTERM)
    service.line("did not stop in time")
    assert service.exit_code() == 1


def test_second_signal_ends_the_process_at_once(run: Any) -> None:
    service = run(
        """
        async def main(service):
            service.log.info("in main")
            await asyncio.sleep(60)
        run_service("x", Settings(), main)
        """
    )
    service.line("in main")
    service.process.send_signal(signal.SIGINT)
    service.line("stopping")
    service.process.send_signal(signal.SIGINT)
    assert service.exit_code() == 130


def test_taken_port_is_said(run: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service = run(WAITS, ANABRANCH_HTTP_PORT=str(taken.getsockname()[1]))
        assert "address already in use" in service.line("failed")["why"]
        assert service.exit_code() == 1


def test_misspelt_setting_is_reported(run: Any) -> None:
    service = run(WAITS, ANABRANCH_TOPIC_PREFIXX="a")
    assert service.line("settings that this service does not know")["names"] == ["ANABRANCH_TOPIC_PREFIXX"]


@pytest.mark.parametrize(
    ("misdeed", "why"),
    [
        ("asyncio.get_running_loop().stop()", "RuntimeError: Event loop stopped before Future completed."),
        ("tasks.append(asyncio.create_task(leave()))", "SystemExit: 3"),
        ("asyncio.get_running_loop().call_soon(interrupt)", "KeyboardInterrupt: "),
        ("[task.cancel() for task in asyncio.all_tasks()]", "CancelledError: "),
        ("service.end_within(0.2, OSError('no more'))", "OSError: no more"),
        ("tasks.append(asyncio.create_task(fails(service)))", "OSError: first"),
    ],
)
def test_a_service_whose_loop_is_stopped_from_within_ends_at_once_and_names_what_was_in_hand(
    run: Any, misdeed: str, why: str
) -> None:
    """What does not end of itself in a minute would hold it otherwise: the loop, a task, a thread."""
    service = run(
        f"""
        import sys, threading
        tasks = []
        async def leave():
            sys.exit(3)
        async def fails(service):
            service.end_within(0.2, asyncio.CancelledError())
            await service.fail(OSError("first"))
        def interrupt():
            raise KeyboardInterrupt
        async def holds():
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    pass
        async def main(service):
            service.in_hand = lambda: ["r/s/1"]
            tasks.append(asyncio.create_task(holds()))
            threading.Thread(target=threading.Event().wait, args=(60,)).start()
            asyncio.get_running_loop().call_later(0.1, lambda: misdeed(service))
            await asyncio.sleep(60)
        def misdeed(service):
            {misdeed}
        run_service("x", Settings(), main)
        """
    )
    line = service.line("failed")
    assert (line["why"], line["in_hand"]) == (why, ["r/s/1"])
    assert service.exit_code() == 1
