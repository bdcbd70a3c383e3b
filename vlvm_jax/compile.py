"""Compile a recipe for a TPU slice on any host: memory, collectives, operations and the speed limit of each stage.

usage: python -m vlvm_jax.compile --config=ftfv:llava-1.5-7b --topology=v5e-64 [--config.key=value ...]
                                  [--stages=NAME,NAME] [--rows=N] [--search] [--json=FILE]

Needs libtpu (pip install 'vlvm_jax[tpu]') but no TPU. Memory and collectives come from the TPU compiler, operations are
counted by this library, and times are bounds computed from the chip's published figures.

Exit codes: 0 everything fits, 2 bad input or a stage that does not fit (one line says which), 1 an internal error.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the host's own devices are not what is compiled for

from absl import flags

from vlvm_jax import cli
from vlvm_jax.errors import InputError

_CONFIG = cli.define_recipe("The recipe to compile; neither weights nor data are read.")
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "The TPUs to compile for, as CHIP-SIZE[xSLICES]: v5e-64, v6e-8 (sizes count chips), v4-8, v5p-128 (sizes count "
    "cores, two per chip), v5e-256x2 (two slices).",
)
_STAGES = flags.DEFINE_list(
    "stages",
    [],
    "Compile only these, of the recipe's stages, `prefill` and `decode` (default: all). Prefill reads a row of the "
    "last stage's length, decode one token after it; both have one row for each part of the mesh that holds rows.",
)
_ROWS = flags.DEFINE_integer("rows", None, "Rows of a batch (default: the recipe's).", lower_bound=1)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Find the largest batch that fits, to within an eighth, starting from these rows."
)
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")


def main() -> None:
    import json
    from pathlib import Path

    from vlvm_jax import storage
    from vlvm_jax.ahead_of_time import programs
    from vlvm_jax.ahead_of_time import report as compile_report
    from vlvm_jax.config import command_line, require_stages
    from vlvm_jax.console import Waiting, say
    from vlvm_jax.parallel import libtpu_log
    from vlvm_jax.parallel import topology as topology_lib
    from vlvm_jax.parallel.mesh import make_mesh
    from vlvm_jax.training.plan import check_adapter, check_mesh

    if _CONFIG.value is None or _TOPOLOGY.value is None:
        raise InputError("--config and --topology are required; see --help")
    if _JSON.value is not None:
        storage.check_output(_JSON.value, "--json", folder=False)
    config = command_line.read()
    require_stages(config)
    topology = topology_lib.parse(_TOPOLOGY.value)
    known = (*(stage.name for stage in config.stages), *programs.INFERENCE)
    if unknown := [name for name in _STAGES.value if name not in known]:
        raise InputError(f"--stages={unknown[0]}: the config has {', '.join(known)}")
    with libtpu_log.without_harmless_lines():
        mesh = make_mesh(config.mesh, topology.devices())
    check_mesh(config, mesh, rows=_ROWS.value)
    check_adapter(config)
    reports = []
    for name in _STAGES.value or known:
        say(f"{name}: compiling for {topology.chips} chips of {topology.chip.name}")
        with libtpu_log.without_harmless_lines(), Waiting(f"{name}: compiling", grace=10.0):
            if _SEARCH.value:
                report = programs.search(config, name, mesh, topology, say, rows=_ROWS.value)
            else:
                made = programs.program(config, name, _ROWS.value, mesh)
                report = programs.compile_program(made, mesh, topology)
        if report is None:
            raise InputError(f"--search: {name}: not even one row for each part of the mesh fits {topology.name}")
        reports.append(report)
    compile_report.show(reports, topology)
    if _JSON.value is not None:
        Path(_JSON.value).write_text(json.dumps(compile_report.to_json(config, reports, topology), indent=2))
        say(f"written: {_JSON.value}")
    if misfits := [report for report in reports if not report.fits]:
        raise InputError(compile_report.misfit(misfits[0], topology))


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or ""))
