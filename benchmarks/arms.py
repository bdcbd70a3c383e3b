"""What studies share: their arguments, and a run of a recipe for every arm and seed."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from vlvm_jax.config import Config
from vlvm_jax.console import say
from vlvm_jax.evaluation import final
from vlvm_jax.stop import StopSignal
from vlvm_jax.storage import write_text
from vlvm_jax.training import stages


def arguments(doc: str | None, name: str, arms: Sequence[str]) -> argparse.ArgumentParser:
    """What every study takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default=f"runs/{name}-study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="ARM", choices=list(arms), default=list(arms))
    return parser


class Results:
    """What `summary.json` says of every arm and seed, a file each; what is there is not made again.

    Args:
      workdir: in which `results` has these files and `runs` the runs.
      suffix: of the names, what else the results depend on.
    """

    def __init__(self, workdir: Path, suffix: str = ""):
        self.folder, self.runs, self.suffix = workdir / "results", workdir / "runs", suffix
        self.folder.mkdir(parents=True, exist_ok=True)

    def name(self, arm: str, seed: int | str) -> str:
        return f"{arm.replace(' ', '_')}{self.suffix}-{seed}"

    def once(self, arm: str, seed: int, config: Config, stop: StopSignal) -> None:
        """Trains and asks what the config says."""
        path = self.folder / f"{self.name(arm, seed)}.json"
        if not path.exists():
            result = stages.run(config, epath.Path(self.runs / path.stem), stop, final.evaluate)
            write_text(str(path), json.dumps(result, indent=2))
            say(f"{path.stem}: " + ", ".join(f"{name} {one['accuracy']:.3f}" for name, one in result["eval"].items()))

    def by_arm(self, arms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The runs of each arm that has any, by seed."""
        paths = {arm: sorted(self.folder.glob(f"{self.name(arm, '[0-9]*')}.json")) for arm in arms}
        return {arm: [json.loads(path.read_text()) for path in files] for arm, files in paths.items() if files}
