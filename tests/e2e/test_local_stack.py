"""The local stack's supervisor, with services that do nothing but answer /readyz, and die when told to."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from io import StringIO
from pathlib import Path

import orjson
import psutil
import pytest

from anabranch.deploy.local import stack as local
from anabranch.deploy.local.console import Console, Silence, wants_colour
from anabranch.deploy.local.home import HomeError
from anabranch.deploy.local.process import Child, spawn
from anabranch.deploy.local.server import DiedStartingError, LocalServer
from anabranch.deploy.local.services import Service
from anabranch.deploy.local.stack import LocalStack
from anabranch.deploy.local.supervisor import RestartBudget, StackFailedError, supervise
from tests.security.certificates import Certificates

FAKE_SERVICE = """
import http.server, os, pathlib, ssl, subprocess, sys
role, orders = sys.argv[1], pathlib.Path(sys.argv[2])
if (orders / f"{role}-dies-at-once").exists():
    print("cannot live like this")
    sys.exit(3)
if (orders / f"{role}-has-a-child").exists():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "anabranch-fake-grandchild"])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if (orders / f"{role}-is-never-ready").exists() else 200)
        self.end_headers()
    def log_message(self, *_):
        pass
print(f"{role} listens")
address = os.environ["ANABRANCH_HTTP_HOST"], int(os.environ["ANABRANCH_HTTP_PORT"])
server = http.server.ThreadingHTTPServer(address, Ready)
if role == "gateway" and (certificate := os.environ["ANABRANCH_TLS_CERTIFICATE"]):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, os.environ["ANABRANCH_TLS_KEY"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

# A server that kills itself as often as it is told to, at the moment of its start that it is told: argv is the
# directory of orders and the port.
FAKE_SERVER = """
import os, pathlib, signal, socket, sys
orders, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def reach(moment):
    order = orders / f"server-dies-{moment}"
    if order.exists() and (times := int(order.read_text())):
        order.write_text(str(times - 1))
        os.kill(os.getpid(), signal.SIGKILL)
reach("at once")
listener = socket.create_server(("127.0.0.1", port))
reach("when it listens")
while True:
    asking, _ = listener.accept()
    reach("when it is asked")
    asking.sendall(b"here\\n")
    asking.close()
    reach("when it has answered")
"""
MOMENTS = ("at once", "when it listens", "when it is asked", "when it has answered")

# The stack as a program of its own, to be stopped from outside: argv is the data directory and that of the orders.
DRIVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_local_stack import fakes
from anabranch.deploy.local.console import Console
from anabranch.deploy.local.stack import LocalStack, run_stack
console = Console()
own = {{}} if "servers" in sys.argv else dict(bootstrap="127.0.0.1:1", redis_url="redis://127.0.0.1:1/0")
stack = LocalStack(Path(sys.argv[1]), services=fakes(Path(sys.argv[2])), console=console, restart_delay_s=0.01, **own)
sys.exit(asyncio.run(run_stack(stack, console)))
"""

WAIT_S = 60.0


async def test_up_starts_a_gateway_that_speaks_tls(
    orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` hands the certificate on, the probes speak TLS, and the ready line says so; other services do not."""
    made = Certificates.made(tmp_path / "certificates").folder
    lines = []

    async def run_stack(stack: LocalStack, _: Console) -> int:
        async with stack:
            lines.append(local.ready_line(stack))
            assert stack.service("worker").url.startswith("http://")
        return 0

    monkeypatch.setattr(local, "run_stack", run_stack)
    monkeypatch.setattr(local, "anabranch_services", lambda **_: fakes(orders))
    for name, value in {
        "ANABRANCH_TLS_CERTIFICATE": made / "server.crt",
        "ANABRANCH_TLS_KEY": made / "server.key",
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }.items():
        monkeypatch.setenv(name, str(value))
    assert await local.up(port=0, data_dir=tmp_path) == 0
    assert re.fullmatch(r"ready https://127\.0\.0\.1:\d+  kafka 127\.0\.0\.1:1  redis 127\.0\.0\.1:1", lines[0])


async def test_prometheus_is_told_where_each_process_is_also_when_one_has_moved(orders: Path, tmp_path: Path) -> None:
    """The file is whole at every moment, and follows a service that comes back on another port."""
    async with a_stack(tmp_path, orders) as stack:
        assert _targets(tmp_path) == {
            "gateway": ("gateway", "http", stack.gateway_url.removeprefix("http://")),
            "worker": ("worker", "http", f"127.0.0.1:{stack.service('worker').port}"),
        }
        before = stack.service("worker").port
        stack.service("worker").kill()
        await stack.service("worker").gone()
        with socket.create_server(("127.0.0.1", before)):
            await stack.service("worker").start()
            after = stack.service("worker").port
            assert after != before
            assert _targets(tmp_path)["worker"][2] == f"127.0.0.1:{after}"


async def test_a_stack_that_is_to_be_observed_says_what_to_install(
    orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs all the same."""
    monkeypatch.setattr(local, "prometheus_binary", lambda: None)
    said = StringIO()
    async with a_stack(tmp_path, orders, observe=True, console=Console(said)) as stack:
        assert stack.prometheus is None
        assert "prometheus" not in local.ready_line(stack)
    assert "apt install prometheus" in said.getvalue()


def _targets(home: Path) -> dict[str, tuple[str, str, str]]:
    groups = orjson.loads((home / "targets.json").read_bytes())
    labels = {group["labels"]["instance"]: (group["labels"], group["targets"]) for group in groups}
    return {name: (told["role"], told["__scheme__"], *where) for name, (told, where) in labels.items()}


async def test_a_stack_of_a_program_speaks_no_tls_unless_it_is_told(
    orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in its own environment."""
    monkeypatch.setenv("ANABRANCH_TLS_CERTIFICATE", "/nowhere")
    async with a_stack(tmp_path, orders) as stack:
        assert stack.gateway_url.startswith("http://")


async def test_a_child_that_dies_is_started_again_and_the_stack_says_so(orders: Path, tmp_path: Path) -> None:
    said = StringIO()
    async with a_stack(tmp_path, orders, console=Console(said)) as stack:
        (first,) = stack.pids("worker")
        os.kill(first, signal.SIGKILL)

        await until(lambda: stack.pids("worker") not in ([], [first]))
        await stack.until_ready()

    assert "worker was killed by signal 9; starting it again in 0.01 s" in said.getvalue()


async def test_the_death_of_a_child_is_noticed_while_its_own_children_hold_its_pipe(
    orders: Path, tmp_path: Path
) -> None:
    (orders / "worker-has-a-child").touch()
    async with a_stack(tmp_path, orders) as stack:
        (first,) = stack.pids("worker")
        os.kill(first, signal.SIGKILL)
        await until(lambda: stack.pids("worker") not in ([], [first]))


async def test_a_child_that_dies_six_times_a_minute_ends_the_stack_with_its_last_words(
    orders: Path, tmp_path: Path
) -> None:
    (orders / "worker-dies-at-once").touch()

    with pytest.raises(StackFailedError, match=r"(?s)worker exited with status 3 .*giving up.*cannot live like this"):
        async with a_stack(tmp_path, orders):
            pass

    assert descendants() == []


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_server_killed_again_and_again_while_it_starts_again_is_tried_again(
    moment: str, orders: Path, tmp_path: Path
) -> None:
    """A death during a restart is one more of the allowed ones, at whatever moment it comes."""
    async with a_stack_with_a_server(tmp_path, orders) as (stack, server):
        first, order = server.pid, orders / f"server-dies-{moment}"
        order.write_text("4")
        os.kill(first, signal.SIGKILL)

        await until_it_answers(server, after=first)  # which may be the last word of one that dies of it
        await until(lambda: order.read_text() == "0")
        await until_it_answers(server, after=first)
        await stack.until_ready()


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_server_killed_while_the_stack_starts_is_tried_again(moment: str, orders: Path, tmp_path: Path) -> None:
    """The first start is no other than those after it."""
    (orders / f"server-dies-{moment}").write_text("5")
    async with a_stack_with_a_server(tmp_path, orders) as (stack, server):
        await until_it_answers(server)
        await stack.until_ready()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("is_first_start", [True, False])
async def test_a_server_killed_a_sixth_time_ends_the_stack(
    moment: str, is_first_start: bool, orders: Path, tmp_path: Path
) -> None:
    """What dies too often is given up, whether it was up in between or not."""
    order = orders / f"server-dies-{moment}"
    if is_first_start:
        order.write_text("6")
    with pytest.raises(StackFailedError, match=r"server .*giving up"):
        async with a_stack_with_a_server(tmp_path, orders) as (stack, server):
            if not is_first_start:
                order.write_text("5")
                os.kill(server.pid, signal.SIGKILL)
            async with asyncio.timeout(WAIT_S):
                await stack.failed()

    assert descendants() == []


async def test_a_server_that_starts_too_slowly_again_is_tried_again(orders: Path, tmp_path: Path) -> None:
    """A start that takes too long counts as one more death."""
    server = FakeServer(tmp_path, orders)
    starts = iter((0.001, WAIT_S))  # what the second start may take is not enough, that of the third is

    class Impatient:
        name = server.name
        died, last_words = server.died, server.last_words

        async def start(self) -> None:
            await server.start(next(starts))

    await server.start()
    supervising = asyncio.create_task(supervise(Impatient(), Silence(), RestartBudget(), delay_s=0))
    try:
        first = server.pid
        server.signal(signal.SIGKILL)
        await until_it_answers(server, after=first)
        assert next(starts, None) is None
    finally:
        supervising.cancel()
        await server.kill()


async def test_a_port_that_was_taken_before_the_first_answer_gives_way(orders: Path, tmp_path: Path) -> None:
    """Until a server has answered nobody knows its port, so that another one does as well."""
    server = FakeServer(tmp_path, orders)
    (orders / "server-dies-at once").write_text("1")
    with pytest.raises(DiedStartingError):
        await server.start()
    with socket.create_server(("127.0.0.1", server.port)) as thief:
        await server.start()
        try:
            assert server.port != thief.getsockname()[1]
        finally:
            await server.kill()


async def test_kafka_killed_again_while_it_starts_again_comes_back(orders: Path, tmp_path: Path) -> None:
    """The real thing: two kills, the second of a broker that does not answer yet."""
    async with a_stack(tmp_path, orders, bootstrap=None) as stack:
        kafka = stack.kafka
        assert kafka is not None
        pids = [kafka.pid]
        for _ in range(2):
            os.kill(pids[-1], signal.SIGKILL)
            await until(lambda: kafka.running and kafka.pid not in pids)
            pids.append(kafka.pid)
        await until_it_answers(kafka)
        await stack.until_ready()


def test_restarts_are_counted_in_a_sliding_minute() -> None:
    budget = RestartBudget(limit=2, window_s=60)

    assert [budget.spend(at) for at in (0, 1, 2, 59, 60, 60.5, 61)] == [True, True, False, False, True, False, True]


async def test_a_stack_that_cannot_go_on_exits_with_status_1_and_leaves_no_process(
    orders: Path, tmp_path: Path
) -> None:
    async with a_stack_process(tmp_path, orders) as process:
        await line(process, "ready ")
        (orders / "worker-dies-at-once").touch()
        next(p for p in processes_below(process.pid) if "worker" in p.cmdline()).kill()

        assert await process.wait() == 1

    assert leftovers(orders) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_asked_to_stop_it_stops_in_order_and_leaves_no_process(
    how: signal.Signals, orders: Path, tmp_path: Path
) -> None:
    (orders / "worker-has-a-child").touch()
    async with a_stack_process(tmp_path, orders) as process:
        await line(process, "ready ")
        process.send_signal(how)

        assert await process.wait() == 0

    assert leftovers(orders) == []


async def test_asked_to_stop_while_it_starts_it_stops_and_leaves_no_process(orders: Path, tmp_path: Path) -> None:
    (orders / "worker-is-never-ready").touch()
    async with a_stack_process(tmp_path, orders, "servers") as process:
        await line(process, "worker listens")
        process.send_signal(signal.SIGINT)

        assert await process.wait() == 0

    assert leftovers(orders) == []


async def test_a_service_that_never_gets_ready_is_named(orders: Path, tmp_path: Path) -> None:
    deaf = Service("deaf", (sys.executable, "-c", "print('here', flush=True); import time; time.sleep(600)"))
    stack = LocalStack(
        tmp_path,
        services=[*fakes(orders), deaf],
        bootstrap="127.0.0.1:1",
        redis_url="redis://127.0.0.1:1/0",
        ready_timeout_s=2.0,
    )

    with pytest.raises(StackFailedError, match=r"(?s)not ready after 2 s: deaf\n.*here"):
        await stack.start()

    assert descendants() == []


async def test_asked_twice_it_kills_what_hangs(orders: Path, tmp_path: Path) -> None:
    async with a_stack_process(tmp_path, orders) as process:
        await line(process, "ready ")
        worker = next(p for p in processes_below(process.pid) if "worker" in p.cmdline())
        worker.suspend()  # deaf to SIGTERM
        process.send_signal(signal.SIGINT)
        await line(process, "stopping")
        process.send_signal(signal.SIGINT)

        assert await process.wait() == 130

    assert leftovers(orders) == []


async def test_killed_with_everything_running_it_takes_kafka_valkey_and_services_with_it(
    orders: Path, tmp_path: Path
) -> None:
    async with a_stack_process(tmp_path, orders, "servers") as process:
        await line(process, "ready ")
        below = processes_below(process.pid)
        assert {"java", "valkey-server"} <= {p.name() for p in below}
        process.kill()
        await until(lambda: not any(alive(p) for p in below))


async def test_ready_is_one_line_with_the_three_addresses(orders: Path, tmp_path: Path) -> None:
    async with a_stack_process(tmp_path, orders, "servers") as process:
        ready = await line(process, "ready ")
        assert re.fullmatch(
            r"ready http://127\.0\.0\.1:\d+  kafka 127\.0\.0\.1:\d+  redis 127\.0\.0\.1:\d+", ready.rstrip()
        )
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert leftovers(orders) == []


async def test_a_second_stack_on_one_directory_is_refused_with_the_pid_of_the_first(
    orders: Path, tmp_path: Path
) -> None:
    async with a_stack(tmp_path, orders):
        with pytest.raises(HomeError, match=rf"in use by another process \(pid {os.getpid()}\)"):
            async with a_stack(tmp_path, orders):
                pass


async def test_two_stacks_on_two_directories_choose_different_ports(orders: Path, tmp_path: Path) -> None:
    async with a_stack(tmp_path / "a", orders) as one, a_stack(tmp_path / "b", orders) as other:
        assert one.gateway_url != other.gateway_url


async def test_fresh_clears_what_is_ours(orders: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with a_stack(home, orders):
        (home / "old").mkdir()
        (home / "old" / "data").touch()
    async with a_stack(home, orders, fresh=True):
        assert not (home / "old").exists()


async def test_fresh_refuses_a_directory_that_is_not_ours(orders: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(HomeError, match="not clearing it"):
        async with a_stack(tmp_path, orders, fresh=True):
            pass

    assert (tmp_path / "thesis.tex").exists()


async def test_without_restarts_a_killed_child_stays_dead_until_it_is_started(orders: Path, tmp_path: Path) -> None:
    async with a_stack(tmp_path, orders, restart=False) as stack:
        worker = stack.service("worker")
        worker.kill()
        await worker.gone()
        assert stack.pids("worker") == []

        await worker.start()
        await stack.until_ready()
        assert len(stack.pids("worker")) == 1


async def test_a_process_more_of_a_role_joins_and_leaves(orders: Path, tmp_path: Path) -> None:
    async with a_stack(tmp_path, orders) as stack:
        added = await stack.add("worker", env={"EXTRA": "1"})
        assert stack.names("worker") == ["worker", added.name]
        await added.stop(5.0)
        assert len(stack.pids("worker")) == 1


def test_colour_is_for_terminals_and_never_under_no_color() -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    assert wants_colour(Terminal(), {})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(StringIO(), {})


def fakes(orders: Path) -> tuple[Service, ...]:
    """A gateway and a worker that do nothing."""

    def fake(role: str) -> Service:
        return Service(role, (sys.executable, "-c", FAKE_SERVICE, role, str(orders)))

    return fake("gateway"), fake("worker")


def a_stack(home: Path, orders: Path, **options: object) -> LocalStack:
    """A stack of fakes that uses no Kafka and no Redis."""
    given = {"bootstrap": "127.0.0.1:1", "redis_url": "redis://127.0.0.1:1/0", "restart_delay_s": 0.01, **options}
    return LocalStack(home, services=fakes(orders), **given)  # type: ignore[arg-type]


class FakeServer(LocalServer):
    """A server that dies when it is told to."""

    name = "server"

    def __init__(self, data_dir: Path, orders: Path) -> None:
        super().__init__(data_dir, None)
        self._orders = orders

    async def _prepare(self) -> None:
        pass

    async def _spawn(self) -> Child:
        command = [sys.executable, "-S", "-c", FAKE_SERVER, str(self._orders), str(self.port)]
        return await spawn(command, env=os.environ, log=self.log_path)

    async def _answers(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            return await reader.readexactly(5) == b"here\n"
        finally:
            writer.close()


@asynccontextmanager
async def a_stack_with_a_server(home: Path, orders: Path) -> AsyncIterator[tuple[LocalStack, FakeServer]]:
    """A stack of fakes one of which stands where Valkey does."""
    stack, server = a_stack(home, orders), FakeServer(home, orders)
    stack.redis = server  # type: ignore[assignment]
    stack._given_redis_url = None
    server.url = "redis://127.0.0.1:1/0"  # type: ignore[attr-defined]
    async with stack:
        yield stack, server


async def until_it_answers(server: LocalServer, after: int | None = None) -> None:
    """Wait until it runs, not as the process `after`, and answers."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(OSError, EOFError, RuntimeError):
                if server.running and server.pid != after and await server._answers():
                    return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def a_stack_process(home: Path, orders: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The same as a program; killed when the test leaves it running."""
    driver = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", driver, str(home), str(orders), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(WAIT_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a file tells a fake service what to do; its path marks the processes of this test."""
    return tmp_path_factory.mktemp("orders")


async def line(process: asyncio.subprocess.Process, having: str) -> str:
    assert process.stdout is not None
    async for raw in process.stdout:
        if having in raw.decode():
            return raw.decode()
    raise AssertionError(f"no line with {having!r}")


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not fact():
            await asyncio.sleep(0.01)


def processes_below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def descendants() -> list[psutil.Process]:
    return [p for p in processes_below(os.getpid()) if alive(p)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leftovers(orders: Path) -> list[list[str]]:
    """Processes of this test that still run: fakes by the path of their orders, and what a fake started."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if str(orders) in command or "anabranch-fake-grandchild" in command:
            found.append(command)
    return found
