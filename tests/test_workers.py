"""Pools of worker processes, and signals around their start."""

import os
import signal

import pytest

from vlvm_jax.errors import Interrupted
from vlvm_jax.workers import Aside, made, pool, postponed, stoppable

BALLAST = bytes(1 << 20)  # more than the pipe holds through which a process is started


def begin(ballast):
    assert ballast.load() == BALLAST


def test_a_worker_of_a_pool_that_dies_as_it_starts_ends_the_work(tmp_path, starting):
    starting("kill -9 $$")
    with pytest.raises(Interrupted, match="a worker process died"), pool(1, begin, (Aside(BALLAST),)) as processes:
        processes.submit(os.getpid).result()


def test_a_pool_leaves_signals_to_the_parent_from_the_first_instruction(starting):
    starting("for name in INT TERM HUP USR1 USR2; do kill -$name $$; done")
    with pool(1, begin, (Aside(BALLAST),)) as processes:
        worker = processes.submit(os.getpid).result()
        os.kill(worker, signal.SIGTERM)
        assert processes.submit(os.getpid).result() == worker


class Part:
    """Makes a part of two records; each carries more than the pipe holds."""

    def __init__(self, killed=None):
        self.killed, self.ballast = killed, BALLAST

    def __call__(self, index, tick):
        for _ in range(2):
            tick()
            if index == self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_parts_are_made_and_counted():
    calls = []
    assert sorted(made(Part(), range(3, 9), 2, calls.append)) == [3, 4, 5, 6, 7, 8]
    assert calls[-1] == 12


def test_a_worker_that_dies_over_a_part_ends_the_work():
    with pytest.raises(Interrupted, match="a worker process died"):
        list(made(Part(killed=5), range(8), 2, lambda done: None))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_postponed_signals_are_handled_afterwards(number):
    done = []
    with pytest.raises(Interrupted, match="later"), stoppable("later"):
        with postponed():
            os.kill(os.getpid(), number)
            done.append("within")
        done.append("after")
    assert done == ["within"]
