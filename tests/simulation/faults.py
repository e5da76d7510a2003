"""Which faults befall a world, and when: a plan drawn from the seed."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from .group import SESSION_S
from .virtual import Host
from .weather import CALM, Climate
from .workload import USES

if TYPE_CHECKING:
    from .simulation import Slot, World

CALM_AT_S = 60.0  # from here on nothing goes wrong any more


def climate_of(random: Random) -> Climate:
    """Return how likely faults are in a world: half of the worlds are mild, so that single faults show alone."""
    harsh = random.random() < 0.5
    return Climate(
        slow=random.choice((0.0, 0.02, 0.1)),
        refused=0.002 if harsh else 0.0,
        unknown=0.002 if harsh else 0.0,
        repeated=random.choice((0.0, 0.03, 0.15)),
        checkpoint_refused=random.choice((0.0, 0.03)),
        checkpoint_unknown=random.choice((0.0, 0.03)),
        stale=random.choice((0.0, 0.7)),
        swallowed=random.choice((0.0, 0.3)),
        few=random.choice((0.0, 0.5)),
        lost_request=0.5,
        slow_start=random.choice((0.0, 0.5)),
        restore_failed=random.choice((0.0, 0.0, 0.3)),
    )


@dataclass(slots=True)
class Plan:
    """How large a world is, and what happens to it."""

    orchestrators: int
    workers: int
    runs: int
    faults: list[tuple[float, str]]

    @classmethod
    def drawn(cls, random: Random, favoured: Collection[str] = ()) -> "Plan":
        """Return a plan, with more of the favoured faults."""
        names = list(_FAULTS)
        weights = [weight * (20 if name in favoured else 1) for name, (weight, _) in _FAULTS.items()]
        count = random.choice((2, 4, 8))
        kinds = random.choices(names, weights, k=count)
        return cls(
            orchestrators=random.choice((1, 2, 2)),
            workers=random.choice((1, 2, 2)),
            runs=random.randint(3, 7),
            faults=sorted((random.uniform(0.3, CALM_AT_S - 15), kind) for kind in kinds),
        )

    def schedule(self, world: "World") -> None:
        """Have everything happen at its time."""
        for at_s, kind in self.faults:
            world.loop.later(at_s, _FAULTS[kind][1], world)

    def calm(self, world: "World") -> None:
        """End every fault that lasts."""
        world.weather.climate = CALM
        world.broker.unwritable.clear()
        _redis_up(world)
        for host in world.hosts():
            host.handles_left = None
            _recover(world, host)


def _pick(world: "World", uses: str) -> Host | None:
    hosts = [host for host in world.hosts() if host.name.startswith(uses) and not host.is_frozen and not host.is_deaf]
    return world.random.choice(hosts) if hosts else None


def _kill(uses: str) -> Callable[["World"], None]:
    def kill(world: "World") -> None:
        host = _pick(world, uses)
        if host is not None:
            host.handles_left = world.random.randint(1, 120)  # it dies at whatever await that is
            world.weather.count(f"crashes of a {uses}" if uses == "worker" else f"crashes of an {uses}")

    return kill


def _freeze(uses: str) -> Callable[["World"], None]:
    def freeze(world: "World") -> None:
        host = _pick(world, uses)
        if host is None:
            return
        host.freeze()
        world.slot_of(host).group.silent(host)
        lasts_s = SESSION_S * world.random.choice((0.5, 1.1, 1.5, 3.0))
        world.weather.count("zombies that were frozen" if lasts_s > SESSION_S else "short freezes")
        world.loop.later(lasts_s, _recover, world, host)

    return freeze


def _deafen(uses: str) -> Callable[["World"], None]:
    def deafen(world: "World") -> None:
        host = _pick(world, uses)
        if host is None:
            return
        host.is_deaf = host.has_failed = True
        world.slot_of(host).group.silent(host)
        world.weather.count("zombies that went on")
        world.loop.later(SESSION_S * world.random.uniform(1.0, 3.0), _recover, world, host)

    return deafen


def _recover(world: "World", host: Host) -> None:
    host.is_deaf = False
    if host.is_frozen:
        host.thaw()
    if host.is_alive:
        slot = world.slot_of(host)
        assert slot.process is not None
        slot.group.back(host, slot.process.members)


def _leaderless(uses: str) -> Callable[["World"], None]:
    """No partition of a topic takes appends for a while, and some process is killed meanwhile."""

    def begin(world: "World") -> None:
        topics = world.broker.topics
        names = (topics.inbox, topics.inbox, topics.run_events, topics.steps(USES), topics.control)
        topic, partition = world.random.choice(names), world.random.randrange(topics.runs)
        lasts_s = world.random.uniform(0.5, 6.0)
        world.broker.leaderless[topic, partition] = world.loop.now + lasts_s
        world.weather.count("outages of a partition")
        world.loop.later(lasts_s * world.random.random(), _kill(uses), world)

    return begin


def _unwritable(world: "World") -> None:
    """The command topic refuses everything for a while; or it only seems to be gone, and everything is sent again."""
    if world.random.random() < 0.2:
        _seems_gone(world)
        return
    world.broker.unwritable[world.broker.topics.steps(USES)] = world.loop.now + world.random.choice((0.3, 3.0, 20.0))
    world.weather.count("unwritable command topics")


def _seems_gone(world: "World") -> None:
    from .processes import OrchestratorProcess

    for slot in world.slots:
        if isinstance(slot.process, OrchestratorProcess) and slot.process.host.is_alive:
            for task in slot.process.owner.tasks.values():
                task.commands_gone(USES)
    world.weather.count("command topics that seemed to be gone")


def _fence(world: "World") -> None:
    """Somebody else starts the partition's producer, and does nothing with it."""
    world.random.choice(world.broker.changelogs).start_producer()
    world.weather.count("phantom producers")


def _step_time(world: "World") -> None:
    world.broker.skew_ms = world.random.randint(-2000, 2000)  # within the margin that workers allow for
    world.weather.count("steps of broker time")


def _redis_down(world: "World") -> None:
    world.redis.was_lost = True
    if world.random.random() < 0.5:
        world.redis.is_down = True
    else:
        world.redis.slow_s = 3.0
    world.weather.count("outages of Redis")
    world.loop.later(world.random.uniform(1, 12), _redis_up, world)


def _redis_up(world: "World") -> None:
    world.redis.is_down = False
    world.redis.slow_s = 0.0


def _redis_lost(world: "World") -> None:
    world.redis.lose()
    world.weather.count("losses of Redis")


def _stop(uses: str) -> Callable[["World"], None]:
    def stop(world: "World") -> None:
        host = _pick(world, uses)
        if host is not None:
            process = world.slot_of(host).process
            assert process is not None
            process.stop()
            world.weather.count("graceful stops")

    return stop


def _rebalance(world: "World") -> None:
    world.random.choice((world.inbox_group, world.steps_group)).rebalance()


def _hand_over_again_and_again(world: "World") -> None:
    """Partitions change hands, or are taken over anew, before anybody has had them for long."""
    at_s, until_s = world.loop.now, CALM_AT_S - 2
    while at_s < until_s:
        world.loop.later(at_s - world.loop.now, world.inbox_group.rebalance)
        at_s += world.random.uniform(0.5, 2.0)
    world.weather.count("series of hand-overs")


def _harm(world: "World") -> None:
    """A record of some run cannot be read, or says what nobody understands, at a take-over."""
    world.harm.due += 1
    world.inbox_group.rebalance()


def _more_workers(world: "World") -> None:
    slot = world.add_worker()
    world.loop.later(world.random.uniform(5, 30), _remove, slot)
    world.weather.count("workers added and removed")


def _remove(slot: "Slot") -> None:
    slot.is_wanted = False
    if slot.process is not None:
        slot.process.stop()


def _listener_raises(world: "World") -> None:
    """The next partition task cannot even be made."""
    from .processes import OrchestratorProcess

    slots = [slot for slot in world.slots if isinstance(slot.process, OrchestratorProcess)]
    process = world.random.choice(slots).process
    assert isinstance(process, OrchestratorProcess)
    process.break_next_task()


def _poison(world: "World") -> None:
    world.poison()
    world.weather.count("poison messages")


def _late_command(world: "World") -> None:
    """Some command that was there before comes again."""
    log = world.random.choice(world.logs(world.broker.topics.steps(USES), world.broker.topics.steps_partitions))
    if log.records:
        record = world.random.choice(log.records)
        log.append(world.broker.time_ms(), record.key, record.value, record.headers)
        world.weather.count("late repeats of a command")


_FAULTS: dict[str, tuple[int, Callable[["World"], None]]] = {
    "kill orchestrator": (6, _kill("orchestrator")),
    "kill worker": (5, _kill("worker")),
    "freeze orchestrator": (3, _freeze("orchestrator")),
    "freeze worker": (2, _freeze("worker")),
    "deafen orchestrator": (3, _deafen("orchestrator")),
    "deafen worker": (1, _deafen("worker")),
    "outage, kill orchestrator": (3, _leaderless("orchestrator")),
    "outage, kill worker": (3, _leaderless("worker")),
    "unwritable": (3, _unwritable),
    "fence": (2, _fence),
    "step time": (4, _step_time),
    "redis down": (1, _redis_down),
    "redis lost": (1, _redis_lost),
    "stop orchestrator": (2, _stop("orchestrator")),
    "stop worker": (2, _stop("worker")),
    "rebalance": (3, _rebalance),
    "hand over again and again": (2, _hand_over_again_and_again),
    "harm": (4, _harm),
    "more workers": (2, _more_workers),
    "listener raises": (1, _listener_raises),
    "poison": (1, _poison),
    "late command": (3, _late_command),
}
