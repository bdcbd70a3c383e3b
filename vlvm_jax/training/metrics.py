"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard, wandb."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vlvm_jax import jsonl


class MetricsWriter:
    """One line per step in `metrics.jsonl`, the same to TensorBoard and, when asked, wandb.

    A resumed stage first drops the lines after the step it resumes from, so that no step is there twice.

    Args:
      folder: where to write: of `storage.Logs`.
      active: False for a process that writes nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool,
        wandb_project: str | None,
        name: str,
        config: dict,
        active: bool = True,
    ):
        self.path = folder / "metrics.jsonl"
        self._active = active
        self._tensorboard = None
        self._wandb = None
        if tensorboard and active:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"))
        if wandb_project is not None and active:
            import wandb  # pyright: ignore[reportMissingImports]  # an extra

            self._wandb = wandb.init(project=wandb_project, name=name, config=config, resume="allow")
        self._entries: list[dict[str, Any]] = []

    def drop_after(self, stage: str, step: int, validated: Collection[int] = ()) -> None:
        """Forgets what was logged of `stage` after `step`, and a line that a crash left half-written.

        Args:
          validated: steps whose validation is known; that of any other will be done, and logged, again.
        """
        if not self._active or not self.path.exists():
            return

        def stays(entry: dict[str, Any]) -> bool:
            again = "validation_loss" in entry and entry["step"] not in validated
            return entry["stage"] != stage or (entry["step"] <= step and not again)

        kept = [entry for entry in jsonl.read(self.path) if stays(entry)]
        temporary = self.path.with_name("metrics.jsonl.new")
        temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept))
        temporary.replace(self.path)

    def write(self, stage: str, step: int, values: dict[str, Any]) -> None:
        if not self._active:
            return
        self._entries.append({"stage": stage, "step": step, **values})
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(f"{stage}/{key}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{stage}/{key}": value for key, value in values.items()} | {f"{stage}/step": step})

    def flush(self) -> None:
        if self._entries:
            jsonl.append(self.path, *self._entries)
            self._entries = []
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """Loss by step of every stage, as logged so far."""
        self.flush()
        curves: dict[str, list[tuple[int, float]]] = {}
        for entry in jsonl.read(self.path):
            if "loss" in entry:  # else it is of a validation
                curves.setdefault(entry["stage"], []).append((entry["step"], entry["loss"]))
        return curves

    def close(self) -> None:
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
