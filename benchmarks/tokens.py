"""How many tokens per frame are worth their time: K and sampler against step time and held-out accuracy.

usage: python benchmarks/tokens.py [--workdir DIR] [--steps N] [--seeds 0 1 2] [--timing-rounds N]

From the image model in the package (64 patches a frame) every setting trains the recipe's `instruct` stage for
`--steps` steps and answers held-out questions, once per seed. Step times are taken apart from training: all settings'
steps are compiled first and then run in turn, round after round, so that each ratio compares neighbours in time.
Every result is a file of its own in DIR/results, so that seeds may run as processes side by side; what is done is not
run again. Prints the table that stands in docs/benchmarks.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from etils import epath

from configs import ftfv
from vlvm_jax.config import Config, MeshConfig, build
from vlvm_jax.console import say
from vlvm_jax.data.batch.skipped import SkipLog
from vlvm_jax.data.embedded.events import TEMPORAL_TYPES
from vlvm_jax.evaluation import final
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import to_device
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.recipes._common import PATCHES
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import plan, stages
from vlvm_jax.training.step import make_step

QUESTIONS = 300
SETTINGS = [("none", PATCHES)] + [
    (reading, tokens) for tokens in (16, 8, 4, 2, 1) for reading in ("soft_slots", "block_average", "stride")
]


def setting(reading: str, tokens: int, seed: int, steps: int) -> Config:
    """The tiny recipe's last stage with a sampler and its tokens."""
    config = ftfv.get_config(f"tiny,sampler={reading},tokens={tokens},seed={seed},stages=instruct")
    config.tensorboard = False
    config.stages[0].steps = steps
    config.evals[0].controls = []
    config.evals[0].limit = QUESTIONS
    return build(Config, config)


def accuracy(config: Config, workdir: epath.Path, stop: StopSignal) -> dict[str, float]:
    """Trains `instruct` and returns held-out accuracy, overall and over the temporal types."""
    result = stages.run(config, workdir, stop, final.evaluate)["eval"]["videos"]
    by_type = result["by_type"]
    temporal = statistics.mean(value for kind, value in by_type.items() if kind in TEMPORAL_TYPES)
    static = statistics.mean(value for kind, value in by_type.items() if kind not in TEMPORAL_TYPES)
    return {"all": result["accuracy"], "temporal": temporal, "static": static}


def step_times(rounds: int, workdir: epath.Path, stop: StopSignal) -> dict[str, float]:
    """Seconds per step of every setting: the median over rounds in which all settings take turns."""
    runs, mesh = {}, make_mesh(MeshConfig())
    for reading, tokens in SETTINGS:
        made = plan.make(setting(reading, tokens, 0, 10), workdir, stop)
        config, (prepared,) = made.config, made.stages
        functions = make_step(config.model, prepared.stage, prepared.partition, mesh, 10)
        data = stages.make_batches(config, prepared, SkipLog(prepared.records, 1.0), mesh)
        batch = to_device(next(data), mesh)
        data.close()
        whole = jax.jit(lambda config=config: params_lib.join(Model(config.model).init(0)))()
        trainable, frozen = stages.divide(whole, prepared.partition, functions, prepared.stage)
        state = functions.init(trainable, jax.random.key_data(jax.random.key(0)))
        runs[reading, tokens] = [functions.train, state, frozen, batch]
    times: dict[tuple, list[float]] = {key: [] for key in runs}
    with jax.set_mesh(mesh):
        for number in range(rounds + 1):
            for key, run in runs.items():
                train, state, frozen, batch = run
                start = time.perf_counter()
                run[1], _ = jax.block_until_ready(train(state, frozen, batch))
                if number:  # the first round compiles
                    times[key].append(time.perf_counter() - start)
    return {f"{reading}/{tokens}": statistics.median(taken) for (reading, tokens), taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/tokens")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timing-rounds", type=int, default=20)
    args = parser.parse_args()
    workdir = epath.Path(args.workdir).expanduser().resolve()
    results = Path(args.workdir) / "results"
    results.mkdir(parents=True, exist_ok=True)
    with StopSignal() as stop:
        if not (results / "seconds.json").exists():
            write(results / "seconds.json", step_times(args.timing_rounds, workdir / "seconds", stop))
        for seed in args.seeds:
            for reading, tokens in SETTINGS:
                name = f"{reading}-{tokens}-{args.steps}-{seed}"
                if (results / f"{name}.json").exists():
                    continue
                config = setting(reading, tokens, seed, args.steps)
                write(results / f"{name}.json", accuracy(config, workdir / name, stop))
    print(table(results, args.steps))


def write(path: Path, values: dict[str, float]) -> None:
    say(f"{path.stem}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    path.write_text(json.dumps(values, indent=2))


def table(results: Path, steps: int) -> str:
    lines = [
        "| tokens per frame | sampler | visual tokens, 8 frames | step time / none | all | temporal | static | seeds |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    seconds = json.loads((results / "seconds.json").read_text())
    whole = seconds[f"none/{PATCHES}"]
    for reading, tokens in SETTINGS:
        runs = [json.loads(path.read_text()) for path in sorted(results.glob(f"{reading}-{tokens}-{steps}-*.json"))]
        cells = []
        for kind in ("all", "temporal", "static"):
            values = [run[kind] for run in runs]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "-")
        ratio = seconds[f"{reading}/{tokens}"] / whole
        lines.append(f"| {tokens} | {reading} | {8 * tokens} | {ratio:.2f} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
