"""Checkpoints of one stage. The only file that knows Orbax.

A checkpoint holds the whole parameters (trainable and frozen alike, so that it stands alone), the optimizer's state,
step and RNG, the position in the data, the config, and a manifest of all its files (`weights.checksums`). It is written
under another name and renamed: what is there is complete. It restores onto any mesh. In a bucket, where folders cannot
be renamed, a file beside it says that it is.

Everything here raises `storage.StorageError` when storage fails.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from vlvm_jax import storage
from vlvm_jax.console import Waiting
from vlvm_jax.errors import InputError, brief
from vlvm_jax.models.params import Params
from vlvm_jax.parallel import processes, rules
from vlvm_jax.weights import checksums, integrity, param_store


@dataclasses.dataclass(frozen=True)
class Restored:
    params: Params
    opt_state: Any
    step: jax.Array
    rng: jax.Array
    config: Mapping[str, Any]


class _Position:
    """Where the data stand, saved so that all processes end where one cannot write it."""

    def __init__(self, data: Any):
        self._data = data

    async def save(self, directory: Any):
        writing = await self._data.save(directory)

        async def write() -> None:
            with processes.all_or_none():
                await writing

        return write()

    async def load(self, directory: Any):
        raise AssertionError("only saved")


class _NewestAndBest:
    """Which checkpoints stay: the newest ones, and the best.

    Attributes:
      best: its step, as far as it is known.
    """

    def __init__(self, keep: int):
        self.best: int | None = None
        self._newest = ocp.training.preservation_policies.LatestN(keep)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        newest = self._newest.should_preserve(checkpoints, context=context)
        return [kept or info.step == self.best for kept, info in zip(newest, checkpoints, strict=True)]


class StageCheckpoints:
    """Checkpoints by step in one folder: the newest `keep` of them, and the best.

    Args:
      directory: local or gs://.
    """

    def __init__(self, directory: epath.PathLike, keep: int):
        self.directory = epath.Path(directory)
        self._kept: Any = _NewestAndBest(keep)
        with self._faults():
            self._checkpointer = ocp.training.Checkpointer(
                self.directory, preservation_policy=self._kept, cleanup_tmp_directories=True
            )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        with self._faults():
            newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def newest_whole(self) -> int | None:
        """The newest checkpoint's step whose files are what was written; see `integrity.newest_whole`.

        All processes ask together.
        """
        self.wait()
        with self._faults():
            steps = [epath.Path(checkpoint.path) for checkpoint in self._checkpointer.checkpoints]
            whole = integrity.newest_whole(steps)
            if whole is None:
                return None
            if int(whole.name) != self.latest():
                self._checkpointer.reload()
        return int(whole.name)

    def save(
        self,
        step: int,
        *,
        params: Params,
        opt_state: Any,
        rng: jax.Array,
        data: Any,
        config: Mapping[str, Any],
        best: int | None = None,
    ) -> None:
        """Copies what is to be saved and writes it in the background; waits for an earlier save first.

        A step that is saved already is left as it is: continued runs come to it in the same state.

        Args:
          params: whole parameters in buffers that nobody will donate.
          data: the batches; where they stand now is saved.
          best: the step that is the best so far, which is kept.
        """
        self.wait()
        self._kept.best = best
        if self.latest() == step:  # interrupted right after a save, or between a stage's last save and its result
            return
        items = {
            "params": params,
            "opt_state": opt_state,
            "progress": {"step": np.asarray(step, np.int32), "rng": rng},
            "data": _Position(data),
            "config": dict(config),
        }
        trees = [name for name in items if name != "data"]
        context = checksums.StepManifest(self.directory / str(step), trees).context(ocp.Context())
        # Its transactions take a request whose answer was lost, made anew, for another writer's.
        context.array.saving.use_ocdbt = not storage.is_remote(os.fspath(self.directory))
        with context, self._faults():
            self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=checksums.MARK)

    def wait(self) -> None:
        with self._faults():
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save; in a bucket not while storage fails, for then there is nothing to wait for."""
        if not (storage.failing.is_set() and storage.is_remote(os.fspath(self.directory))):
            with self._faults():
                self._checkpointer.close()

    def restore_params(self, abstract: Mapping[str, jax.ShapeDtypeStruct], step: int | None = None) -> Params:
        """Whole parameters of a step, by default the newest, in the dtypes and shardings asked for.

        Raises:
          InputError: the step is damaged, or is not there.
        """
        return self._load({"params": dict(abstract)}, step)["params"]

    def has_whole(self, step: int) -> bool:
        """Whether this step is there, and its files are what was written."""
        self.wait()
        folder = self.directory / str(step)
        with self._faults():
            there = any(checkpoint.step == step for checkpoint in self._checkpointer.checkpoints)
        try:
            if there:
                integrity.check_step(folder)
        except integrity.Damaged:
            return False
        return there

    def restore(self, abstract: Mapping[str, jax.ShapeDtypeStruct], opt_state: Any, data: Any, mesh: Mesh) -> Restored:
        """Everything a stage continues from; `data` (the batches) continue from where they stood.

        Args:
          abstract: whole parameters, with shardings.
          opt_state: abstract, with shardings.
        """
        everywhere = rules.replicated(mesh)
        progress = {
            "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere),
            "rng": jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=everywhere),
        }
        items = {"params": dict(abstract), "opt_state": opt_state, "progress": progress, "data": data, "config": None}
        loaded = self._load(items)
        progress = loaded["progress"]
        return Restored(loaded["params"], loaded["opt_state"], progress["step"], progress["rng"], loaded["config"])

    def _load(self, items: dict[str, Any], step: int | None = None) -> dict[str, Any]:
        if step is None:
            step = self.newest_whole()
        elif not self.has_whole(step):
            raise InputError(
                f"{self.directory / str(step)}: the stage's result, damaged or missing; restore it from a copy, or "
                f"remove {self.directory.parent} to train the stage anew"
            )
        if step is None:
            raise InputError(f"{self.directory}: no complete checkpoint here")
        with self._faults(), Waiting(f"{self.directory}: reading step {step}"):
            try:
                return self._checkpointer.load_checkpointables(step, items)
            except (ValueError, OSError, KeyError) as error:
                if integrity.check_step(self.directory / str(step)) or storage.is_remote(os.fspath(self.directory)):
                    raise
                raise InputError(
                    f"{self.directory / str(step)}: cannot be read ({type(error).__name__}: {brief(error)}), and has "
                    "no manifest that tells what is damaged; move it away to continue from the step before"
                ) from None

    def _faults(self):
        return param_store.faults(self.directory)
