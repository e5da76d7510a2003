"""A consumer group: dynamic members with sessions, eager rebalances in generations, sticky assignment.

The member's side runs in its process, the coordinator's side is the world's. A member that is frozen or deaf for longer
than the session is expelled, and finds out when it is back: then its client revokes what it had, and joins again.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from .broker import wake
from .virtual import Host, VirtualLoop
from .weather import Weather

SESSION_S = 6.0
REBALANCE_S = 10.0
HEARTBEAT_S = 0.5


class Listener(Protocol):
    """What a rebalance calls. What it raises is logged by the client, and swallowed."""

    async def on_assigned(self, partitions: Sequence[int], generation: int) -> None:
        """These partitions are the member's, under this generation."""

    async def on_revoked(self) -> None:
        """They are no longer."""


class Member:
    """The client's side of a membership."""

    def __init__(self, group: "Group", host: Host, listener: Listener) -> None:
        self.host = host
        self.partitions: Sequence[int] = ()
        self.has_joined = False  # in the round under way
        self.rejoin: asyncio.Future[None] = group.loop.create_future()
        self.share: asyncio.Future[tuple[int, Sequence[int]] | None] = group.loop.create_future()
        self._group = group
        self._listener = listener
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Join, and stay a member."""
        self._running = self.host.spawn(self._stay(), "membership")

    def leave(self) -> None:
        """Leave the group at once."""
        if self._running is not None:
            self._running.cancel()
        self._group.remove(self)

    async def _stay(self) -> None:
        while True:
            await self._until_heard()
            share = await self._group.join(self)
            if share is None:  # expelled meanwhile
                continue
            generation, self.partitions = share
            await self._call(self._listener.on_assigned(self.partitions, generation))
            await self.rejoin
            if self._group.weather.swallows():  # the listener raised before it did anything
                self.host.has_failed = True
                continue
            await self._call(self._listener.on_revoked())

    async def _until_heard(self) -> None:
        await asyncio.sleep(self._group.weather.latency_s())
        while self.host.is_deaf:
            await asyncio.sleep(HEARTBEAT_S)

    async def _call(self, listener: Awaitable[None]) -> None:
        try:
            await listener
        except Exception:  # noqa: BLE001  # the client swallows it
            self._group.weather.count("listener errors")


class Group:
    """The coordinator's side."""

    def __init__(self, loop: VirtualLoop, weather: Weather, partitions: int) -> None:
        self.loop = loop
        self.weather = weather
        self.generation = 0
        self.committed: dict[int, int] = {}
        self._partitions = range(partitions)
        self._members: list[Member] = []
        self._owners: dict[int, Member] = {}
        self._is_rebalancing = False
        self._round = 0

    def member(self, host: Host, listener: Listener) -> Member:
        """Return a member to be."""
        return Member(self, host, listener)

    # --- what members ask -------------------------------------------------------------------------------------------

    def join(self, member: Member) -> "asyncio.Future[tuple[int, Sequence[int]] | None]":
        """Return the member's share of the next generation; None when it was expelled before it had it."""
        if member not in self._members:
            self._members.append(member)
        member.has_joined = True
        member.share, member.rejoin = self.loop.create_future(), self.loop.create_future()
        if not self._is_rebalancing:
            self.rebalance()
        self._complete_if_all_joined()
        return member.share

    def remove(self, member: Member) -> None:
        """Take a member out; the others share what it had."""
        if member not in self._members:
            return
        self._members.remove(member)
        if not member.share.done():
            member.share.set_result(None)
        if self._is_rebalancing:
            self._complete_if_all_joined()
        else:
            self.rebalance()

    def commit(self, member: Member, generation: int, offsets: Mapping[int, int]) -> bool:
        """Commit offsets, unless the generation is over."""
        if member not in self._members or generation != self.generation or member.host.is_deaf:
            return False
        self.committed.update(offsets)
        return True

    def owns(self, member: Member, partition: int) -> bool:
        """Whether the partition is the member's in the current generation."""
        return self._owners.get(partition) is member

    # --- sessions ---------------------------------------------------------------------------------------------------

    def silent(self, host: Host) -> None:
        """A process sends no heartbeats from now on; it may come back."""
        for member in [m for m in self._members if m.host is host]:
            self.loop.later(SESSION_S, self._expel_if_silent, member)

    def back(self, host: Host, members: Sequence[Member]) -> None:
        """A process sends heartbeats again: its members learn when they were expelled."""
        for member in members:
            if member.host is host and member not in self._members:
                self._tell_to_rejoin(member)

    def _expel_if_silent(self, member: Member) -> None:
        host = member.host
        if not host.is_alive or host.is_frozen or host.is_deaf:
            self.remove(member)

    # --- rounds -----------------------------------------------------------------------------------------------------

    def rebalance(self) -> None:
        """Begin a round: every member is to join again."""
        if self._is_rebalancing or not self._members:
            return
        self._is_rebalancing = True
        self._round += 1
        self.weather.count("rebalances")
        for member in self._members:
            if not member.has_joined:
                self._tell_to_rejoin(member)
        self.loop.later(REBALANCE_S, self._expel_late, self._round)

    def _tell_to_rejoin(self, member: Member) -> None:
        self.loop.later(HEARTBEAT_S * self.weather.random.random(), self._tell, member)

    def _tell(self, member: Member) -> None:
        if member in self._members and (not self._is_rebalancing or member.has_joined):
            return  # it knew before it was told
        if member.host.is_deaf:
            self._tell_to_rejoin(member)
        else:
            wake(member.rejoin)

    def _expel_late(self, number: int) -> None:
        if self._is_rebalancing and number == self._round:
            for member in [m for m in self._members if not m.has_joined]:
                self.remove(member)
                self._tell_to_rejoin(member)

    def _complete_if_all_joined(self) -> None:
        if not self._is_rebalancing or not all(member.has_joined for member in self._members):
            return
        self._is_rebalancing = False
        self.generation += 1
        self._share_out()
        for member in self._members:
            member.has_joined = False
            mine = tuple(p for p in self._partitions if self._owners.get(p) is member)
            self.loop.later(self.weather.latency_s(), self._hand_out, member, self.generation, mine)

    def _hand_out(self, member: Member, generation: int, partitions: Sequence[int]) -> None:
        if generation != self.generation or member.share.done():
            return
        if member.host.is_deaf:
            self.loop.later(HEARTBEAT_S, self._hand_out, member, generation, partitions)
        else:
            member.share.set_result((generation, partitions))

    def _share_out(self) -> None:
        """Everybody keeps what it had, as far as that is fair."""
        if not self._members:
            self._owners = {}
            return
        most = -(-len(self._partitions) // len(self._members))
        shares: dict[Member, int] = dict.fromkeys(self._members, 0)
        free = []
        for partition in self._partitions:
            owner = self._owners.get(partition)
            if owner in shares and shares[owner] < most:
                shares[owner] += 1
            else:
                free.append(partition)
        for partition in free:
            self._owners[partition] = min(self._members, key=lambda m: (shares[m], self.weather.random.random()))
            shares[self._owners[partition]] += 1
