"""The whole system on this machine: Kafka, Valkey and every service, each a process of its own.

Start: Kafka and Valkey side by side, then all services at once. Stop: the gateway (nothing new comes in), then the
other services side by side (they hand back what they hold while Kafka still answers), then Kafka, then Valkey.
"""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from anabranch.deploy.local.console import Console, Silence
from anabranch.deploy.local.grafana import HOW_TO_INSTALL as HOW_TO_INSTALL_GRAFANA
from anabranch.deploy.local.grafana import LocalGrafana
from anabranch.deploy.local.grafana import command as grafana_command
from anabranch.deploy.local.home import Home, default_home
from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.prometheus import HOW_TO_INSTALL, LocalPrometheus
from anabranch.deploy.local.prometheus import binary as prometheus_binary
from anabranch.deploy.local.redis import LocalRedis
from anabranch.deploy.local.server import LocalServer
from anabranch.deploy.local.service_process import ServiceProcess, inherited
from anabranch.deploy.local.services import ENGINE, GATEWAY, OF_THE_RECORD, Service, anabranch_services
from anabranch.deploy.local.supervisor import (
    RESTART_DELAY_S,
    RESTARTS_PER_WINDOW,
    RestartBudget,
    StackFailedError,
    all_of,
    ending,
    start,
    supervise,
)
from anabranch.deploy.local.targets import TARGETS, write_targets
from anabranch.shared.record.database import UNANSWERED, open_database
from anabranch.shared.record.schema import upgrade

DEFAULT_PORT = 8080
READY_TIMEOUT_S = 60.0
LOOPBACK = "127.0.0.0/8,[::1],localhost"  # what runs on the same machine is meant to be called
STOP_DEADLINE_S = 15.0  # longer than the services' own, so that SIGKILL is for those that hang

_CERTIFICATE, _KEY = "ANABRANCH_TLS_CERTIFICATE", "ANABRANCH_TLS_KEY"


class LocalStack:
    """The stack as an async context manager: ready when entered, all processes gone when left.

    `port` is the gateway's, 0 for any free one. `env` is added to every service's environment, `role_env` to that
    of one role; the gateway's certificate is taken from these alone, not from this process's environment.
    `bootstrap` and `redis_url` name a Kafka and a Redis to use instead of starting them; `database_url` names the
    database of the record, a file in the directory unless given, none if empty. A child that dies is started again,
    `restarts_per_window` times within a minute at most; with `restart=False` it stays dead. Raises HomeError when
    another stack has the directory, and StackFailedError when a child does not become ready. `observe` adds a
    Prometheus that scrapes all of it and a Grafana that shows it, where they are installed.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        orchestrators: int = 1,
        workers: int = 1,
        port: int = DEFAULT_PORT,
        env: Mapping[str, str] | None = None,
        role_env: Mapping[str, Mapping[str, str]] | None = None,
        services: Sequence[Service] | None = None,
        bootstrap: str | None = None,
        redis_url: str | None = None,
        database_url: str | None = None,
        restart: bool = True,
        restart_delay_s: float = RESTART_DELAY_S,
        restarts_per_window: int = RESTARTS_PER_WINDOW,
        ready_timeout_s: float = READY_TIMEOUT_S,
        stop_deadline_s: float = STOP_DEADLINE_S,
        fresh: bool = False,
        observe: bool = False,
        console: Console | None = None,
    ) -> None:
        self.home = Home(data_dir)
        self.kafka: LocalKafka | None = None
        self.redis: LocalRedis | None = None
        self._console = console or Silence()
        if bootstrap is None:
            self.kafka = LocalKafka(self.home.path, say=lambda line: self._console.say("kafka", line))
        if redis_url is None:
            self.redis = LocalRedis(self.home.path)
        self.prometheus: LocalPrometheus | None = None
        self.grafana: LocalGrafana | None = None
        if observe:
            self._observe()
        self._given_bootstrap, self._given_redis_url = bootstrap, redis_url
        self.database_url = f"sqlite:///{self.home.path}/record.db" if database_url is None else database_url
        self._services = tuple(services or anabranch_services(orchestrators=orchestrators, workers=workers))
        self._port = port
        self._env, self._role_env = dict(env or {}), dict(role_env or {})
        self._restarts, self._restart_delay_s = restart, restart_delay_s
        self._restarts_per_window = restarts_per_window
        self._ready_timeout_s, self._stop_deadline_s = ready_timeout_s, stop_deadline_s
        self._fresh = fresh
        self._is_ready = False
        self._running: dict[str, ServiceProcess] = {}
        self._supervisors: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[StackFailedError] | None = None

    def _observe(self) -> None:
        if prometheus_binary() is None:
            self._console.say("stack", HOW_TO_INSTALL)
            return
        self.prometheus = LocalPrometheus(self.home.path)
        if grafana_command() is None:
            self._console.say("stack", HOW_TO_INSTALL_GRAFANA)
        else:
            self.grafana = LocalGrafana(self.home.path)

    # What it consists of

    @property
    def gateway_url(self) -> str:
        """As in `http://127.0.0.1:8080`; `https` when the gateway has a certificate."""
        return next(service.url for service in self._running.values() if service.role == GATEWAY)

    @property
    def bootstrap(self) -> str:
        """Kafka's bootstrap servers."""
        return self.kafka.bootstrap if self.kafka else str(self._given_bootstrap)

    @property
    def redis_url(self) -> str:
        """As in `redis://127.0.0.1:6379/0`."""
        return self.redis.url if self.redis else str(self._given_redis_url)

    @property
    def processes(self) -> dict[str, int]:
        """The pid of every running process by its name; Kafka and Redis are in it when they are the stack's own."""
        pids: dict[str, int] = {server.name: server.pid for server in self._servers() if server.running}
        for name, service in self._running.items():
            if service.pid is not None:
                pids[name] = service.pid
        return pids

    def pids(self, role: str) -> list[int]:
        """The pids of the running processes of one role, `orchestrator` for instance."""
        return [s.pid for s in self._running.values() if s.role == role and s.pid is not None]

    def names(self, role: str) -> list[str]:
        """The names of one role's processes, running or not."""
        return [name for name, service in self._running.items() if service.role == role]

    def service(self, name: str) -> ServiceProcess:
        """One service by its name: its url, pid, starts and last words, its `kill`, `signal`, `stop` and `start`."""
        return self._running[name]

    # Start and stop

    async def start(self) -> None:
        """Start everything and return when every service is ready."""
        self.home.hold()
        try:
            if self._fresh:
                self.home.clear()
            self._failure = asyncio.get_running_loop().create_future()
            (self.home.path / "logs").mkdir(exist_ok=True)
            await all_of([self._bring_record_up, *(partial(self._start_server, server) for server in self._at_first())])
            await all_of([self._start_configured, self._start_grafana])
            await self.until_ready()
            self._is_ready = True
        except BaseException:  # a cancelled start, too, leaves no process behind
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything in order; when cancelled, at once. No process is left either way."""
        try:
            await self._stop_supervising()
            services = list(self._running.values())
            gateways = [s for s in services if s.role == GATEWAY]
            await self._stop_services(gateways)
            await self._stop_services([s for s in services if s.role != GATEWAY])
            for server in self._servers():
                await server.stop()
        finally:
            self.kill()
            self.home.release()

    def kill(self) -> None:
        """SIGKILL every process of the stack."""
        for service in self._running.values():
            service.kill()
        for server in self._servers():
            server.kill_now()

    async def gone(self) -> None:
        """Wait until no process of the stack is left."""
        await asyncio.gather(*(service.gone() for service in self._running.values()))
        await asyncio.gather(*(server.gone() for server in self._servers()))

    async def until_ready(self, timeout_s: float | None = None) -> None:
        """Wait until every service answers /readyz; raise StackFailedError with the last words of one that does not."""
        timeout_s = timeout_s or self._ready_timeout_s
        waiting = {name: asyncio.create_task(s.until_ready()) for name, s in self._running.items()}
        everybody = asyncio.create_task(asyncio.wait(waiting.values()))
        failed = asyncio.create_task(self.failed())
        try:
            async with asyncio.timeout(timeout_s):
                await _first(everybody, failed)
        except TimeoutError:
            late = [name for name, task in waiting.items() if not task.done() or task.cancelled()]
            words = "\n".join(f"{name}:\n{self._running[name].last_words()}" for name in late)
            raise StackFailedError(f"not ready after {timeout_s:g} s: {', '.join(late)}\n{words}") from None
        finally:
            await _cancel(failed, everybody, *waiting.values())

    async def failed(self) -> None:
        """Wait until the stack cannot go on, and raise its StackFailedError."""
        assert self._failure is not None
        raise await asyncio.shield(self._failure)

    async def add(self, role: str, *, env: Mapping[str, str] | None = None) -> ServiceProcess:
        """Start one more process of a role and return it when it is ready."""
        configured = next(service for service in self._services if service.role == role)
        number = 1 + max((int(n.rpartition("-")[2]) for n in self.names(role) if n[-1].isdigit()), default=1)
        service = await self._start_service(configured, f"{role}-{number}", env or {})
        async with asyncio.timeout(self._ready_timeout_s):
            await service.until_ready()
        return service

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # The parts

    def _at_first(self) -> list[LocalServer]:
        """The servers that ask no other."""
        return [server for server in self._servers() if server is not self.grafana]

    def _servers(self) -> Iterator[LocalServer]:
        """The servers that are the stack's own, in the order of stopping."""
        if self.kafka is not None:
            yield self.kafka
        if self.redis is not None:
            yield self.redis
        if self.prometheus is not None:
            yield self.prometheus
        if self.grafana is not None:
            yield self.grafana

    async def _bring_record_up(self) -> None:
        if not self.database_url:
            return
        database = open_database(self.database_url, name="anabranch up")
        try:
            await upgrade(database)
        except UNANSWERED as error:
            raise StackFailedError(f"the database of the record cannot be used: {error}") from error
        finally:
            await database.dispose()

    async def _start_server(self, server: LocalServer) -> None:
        child, budget = _SupervisedServer(server), RestartBudget(self._restarts_per_window)
        if self._restarts:
            await start(child, budget, self._console, delay_s=self._restart_delay_s)
        else:
            await child.start()
        self._watch(child, budget)

    async def _start_grafana(self) -> None:
        if self.grafana is not None and self.prometheus is not None:
            self.grafana.prometheus_url = self.prometheus.url
            await self._start_server(self.grafana)

    async def _start_configured(self) -> None:
        for configured in self._services:
            for name in configured.names():
                await self._start_service(configured, name, {})

    async def _start_service(self, configured: Service, name: str, env: Mapping[str, str]) -> ServiceProcess:
        is_gateway = configured.role == GATEWAY
        given = {
            **self._common_env(),
            **self._env_of_record(configured),
            **self._role_env.get(configured.role, {}),
            **env,
        }
        taken = frozenset(service.port for service in self._running.values())
        service = ServiceProcess(
            name,
            configured.role,
            command=configured.command,
            env=inherited(given, has_secrets=configured.role not in ENGINE),
            log=self.home.path / "logs" / f"{name}.log",
            console=self._console,
            port=free_port(preferred=(self._port or None) if is_gateway else None, besides=taken),
            keeps_port=is_gateway,
            speaks_tls=is_gateway and bool(given[_CERTIFICATE]),
            started=self._write_targets,
        )
        self._running[name] = service
        await service.start()
        self._watch(service, RestartBudget(self._restarts_per_window))
        return service

    def _write_targets(self) -> None:
        """Say where every `/metrics` is: at each start, since a service that is started again may have another port."""
        write_targets(self.home.path / TARGETS, self._running.values())

    def _env_of_record(self, configured: Service) -> dict[str, str]:
        """Handlers of steps run what others wrote: the record of all runs is not theirs to find."""
        is_told = configured.role in OF_THE_RECORD
        return {"DATABASE_URL": self.database_url if is_told else "", "ANABRANCH_DATABASE_URL": ""}

    def _common_env(self) -> dict[str, str]:
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "REDIS_URL": self.redis_url,
            **({"KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"} if self.kafka else {}),  # our own, whoever else's is named
            **dict.fromkeys((_CERTIFICATE, _KEY), ""),  # whoever's shell this is: `up` hands them on
            "ANABRANCH_HOME": str(self.home.path),
            "ANABRANCH_LOG_FORMAT": "console",
            "ANABRANCH_TOPIC_PREFIX": "pipelines",
            "ANABRANCH_HTTP_ALLOW": os.environ.get("ANABRANCH_HTTP_ALLOW", LOOPBACK),
            **self._env,
        }

    def _watch(self, child: "ServiceProcess | _SupervisedServer", budget: RestartBudget) -> None:
        if self._restarts:
            watching = supervise(child, self._console, budget, delay_s=self._restart_delay_s)
        else:
            watching = self._tell_deaths(child)
        task = asyncio.create_task(watching, name=f"supervisor of {child.name}")
        self._supervisors.add(task)
        task.add_done_callback(self._supervisor_ended)

    async def _tell_deaths(self, child: "ServiceProcess | _SupervisedServer") -> None:
        """Without restarts a death is only told, but ends a stack that is still starting."""
        how = ending(await child.died())
        self._console.say("stack", f"{child.name} {how}")
        if not self._is_ready:
            raise StackFailedError(f"{child.name} {how} before the stack was ready\n{child.last_words()}")

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        self._supervisors.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self._failure is None or self._failure.done():
            return
        failure = error if isinstance(error, StackFailedError) else StackFailedError(str(error))
        failure.__cause__ = None if failure is error else error
        self._failure.set_result(failure)

    async def _stop_supervising(self) -> None:
        await _cancel(*self._supervisors)

    async def _stop_services(self, services: Sequence[ServiceProcess]) -> None:
        await asyncio.gather(*(service.stop(self._stop_deadline_s) for service in services))


class _SupervisedServer:
    """Kafka or Valkey as the supervisor sees it; it comes back on its own port with its own data."""

    def __init__(self, server: LocalServer) -> None:
        self.name = server.name
        self._server = server

    async def died(self) -> int:
        return await self._server.died()

    async def start(self) -> None:
        if not self._server.running:  # somebody else may have started it within the second
            await self._server.start()

    def last_words(self) -> str:
        return self._server.last_words()


async def up(
    *,
    fresh: bool = False,
    orchestrators: int = 1,
    workers: int = 1,
    port: int = DEFAULT_PORT,
    data_dir: Path | None = None,
    observe: bool = False,
) -> int:
    """Run the local stack until Ctrl-C; return the exit code of the command.

    With KAFKA_BOOTSTRAP_SERVERS or REDIS_URL set, those are used instead of servers of its own, with DATABASE_URL that
    database instead of a file; with ANABRANCH_TLS_CERTIFICATE the gateway speaks TLS.
    """
    console = Console()
    stack = LocalStack(
        data_dir or default_home(),
        orchestrators=orchestrators,
        workers=workers,
        port=port,
        bootstrap=os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or None,
        redis_url=os.environ.get("REDIS_URL") or None,
        database_url=os.environ.get("DATABASE_URL") or None,
        env=_chosen("ANABRANCH_LOG_FORMAT", "ANABRANCH_TOPIC_PREFIX", _CERTIFICATE, _KEY),
        fresh=fresh,
        observe=observe,
        console=console,
    )
    return await run_stack(stack, console)


async def run_stack(stack: LocalStack, console: Console) -> int:
    """Run the stack until Ctrl-C or SIGTERM; return the exit code: 0, or 1 when it could not start or go on.

    A second signal kills what is still there.
    """
    asked = asyncio.Event()
    task = asyncio.create_task(_serve(stack, console, asked), name="stack")

    def on_signal() -> None:
        if asked.is_set():
            task.cancel()  # stopping turns into killing
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        return await task
    except asyncio.CancelledError:
        if not asked.is_set():
            raise
        stack.kill()
        await stack.gone()
        return 130  # what a shell reports for a program that Ctrl-C ended
    except (StackFailedError, RuntimeError, OSError) as error:
        console.say("stack", str(error))
        return 1
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _serve(stack: LocalStack, console: Console, asked: asyncio.Event) -> int:
    stop_wanted = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(stack.start())
    try:
        await _first(starting, stop_wanted)
        if not stop_wanted.done():
            console.plain(ready_line(stack))
            await _first(stop_wanted, failed := asyncio.create_task(stack.failed()))
            await _cancel(failed)
        console.say("stack", "stopping")
        return 0
    finally:
        await _cancel(stop_wanted, starting)
        await stack.stop()


def ready_line(stack: LocalStack) -> str:
    """The one line that says where everything is."""
    redis = urlsplit(stack.redis_url)
    line = f"ready {stack.gateway_url}  kafka {stack.bootstrap}  redis {redis.hostname}:{redis.port or 6379}"
    observers = [server for server in (stack.prometheus, stack.grafana) if server is not None]
    return "  ".join([line, *(f"{server.name} {server.url}" for server in observers)])


async def _first(*jobs: "asyncio.Future[Any]") -> None:
    """Wait until one of the jobs is done; raise what it raised. The others go on."""
    done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
    for job in done:
        job.result()


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _chosen(*names: str) -> dict[str, str]:
    return {name: os.environ[name] for name in names if os.environ.get(name)}
