"""All replicas as one: who is up, who has which weights, and bringing back those that go down.

Invariants:
- weights are in force on all replicas that are up, or on none: a replica that fails while they are loaded is down, and
  comes back with what is in force;
- a replica gets requests only while it is up and the gate is open; the gate is open from `resume` to `pause`;
- a replica is up only with the weights in force;
- a replica that is ours and does not live is killed with everything it has started, then started again, at most
  `restarts` times in all; one that is not ours is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from quintain.failure import FailureError, FailureKind, QuintainError, Stage
from quintain.rollout.engines.base import Weights
from quintain.rollout.engines.vllm.dialect import Load
from quintain.rollout.engines.vllm.process import Process
from quintain.rollout.engines.vllm.replica import Replica, ReplicaDown
from quintain.rollout.engines.vllm.router import Router
from quintain.rollout.engines.vllm.weights import Holdings

T = TypeVar("T")

TICK_S = 0.2
"""How often a replica's process is looked at."""
LOOK_EVERY_S = 1.0
"""How often its metrics are."""
LOST_S = 5.0
"""How long a request waits to be told that no replica is left."""
SETTLE_S = 1.0
"""How long requests that a pause ends may take to say so."""


class ReplicaRequest:
    """A request on a replica. `interrupt` ends it from outside: `down` where the replica is to blame."""

    def __init__(self, member: Member, on_keep: Callable[[], None]) -> None:
        self.member, self.on_keep = member, on_keep
        self.interrupted = False
        self.down: str | None = None
        self.ended = asyncio.Event()
        self._scope: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        """Runs the body until it ends or is interrupted, which raises TimeoutError."""
        try:
            async with asyncio.timeout(-1 if self.interrupted else None) as self._scope:
                yield
        finally:
            self._scope = None
            self.member.attempts.discard(self)
            self.ended.set()

    def interrupt(self, down: str | None = None) -> None:
        """End it now."""
        self.interrupted, self.down = True, self.down or down
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())


class Member:
    """A replica's place in the fleet."""

    def __init__(self, index: int, replica: Replica, process: Process | None) -> None:
        self.index, self.replica, self.process = index, replica, process
        self.up = True
        self.gone: str | None = None  # why it will not come back
        self.frozen = False  # its server is paused
        self.broken = False  # it must be started anew, however healthy it looks
        self.restarts = 0
        self.attempts: set[ReplicaRequest] = set()
        self.last_sign = 0.0
        self.load = Load()
        self.before = Load()  # what the servers before this one had counted
        self.trouble = asyncio.Event()

    def sign(self) -> None:
        """The replica has shown that it lives."""
        self.last_sign = time.monotonic()


class Fleet:
    """Keeps `members` up. `report` is told, in a line, whatever a person may want to know."""

    def __init__(
        self,
        members: Sequence[Member],
        holdings: Holdings,
        *,
        keep: bool,
        restarts: int,
        start_s: float,
        hang_s: float,
        report: Callable[[str], None],
    ) -> None:
        self.members, self.holdings = members, holdings
        self._keep, self._restarts, self._start_s, self._hang_s = keep, restarts, start_s, hang_s
        self._report = report
        self._router = Router()
        for member in members:
            self._router.up(member.index)
        self._open = True
        self._unproved = False  # loaded since the last resume
        self._changed = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Look after the members from now on. Saying so again changes nothing."""
        if not self._tasks:
            for member in self.members:
                member.sign()
                self._tasks.append(asyncio.ensure_future(self._tend(member)))

    @property
    def up(self) -> list[Member]:
        """The members that are up."""
        return [member for member in self.members if member.up]

    @property
    def lost(self) -> str | None:
        """Why no replica is left nor will be, or None."""
        return self.members[0].gone if all(member.gone is not None for member in self.members) else None

    async def enter(self, session: str, on_keep: Callable[[], None]) -> ReplicaRequest:
        """A place for a request, once the gate is open and somebody is up.

        FailureError where nobody will be, but not at once: so the owner can end everything with its prompts pending,
        before they are spent on a sampler that is lost.
        """
        while True:
            index = self._router.pick(session) if self._open else None
            if index is not None:
                member = self.members[index]
                if not member.attempts:
                    member.sign()  # an idle one owes no sign of life
                attempt = ReplicaRequest(member, on_keep)
                member.attempts.add(attempt)
                return attempt
            if self.lost is not None:
                await asyncio.sleep(LOST_S)
                self._refuse_if_lost()
            await self._changed.wait()

    def leave(self, attempt: ReplicaRequest) -> None:
        """The request has ended."""
        if attempt.down is None:
            self._router.done(attempt.member.index)

    def suspect(self, member: Member, why: str, *, broken: bool = False) -> None:
        """`member` has not done what a living replica does: it gets nothing more until it has been looked at."""
        member.broken = member.broken or broken
        if not member.up:
            return
        member.up = False
        self._router.down(member.index)
        for attempt in list(member.attempts):
            attempt.interrupt(why)
        self._report(f"vLLM replica {member.index} is in trouble: {why}")
        member.trouble.set()
        self._notify()

    async def pause(self) -> None:
        """Close the gate and stop sampling; when this returns, nothing is sampled."""
        self._open = False
        await self.on_all(self.up, self._freeze)
        attempts = [attempt for member in self.members for attempt in member.attempts]
        if self._keep:
            for attempt in attempts:
                attempt.on_keep()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                for attempt in attempts:
                    await attempt.ended.wait()
        await self._interrupt([attempt for attempt in attempts if not attempt.ended.is_set()])

    async def load(self, weights: Weights) -> None:
        """Put `weights` in force on every replica that is up. FailureError where they are refused: then nothing is
        changed anywhere."""
        if self._unproved:  # what was sampled under weights that nobody has proved is given up
            await self._interrupt([attempt for member in self.members for attempt in member.attempts])
        while True:
            await self.somebody_up()
            async with self._publishing:
                agreed = await self.on_all(self.up, lambda member: self.holdings.check(member.replica, weights))
                if agreed:
                    await self._commit([member for member, _ in agreed], weights)
                    self._unproved = True
                    return

    async def resume(self) -> None:
        """Open the gate."""
        await self.on_all(self.up, self.thaw)
        self._unproved = False
        self._open = True
        self._notify()

    async def while_scoring(self, score: Callable[[Member], Awaitable[T]]) -> list[T]:
        """What `score` gives for each member that is up, at least one; a paused server is thawed for it."""

        async def one(member: Member) -> T:
            await self.thaw(member)
            return await score(member)

        while True:
            await self.somebody_up()
            frozen = [member for member in self.up if member.frozen]
            done = await self.on_all(self.up, one)
            if self._keep and not self._open:
                await self.on_all([member for member in frozen if member.up], self._freeze)
            if done:
                return [result for _, result in done]

    async def thaw(self, member: Member) -> None:
        """Let a paused server work."""
        if member.frozen:
            await member.replica.resume()
            member.frozen = False
            member.sign()

    async def somebody_up(self) -> None:
        """Return when a replica is up. FailureError where none will be."""
        while not self.up:
            self._refuse_if_lost()
            await self._changed.wait()

    async def on_all(self, members: Sequence[Member], act: Callable[[Member], Awaitable[T]]) -> list[tuple[Member, T]]:
        """`act` on each of `members` at once; those that did, with what it gave. One that is found down is suspected,
        and the first refusal is raised when all have answered."""
        results = await asyncio.gather(*(act(member) for member in members), return_exceptions=True)
        done: list[tuple[Member, T]] = []
        refusals: list[BaseException] = []
        for member, result in zip(members, results, strict=True):
            if isinstance(result, ReplicaDown):
                self.suspect(member, str(result))
            elif isinstance(result, BaseException):
                refusals.append(result)
            else:
                done.append((member, result))
        if refusals:
            raise refusals[0]
        return done

    async def close(self) -> None:
        """Stop looking after the members, close the connections, end the processes that are ours. May be repeated."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in self.members:
            member.up = False
            self._router.down(member.index)
            await member.replica.close()
            if member.process is not None:
                await asyncio.to_thread(member.process.kill)

    async def _commit(self, members: Sequence[Member], weights: Weights) -> None:
        """Load what every one of `members` has accepted; those that fail now are started anew."""
        new = self.holdings.with_weights(weights)
        try:
            results = await asyncio.gather(
                *(new.bring(member.replica, weights) for member in members), return_exceptions=True
            )
        except asyncio.CancelledError:
            for member in members:
                self.suspect(member, "loading weights was cancelled halfway", broken=True)
            raise
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) < len(members):
            self.holdings = new
        for member, result in zip(members, results, strict=True):
            if isinstance(result, (ReplicaDown, FailureError)):
                self.suspect(member, str(result), broken=True)
        if len(failures) == len(members):
            if isinstance(failures[0], FailureError):
                raise failures[0]
            raise FailureError.of(FailureKind.CRASHED, Stage.PUBLISH, f"no replica took the weights: {failures[0]}")
        await self.on_all([member for member in members if member.up], lambda member: new.tidy(member.replica))

    async def _freeze(self, member: Member) -> None:
        await member.replica.pause(keep=self._keep)
        member.frozen = True

    async def _interrupt(self, attempts: Sequence[ReplicaRequest]) -> None:
        for attempt in attempts:
            attempt.interrupt()
        for attempt in attempts:
            await attempt.ended.wait()

    async def _tend(self, member: Member) -> None:
        """One member's life: look at it while it is up, bring it back when it is down, until it is gone."""
        looked = 0.0
        while member.gone is None:
            if not member.up:
                await self._mend(member)
                continue
            if trouble := self._trouble(member):
                self.suspect(member, trouble, broken=True)
                continue
            if time.monotonic() - looked > LOOK_EVERY_S:
                looked = time.monotonic()
                with contextlib.suppress(ReplicaDown):  # a hung one is found by its silence
                    member.load = await member.replica.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await member.trouble.wait()

    def _trouble(self, member: Member) -> str | None:
        """What can be seen from outside to be wrong with a member that is up, or None."""
        if member.process is not None and (how := member.process.how_it_ended) is not None:
            return f"it ended ({how})"
        silent_s = time.monotonic() - member.last_sign
        if member.attempts and not member.frozen and silent_s > self._hang_s:
            return f"it has given no sign of life for {silent_s:.0f} s"
        return None

    async def _mend(self, member: Member) -> None:
        """Bring `member` back, or say that it is gone."""
        try:
            if member.process is not None:
                await self._restart_if_needed(member, member.process)
            elif not await self._wait_healthy(member, None):
                raise ReplicaDown(f"{member.replica.url} has not answered for {self._start_s:.0f} s")
        except (ReplicaDown, QuintainError) as error:
            self._give_up(member, str(error))
            return
        async with self._publishing:
            try:
                await self.holdings.catch_up(member.replica, fresh=member.broken)
                await member.replica.resume()  # it may have been paused when it was lost sight of
            except (ReplicaDown, FailureError) as error:
                self._report(f"vLLM replica {member.index} does not take the weights in force: {error}")
                member.broken = True
                if member.process is None:
                    member.restarts += 1
                    if member.restarts > self._restarts:
                        self._give_up(member, str(error))
                    await asyncio.sleep(TICK_S)
                return
            member.trouble.clear()
            member.up, member.broken, member.frozen = True, False, False
            member.sign()
            self._router.up(member.index)
        self._report(f"vLLM replica {member.index} is back")
        self._notify()

    def _give_up(self, member: Member, why: str) -> None:
        member.gone = why
        self._report(f"vLLM replica {member.index} is gone: {why}")
        self._notify()

    async def _restart_if_needed(self, member: Member, process: Process) -> None:
        """Have a healthy server of ours; ReplicaDown where there will be none."""
        if not member.broken and process.how_it_ended is None and await member.replica.is_healthy():
            return
        if member.restarts >= self._restarts:
            await asyncio.to_thread(process.kill)
            raise ReplicaDown(
                f"it was started {member.restarts} times again (rollout.restarts): {process.last_words()};"
                f" see {process.launch.log}"
            )
        member.restarts += 1
        member.before, member.load = _sum(member.before, member.load), Load()
        await asyncio.to_thread(process.start)
        member.broken = True  # it has none of the weights in force
        if not await self._wait_healthy(member, process):
            self._report(f"vLLM replica {member.index} did not come up: {process.last_words()}")
            await self._restart_if_needed(member, process)

    async def _wait_healthy(self, member: Member, process: Process | None) -> bool:
        deadline = time.monotonic() + self._start_s
        while time.monotonic() < deadline and (process is None or process.how_it_ended is None):
            if await member.replica.is_healthy():
                return True
            await asyncio.sleep(TICK_S)
        return False

    def _refuse_if_lost(self) -> None:
        if self.lost is not None:
            message = f"no vLLM replica is left: {self.lost}"
            raise FailureError.of(FailureKind.UNREACHABLE, Stage.GENERATE, message, retryable=False)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _sum(a: Load, b: Load) -> Load:
    """Counters of two servers, one after the other."""
    return Load(
        preemptions=a.preemptions + b.preemptions,
        prefix_hits=a.prefix_hits + b.prefix_hits,
        prefix_queries=a.prefix_queries + b.prefix_queries,
    )


def total_load(members: Sequence[Member]) -> Load:
    """The load of all `members`: sums, and of the cache's use the highest."""
    whole = Load()
    for member in members:
        whole = _sum(whole, _sum(member.before, member.load))
    up = [member.load for member in members if member.up]
    use = max((load.kv_usage for load in up), default=0.0)
    waiting = sum(load.waiting for load in up)
    return Load(waiting, use, whole.preemptions, whole.prefix_hits, whole.prefix_queries)
