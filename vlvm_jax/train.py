"""Train a video LLM through all stages of a recipe.

usage: python -m vlvm_jax.train --config=ftfv[:preset[,key=value...]] [--workdir=DIR]
                                [--profile=STAGE:FIRST-LAST] [--config.path.to.key=value ...]

To train on several hosts, run the same command once on each of them, with a shared workdir. On TPU slices and under
Slurm the processes find each other; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES
and JAX_PROCESS_ID. With JAX_NUM_PROCESSES=1 a process always trains alone.

The same command continues an interrupted run, even on another number of devices or processes. Exit codes: 0 done, 2 bad
input (one line says what), 75 interrupted and saved, 1 an internal error.
"""

import sys

from absl import flags

from vlvm_jax import cli

_CONFIG = cli.define_recipe("The recipe to train. Without a preset: `tiny`, embedded data, any machine.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the summary, local or gs:// (default: runs/<config name>)."
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "Steps to trace for XProf, as STAGE:FIRST-LAST. Traces are written to WORKDIR/profile. `kill -USR1` traces the "
    "next five steps of a running process.",
)


def main() -> None:
    from vlvm_jax.console import Waiting
    from vlvm_jax.errors import InputError
    from vlvm_jax.workers import postponed, stoppable

    # Signals are postponed: an import may swallow what a handler raises.
    with stoppable("nothing had begun"), postponed(), Waiting("starting"):
        import jax
        from etils import epath

        from vlvm_jax import memory, storage
        from vlvm_jax.config import command_line
        from vlvm_jax.evaluation import final
        from vlvm_jax.parallel import compilation_cache, processes
        from vlvm_jax.stop import StopSignal
        from vlvm_jax.training import stages

    if _CONFIG.value is None:
        raise InputError("--config is required, for example --config=ftfv")
    config = command_line.read()
    named = f"runs/{config.name}" if _WORKDIR.value is None else _WORKDIR.value
    storage.check_output(named, "--workdir")
    workdir = epath.Path(named)
    with processes.connected(), StopSignal() as stop:
        compilation_cache.keep()
        if jax.default_backend() == "cpu":
            memory.keep_freed()
        stages.run(config, workdir, stop, final.evaluate, _PROFILE.value)


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
