"""The parameters a run starts from: what `config.model.init_from` names, and fresh ones for the rest."""

import math
import os
from collections.abc import Callable, Mapping

import jax
from etils import epath
from jax.sharding import Mesh

from vlvm_jax import storage
from vlvm_jax.config import InitFrom, ModelConfig
from vlvm_jax.errors import InputError
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.params import Model, Params
from vlvm_jax.weights.hf import clip_source, side_files
from vlvm_jax.weights.param_store import local_bytes
from vlvm_jax.weights.sources import Source, Stored, open_source, same_part

# What a recipe may choose freely: these change what is computed from the same parameters, and no parameter.
_FREE_VISION = ("feature_layer", "post_norm", "position_init", "attention_layer")
_FREE_DECODER = ("max_position_embeddings",)
_PART_OF = {"encoder": "vision", "decoder": "decoder"}
_PREFIXES = {"connector": "adapter/connector", "clip": clip_source.PLACE}


class Initial:
    """Opened and checked sources; nothing is read but headers until `params`.

    Raises:
      InputError: a source that cannot be used for this model; the message names the key.
    """

    def __init__(self, model: ModelConfig):
        self.model = model
        self.sources: dict[str, Source] = {}  # prefix of parameter paths -> where they come from
        wanted = model.init_from
        if wanted is None:
            return
        if isinstance(wanted, str):
            source = open_source(wanted, "config.model.init_from")
            self.sources = dict.fromkeys(("encoder", "adapter", "decoder"), source)
        else:
            for part in InitFrom.model_fields:
                if (text := getattr(wanted, part)) is not None:
                    opened = clip_source.open_clip if part == "clip" else open_source
                    self.sources[_PREFIXES.get(part, part)] = opened(text, f"config.model.init_from.{part}")
        self._check()

    def _check(self) -> None:
        abstract = jax.eval_shape(params_lib.join, Model(self.model).abstract())
        for prefix, source in self.sources.items():
            if prefix in _PART_OF:
                part = _PART_OF[prefix]
                free = _FREE_VISION if part == "vision" else _FREE_DECODER
                same_part(getattr(self.model, part), getattr(source, part), part, source.name, free)
                self._check_length(source)
                self._check_whole(abstract, prefix, source)
            elif prefix == clip_source.PLACE:
                self._check_clip(source)
                self._check_whole(abstract, prefix, source)
            elif source.connector is not None:
                same_part(self.model.adapter.connector, source.connector, "adapter.connector", source.name)
        for path, source in self.taken(abstract).items():
            have, want = source.shapes[path].shape, abstract[path].shape
            if have != want:
                raise InputError(
                    f"config.model.init_from: {path} is {list(have)} in {source.name}, and {list(want)} in this model"
                )

    def _check_whole(self, abstract: Mapping[str, jax.ShapeDtypeStruct], prefix: str, source: Source) -> None:
        missing = [p for p in abstract if _under(p, prefix) and p not in source.shapes and "/lora_" not in p]
        if missing:
            raise InputError(f"config.model.init_from: {source.name} has no {missing[0]}")

    def _check_clip(self, source: Source) -> None:
        held = clip_source.held_clip(self.model)
        if held is None:
            raise InputError(
                f"config.model.init_from.clip: the adapter {self.model.adapter.name!r} holds no CLIP; leave it out"
            )
        assert isinstance(source, clip_source.ClipDirectory | Stored)
        clip_source.check_clip(held, source, _FREE_VISION)

    def _check_length(self, source: Source) -> None:
        have = source.decoder.max_position_embeddings if source.decoder else math.inf
        if self.model.decoder.max_position_embeddings > have:
            raise InputError(
                f"config.model.decoder.max_position_embeddings: {self.model.decoder.max_position_embeddings} here, but "
                f"{source.name} is exact to {have} positions only"
            )

    def taken(self, paths: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Source]:
        """The source of each parameter that one has."""
        return {
            path: source
            for path in paths
            for prefix, source in self.sources.items()
            if _under(path, prefix) and path in source.shapes
        }

    def missing(self, paths: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
        """Those that no source has, and that would start fresh."""
        taken = self.taken(paths)
        return [path for path in paths if path not in taken]

    def params(
        self,
        abstract: Mapping[str, jax.ShapeDtypeStruct],
        mesh: Mesh,
        seed: int,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> Params:
        """Whole parameters in the dtypes of `abstract`, each in its sharding; a tensor at a time.

        Args:
          tell: called with the bytes that this process has read so far, and with all that it will read.
        """
        on_mesh = Model(self.model).on_mesh(abstract, mesh)
        taken = self.taken(on_mesh)
        total, done = sum(local_bytes(on_mesh[path]) for path in taken), 0

        def read(more: int) -> None:
            nonlocal done
            done = min(done + more, total)
            tell(done, total)

        params: Params = {}
        for source in {id(source): source for source in taken.values()}.values():
            params |= source.load({path: on_mesh[path] for path, from_ in taken.items() if from_ is source}, read)
        fresh = {path: a for path, a in on_mesh.items() if path not in taken}
        if fresh:
            params |= draw(self.model, fresh, seed)
        return {path: params[path] for path in abstract}

    def copy_side_files(self, folder: epath.Path, tokenizer: str) -> None:
        """Keeps what an export will need: the checkpoint's config, tokenizer, processors and carried tensors.

        Args:
          tokenizer: `tokenizer.json` or its folder, for a model that has no checkpoint behind it.
        """
        if folder.exists() and not storage.is_remote(os.fspath(folder)):  # a bucket's may be there in part
            return
        source, tower, clip = self.sources.get("decoder"), self._files("encoder"), self._files("clip")
        if source is not None and source.hf_files is not None:
            side_files.copy(source, folder, None if tower == source.hf_files else tower, clip)
        else:
            side_files.copy_tokenizer(epath.Path(tokenizer), folder, clip)

    def local_files(self, part: str, where: str) -> str:
        """The folder of the Hugging Face files that belong to a part, on this machine."""
        files = self._files(part)
        if files is None:
            raise InputError(
                f"{where} means files of the checkpoint that config.model.init_from names for the {part}, but there "
                "are none; set the key to a directory"
            )
        return str(side_files.local(files))

    def _files(self, part: str) -> epath.Path | None:
        if part == "clip":
            return self._clip_files()
        source = self.sources.get(part)
        if source is None or source.hf_files is None:
            return None
        return side_files.of_tower(source.hf_files) if part == "encoder" else source.hf_files

    def _clip_files(self) -> epath.Path | None:
        """Those of a CLIP's own directory, or those that a run kept of one."""
        source = self.sources.get(clip_source.PLACE, self.sources.get("adapter"))
        if isinstance(source, clip_source.ClipDirectory):
            return source.hf_files
        kept = None if source is None or source.hf_files is None else source.hf_files / side_files.CLIP_FOLDER
        return kept if kept is not None and kept.exists() else None


def draw(model: ModelConfig, wanted: Mapping[str, jax.ShapeDtypeStruct], seed: int) -> Params:
    """Fresh values for some parameters; the rest of the model is not computed."""

    def some() -> Params:
        whole = params_lib.join(Model(model).init(seed))
        return {path: whole[path].astype(a.dtype) for path, a in wanted.items()}

    return jax.jit(some, out_shardings={path: a.sharding for path, a in wanted.items()})()


def _under(path: str, prefix: str) -> bool:
    return path.startswith(f"{prefix}/")
