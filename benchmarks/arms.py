"""What studies share: one image model, and settings that each train one more stage from it and answer questions."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vlvm_jax import samples
from vlvm_jax.config import Config
from vlvm_jax.console import say
from vlvm_jax.evaluation import final
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model
from vlvm_jax.stop import StopSignal
from vlvm_jax.storage import Logs, write_text
from vlvm_jax.training import plan, stages
from vlvm_jax.training.metrics import MetricsWriter
from vlvm_jax.training.profiling import Profiler
from vlvm_jax.training.throughput import Timeline, Watch

TEMPORAL = ("direction", "order", "speed", "before_after")


def arguments(doc: str | None, name: str, arms: Sequence[str]) -> argparse.ArgumentParser:
    """What every study takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default=f"runs/{name}-study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="ARM", choices=list(arms), default=list(arms))
    return parser


class Results:
    """A file for every arm and seed; what is there is not made again.

    Args:
      suffix: of the names, what else the results depend on.
    """

    def __init__(self, folder: Path, suffix: str = ""):
        self.folder, self.suffix = folder, suffix
        folder.mkdir(parents=True, exist_ok=True)

    def name(self, arm: str, seed: int | str) -> str:
        return f"{arm.replace(' ', '_')}{self.suffix}-{seed}"

    def once(self, arm: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
        path = self.folder / f"{self.name(arm, seed)}.json"
        if not path.exists():
            result = make()
            write_text(str(path), json.dumps(result, indent=2))
            say(f"{path.stem}: " + ", ".join(f"{name} {one['accuracy']:.3f}" for name, one in result["eval"].items()))

    def by_arm(self, arms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The runs of each arm that has any, by seed."""
        paths = {arm: sorted(self.folder.glob(f"{self.name(arm, '[0-9]*')}.json")) for arm in arms}
        return {arm: [json.loads(path.read_text()) for path in files] for arm, files in paths.items() if files}


def train_image_model(config: Config, workdir: epath.Path, stop: StopSignal) -> epath.Path:
    """Runs all stages of a recipe but the last in `workdir`, once; returns the folder of the last of these."""
    config = config.model_copy(update={"stages": config.stages[:-1], "evals": ()})
    stages.run(config, workdir, stop, final.evaluate)
    return workdir / config.stages[-1].name


def train_and_ask(
    config: Config, image: Config, folder: epath.Path, workdir: epath.Path, mesh, stop: StopSignal
) -> dict[str, Any]:
    """Trains a recipe's last stage from the image model, what that lacks being fresh, and returns what `summary.json`
    says of the stage and of the held-out sets: `stage` and `eval`."""
    config = samples.with_embedded_data(config, stop)
    prepared = plan.prepare_stage(config, config.stages[-1])
    workdir.mkdir(parents=True, exist_ok=True)
    start = _start_from(folder, image, config, mesh)
    with Logs(os.fspath(workdir)) as logs:
        writer = MetricsWriter(logs.folder, tensorboard=False, wandb_project=None, name=config.name, config={})
        watch = Watch(logs, writer, Timeline(logs.folder), Profiler(logs.folder, None))
        stage, params = stages.train_stage(config, prepared, workdir, folder, start, mesh, watch, stop)
    results, _ = final.evaluate(config, params, prepared.records, mesh, stop)
    return {"stage": stage, "eval": results}


def ask_image_model(config: Config, image: Config, folder: epath.Path, mesh, stop: StopSignal) -> dict[str, Any]:
    """What the image model answers, in a recipe's settings and without any training: `eval` alone."""
    config = samples.with_embedded_data(config, stop)
    results, _ = final.evaluate(config, _start_from(folder, image, config, mesh), [], mesh, stop)
    return {"eval": results}


def _start_from(folder: epath.Path, image: Config, config: Config, mesh) -> params_lib.Params:
    fresh = jax.jit(lambda: params_lib.join(Model(config.model).init(config.seed)))()
    abstract = jax.eval_shape(params_lib.join, Model(image.model).abstract())
    trained = stages.initial_params(image, folder, abstract, None, mesh)
    return {**fresh, **{path: value for path, value in trained.items() if path in fresh}}
