"""Train a video LLM through all stages of a recipe.

usage: python -m vlvm_jax.train --config=configs/ftfv.py[:preset[,key=value...]] [--workdir=DIR]
                                [--profile=STAGE:FIRST-LAST] [--config.path.to.key=value ...]

  --config    a recipe; `configs/ftfv.py` alone is its preset `tiny`: embedded data, from scratch, any machine.
  --workdir   where checkpoints, metrics and the summary go (default: runs/<config name>).
  --profile   steps of a stage to trace for XProf, into WORKDIR/profile; `kill -USR1` traces the next five of a
              running process.

On several hosts, start the same command once on each, with a workdir that all of them see. On TPU slices and under
Slurm the processes find each other; elsewhere set JAX_COORDINATOR_ADDRESS=HOST:PORT (of process 0), JAX_NUM_PROCESSES
and JAX_PROCESS_ID. JAX_NUM_PROCESSES=1 is a run of this process alone, wherever it is.

The same command continues an interrupted run, also on another number of devices or processes. Exit codes: 0 done, 2 bad
input (one line says what), 75 interrupted and saved, 1 a fault of ours.
"""

import sys

from absl import flags
from ml_collections import config_flags

from vlvm_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
_PROFILE = flags.DEFINE_string("profile", None, "Steps to trace.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes.")


def main() -> None:
    from vlvm_jax.console import Waiting
    from vlvm_jax.errors import InputError
    from vlvm_jax.workers import postponed, stoppable

    # Signals are postponed: an import may swallow what a handler raises.
    with stoppable("nothing had begun"), postponed(), Waiting("starting"):
        from etils import epath

        from vlvm_jax import storage
        from vlvm_jax.config import command_line
        from vlvm_jax.evaluation import final
        from vlvm_jax.parallel import processes
        from vlvm_jax.stop import StopSignal
        from vlvm_jax.training import stages

    if _CONFIG.value is None:
        raise InputError("--config is required, for example --config=configs/ftfv.py")
    config = command_line.read()
    named = f"runs/{config.name}" if _WORKDIR.value is None else _WORKDIR.value
    storage.check_output(named, "--workdir")
    workdir = epath.Path(named)
    with processes.connected(), StopSignal() as stop:
        stages.run(config, workdir, stop, final.evaluate, _PROFILE.value)


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
