"""The router against a model of it that is too simple to be wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quintain.rollout.engines.vllm.router import Router

REPLICAS = st.integers(0, 3)
SESSIONS = st.sampled_from("abcdefgh")


class RouterMachine(RuleBasedStateMachine):
    """Any order of replicas coming and going, and of requests beginning and ending."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router()
        self.up: set[int] = set()
        self.running: list[int] = []  # the replica of each request in flight
        self.homes: dict[str, int] = {}

    @rule(replica=REPLICAS)
    def a_replica_comes_up(self, replica: int) -> None:
        self.router.up(replica)
        self.up.add(replica)

    @rule(replica=REPLICAS)
    def a_replica_goes_down(self, replica: int) -> None:
        self.router.down(replica)
        self.up.discard(replica)
        self.running = [at for at in self.running if at != replica]
        self.homes = {session: home for session, home in self.homes.items() if home != replica}

    @rule(session=SESSIONS)
    def a_session_asks(self, session: str) -> None:
        picked = self.router.pick(session)
        if not self.up:
            assert picked is None
            return
        assert picked in self.up
        if session in self.homes:
            assert picked == self.homes[session]
        else:
            loads = {replica: self.running.count(replica) for replica in self.up}
            assert loads[picked] == min(loads.values())
            rivals = [replica for replica in self.up if loads[replica] == loads[picked]]
            residents = {replica: list(self.homes.values()).count(replica) for replica in rivals}
            assert residents[picked] == min(residents.values())
        self.homes[session] = picked
        self.running.append(picked)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(self.running))
        self.running.remove(replica)
        self.router.done(replica)

    @invariant()
    def loads_are_the_requests_in_flight(self) -> None:
        for replica in range(4):
            assert self.router._load.get(replica, 0) == self.running.count(replica)


TestRouter = RouterMachine.TestCase
TestRouter.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(1, 5), st.integers(0, 60))
def test_new_sessions_are_spread_evenly_even_while_none_of_them_asks(replicas: int, sessions: int) -> None:
    router = Router()
    for replica in range(replicas):
        router.up(replica)
    homes = []
    for session in range(sessions):
        home = router.pick(str(session))
        assert home is not None
        router.done(home)
        homes.append(home)
    counts = [homes.count(replica) for replica in range(replicas)]
    assert max(counts) - min(counts) <= 1


def test_the_longest_silent_session_is_forgotten_first() -> None:
    router = Router(memory=2)
    router.up(0)
    for session in ("a", "b", "a", "c"):
        router.pick(session)
    assert [router._home.get(session) for session in "abc"] == [0, None, 0]


def test_saying_twice_that_a_replica_is_up_or_down_changes_nothing() -> None:
    router = Router()
    router.up(0)
    router.pick("a")
    router.up(0)
    assert router._load[0] == 1
    router.down(0)
    router.down(0)
    assert router.pick("a") is None
