"""How samples come from threads and from workers."""

import multiprocessing
import os
import signal

import grain
import pytest

from vlvm_jax.data.batch.loading import loaded
from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.workers import LEFT_TO_PARENT


def square(number):
    return {"number": number, "square": number**2}


def fail(sample):
    return sample["number"] // 0


def samples(count=40):
    return grain.MapDataset.range(count).map(square)


@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_come_in_order(workers, together):
    loading = Loading(workers=workers, threads=2, samples=8, batches=1, together=together)
    assert list(loaded(samples(), loading, rows=4)) == [square(number) for number in range(40)]


def test_workers_start_together():
    iterator = iter(loaded(samples(), Loading(workers=2, threads=1, samples=4, batches=1), rows=4))
    assert not multiprocessing.active_children()
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_goes_on_where_its_state_was_taken(workers):
    loading = Loading(workers=workers, threads=1, samples=4, batches=1, together=3)
    iterator = iter(loaded(samples(), loading, rows=4))
    for number in range(10):
        assert next(iterator) == square(number)
    again = iter(loaded(samples(), loading, rows=4))
    again.set_state(iterator.get_state())
    assert [next(again) for _ in range(10)] == [square(number) for number in range(10, 20)]


class Kill:
    """Samples whose worker is killed at some, the first time or every time."""

    def __init__(self, mark, at, always=False):
        self.mark, self.at, self.always = mark, at, always
        self.ballast = os.urandom(1 << 20)  # more than the pipe holds through which a process is started

    def __call__(self, number):
        if number in self.at:
            mark = self.mark / str(number)
            first = not mark.exists()
            mark.touch()
            if first or self.always:
                os.kill(os.getpid(), signal.SIGKILL)
        return square(number)


def test_another_worker_continues_where_one_was_killed(tmp_path):
    loading = Loading(workers=2, threads=1, samples=4, batches=1, together=2)
    mapped = grain.MapDataset.range(40).map(Kill(tmp_path, {5, 16, 23}))
    assert list(loaded(mapped, loading, rows=4)) == [square(number) for number in range(40)]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("threads", "together"), [(1, 1), (4, 3)])
def test_a_sample_at_which_every_worker_dies_is_named(tmp_path, threads, together):
    """Samples that other threads load meanwhile are not blamed."""
    mapped = grain.MapDataset.range(40).map(Kill(tmp_path, {5}, always=True))
    loading = Loading(workers=1, threads=threads, samples=8, batches=1, together=together)
    iterator = iter(loaded(mapped, loading, 4, "the sample of number {}".format))
    with pytest.raises(InputError, match=r"^the sample of number 5: 3 worker processes in a row died \(SIGKILL\)"):
        list(iterator)
    iterator.close()
    assert not multiprocessing.active_children()


def test_workers_that_die_before_they_load_anything_blame_no_sample(tmp_path, starting):
    starting("kill -9 $$")
    iterator = iter(loaded(samples(), Loading(workers=1, threads=1, samples=4, batches=1), rows=4))
    with pytest.raises(Interrupted, match=r"^3 worker processes in a row died \(SIGKILL\), not always at the same"):
        next(iterator)
    iterator.close()


def test_a_worker_that_dies_as_it_starts(tmp_path, starting):
    starting(f'mkdir "{tmp_path}/died" 2> /dev/null && kill -9 $$')
    mapped = grain.MapDataset.range(10).map(Kill(tmp_path, set()))
    loading = Loading(workers=2, threads=1, samples=4, batches=1)
    assert list(loaded(mapped, loading, rows=4)) == [square(number) for number in range(10)]
    assert (tmp_path / "died").exists()


def test_workers_leave_signals_to_their_parent_from_the_first_instruction(starting):
    starting("for name in INT TERM HUP USR1 USR2; do kill -$name $$; done")
    iterator = iter(loaded(samples(), Loading(workers=1, threads=1, samples=4, batches=1), rows=4))
    assert next(iterator) == square(0)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    for number in LEFT_TO_PARENT:
        os.kill(worker.pid, number)
    assert list(iterator) == [square(number) for number in range(1, 40)]


def test_what_a_worker_raises_is_raised_with_its_place():
    iterator = iter(loaded(samples().map(fail), Loading(workers=1, threads=1, samples=4, batches=1), rows=4))
    with pytest.raises(ZeroDivisionError) as caught:
        next(iterator)
    assert "in fail" in str(caught.value.__cause__)
    iterator.close()
