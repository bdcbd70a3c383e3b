"""Read prepared shards again and compare them with the checksums beside them.

usage: python -m vlvm_jax.data verify DIR|gs://BUCKET/DIR

If files are damaged, delete those that it names and run the same `prepare` again, which makes them anew.

Exit codes: 0 intact, 2 damaged or unfinished (one line says what), 1 an internal error.
"""

from vlvm_jax.errors import InputError


def main(arguments: list[str]) -> None:
    from vlvm_jax.console import Meter, number_of, say
    from vlvm_jax.data.sources import shards
    from vlvm_jax.data.tools import prepare
    from vlvm_jax.workers import stoppable

    if len(arguments) != 1 or not arguments[0].strip("/ "):
        raise InputError("expected `verify DIR`; see --help")
    folder = arguments[0].rstrip("/")
    count = len(shards.read_manifest(folder).shards)
    with stoppable("nothing was changed"), Meter("verify", count) as meter:
        faults = list(prepare.damaged(folder, lambda done: meter.update(done, "shards")))
    for name, what in faults:
        say(f"{name}: {what}")
    if faults:
        raise InputError(
            f"{folder}: {number_of(len(faults), 'file')} damaged, the first {faults[0][0]}; "
            "delete them and run `prepare` again"
        )
    say(f"{number_of(count, 'shard')} {'is' if count == 1 else 'are'} whole")
