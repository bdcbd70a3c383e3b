"""Compile a recipe for TPUs that are not here: memory, collectives, operations and the bound on speed, per stage.

usage: python -m vlvm_jax.compile --config=configs/ftfv.py:llava-1.5-7b --topology=v5e-64 [--config.key=value ...]
                                  [--stages=NAME,NAME] [--search] [--json=FILE]

  --config    a recipe, as for vlvm_jax.train; no weights and no data are read.
  --topology  CHIP-SIZE[xSLICES]: v5e-64, v6e-8 (sizes count chips), v4-8, v5p-128 (sizes count cores, two a chip),
              v5e-256x2 (two slices).
  --stages    only these stages.
  --search    find the largest batch of each stage that fits.
  --json      write all figures to a file as well.

Needs libtpu (pip install 'vlvm_jax[tpu]'), no TPU. Memory and collectives are the TPU compiler's, operations are
counted by this library, times are bounds from the chip's published figures.
Exit codes: 0 everything fits, 2 bad input or a stage that does not fit (one line says which), 1 a fault of ours.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the host's own devices are not what is compiled for

from absl import flags
from ml_collections import config_flags

from vlvm_jax import cli
from vlvm_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "What to compile for.")
_STAGES = flags.DEFINE_list("stages", [], "Only these stages.")
_SEARCH = flags.DEFINE_bool("search", False, "Find the largest batch that fits.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.")


def main() -> None:
    import json
    from pathlib import Path

    from vlvm_jax.config import Config, build
    from vlvm_jax.parallel import topology as topology_lib
    from vlvm_jax.parallel.mesh import make_mesh
    from vlvm_jax.training import ahead_of_time, compile_report
    from vlvm_jax.training.progress import say

    if _CONFIG.value is None or _TOPOLOGY.value is None:
        raise InputError("--config and --topology are required; see --help")
    config = build(Config, _CONFIG.value)
    topology = topology_lib.parse(_TOPOLOGY.value)
    stages = [stage for stage in config.stages if not _STAGES.value or stage.name in _STAGES.value]
    if unknown := set(_STAGES.value) - {stage.name for stage in config.stages}:
        known = ", ".join(stage.name for stage in config.stages)
        raise InputError(f"--stages={unknown.pop()}: the config has {known}")
    mesh = make_mesh(config.mesh, topology.devices())
    ahead_of_time.check_mesh(config, mesh)
    reports = []
    for stage in stages:
        say(f"{stage.name}: compiling for {topology.chips} chips of {topology.chip.name}")
        if _SEARCH.value:
            report = ahead_of_time.search(config, stage, mesh, topology, say)
            if report is None:
                raise InputError(f"{stage.name}: not even one row a chip fits {topology.name}")
        else:
            report = ahead_of_time.compile_stage(config, stage, mesh, topology)
        reports.append(report)
    compile_report.show(reports, topology)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(compile_report.to_json(config, reports, topology), indent=2))
        say(f"written: {_JSON.value}")
    if misfits := [report for report in reports if not report.fits]:
        raise InputError(compile_report.misfit(misfits[0], topology))


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
