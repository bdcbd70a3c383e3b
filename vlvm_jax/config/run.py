"""Settings of a run: its stages and evaluations, the mesh, checkpoints, and all of it together."""

from collections.abc import Mapping
from typing import Literal

import pydantic
from pydantic import Field, PositiveFloat, PositiveInt

from vlvm_jax.config.data import AnswerConfig, DataConfig, MixtureEntry, all_weighted
from vlvm_jax.config.model import ModelConfig
from vlvm_jax.config.settings import DType, FolderName, Seed, Settings, Steps
from vlvm_jax.errors import InputError


class StageConfig(Settings):
    """One training stage.

    `trainable` maps parameter patterns to learning rates; the last match wins and what matches none is frozen.
    `encoder/layers/[-3:]/**` addresses the last three of the layers that run. `batch_size` counts rows; with `pack`,
    a row holds as many samples as fit its `frames` and `length`. What `reset` matches starts the stage fresh instead of
    from the stage before. `copied` maps modules to others like them, of which they start the stage as copies:
    `{"adapter/temporal_connector": "adapter/connector"}`.

    `schedule` is what follows a linear warm-up; `log_warmup_cosine` is DeepSpeed's, whose warm-up rises with the
    logarithm of the step (`training.optimizer`).

    The head runs over learned positions only, in up to `loss_passes` passes over each device's rows; with `loss_chunks`
    over one piece of the vocabulary at a time, which takes less memory and one matrix product more.

    `validation` are questions that the stage does not learn, put every `validate_every` steps (by default ten times)
    and after the last: their loss, and the share that is answered rightly. With `best`, the checkpoint with the lowest
    loss or the highest accuracy is kept and is the stage's result. Without a better one in `patience` validations the
    stage ends.

    `objective` is what is learned: the next token of the text, or what the adapter itself has to learn before the
    decoder has a part in it (`LearnsByItself.own_losses`). With `accumulate`, micro-batches are contrasted one by one.
    """

    name: FolderName
    data: tuple[MixtureEntry, ...]
    steps: Steps | None = None
    epochs: PositiveFloat | None = None
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    frames: PositiveInt
    video_frames: PositiveInt | None = None
    length: PositiveInt
    pack: bool = True
    trainable: tuple[tuple[str, PositiveFloat], ...]
    reset: tuple[str, ...] = ()
    copied: tuple[tuple[str, str], ...] = ()
    schedule: Literal["cosine", "constant", "linear", "log_warmup_cosine"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    clip_norm: PositiveFloat | None = 1.0
    validation: tuple[MixtureEntry, ...] = ()
    validate_every: PositiveInt | None = None
    best: Literal["loss", "accuracy"] | None = None
    patience: PositiveInt | None = None
    loss_passes: PositiveInt = 8
    loss_chunks: PositiveInt = 1
    loss_on: Literal["answer", "all_text"] = "answer"
    objective: Literal["text", "adapter"] = "text"
    frozen_dtype: DType = "float32"
    seed: Seed = 0
    save_every: PositiveInt | None = None
    log_every: PositiveInt = 10

    _weights = pydantic.field_validator("data", "validation", mode="after")(all_weighted)

    @pydantic.field_validator("trainable", "copied", mode="before")
    @classmethod
    def _pairs(cls, value):
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @pydantic.model_validator(mode="after")
    def _check(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if not self.trainable:
            raise ValueError("trainable names no parameters")
        if self.frames_per_video > self.frames:
            raise ValueError(f"video_frames {self.video_frames} do not fit the row's frames {self.frames}")
        if self.validate_every is not None and not self.validation:
            raise ValueError("validate_every: there is no validation")
        if self.validation and self.objective != "text":
            raise ValueError(f"validation: answers are what objective 'text' learns, not {self.objective!r}")
        if self.best is not None and not self.validation:
            raise ValueError(f"best {self.best!r} is of validation, and there is none")
        if self.patience is not None and self.best is None:
            raise ValueError("patience: give best, which says what has to get better")
        return self

    @property
    def frames_per_video(self) -> int:
        return self.video_frames or self.frames

    @property
    def validating(self) -> "EvalConfig":
        """The stage's validation as questions of its own, in rows like those it learns from."""
        return EvalConfig(
            name="validation",
            data=self.validation,
            batch_size=self.batch_size // self.accumulate,
            frames=self.frames,
            video_frames=self.video_frames,
            length=self.length,
            pack=self.pack,
            controls=(),
            seed=self.seed,
        )


class EvalConfig(Settings):
    """Held-out questions asked after the last stage, with the controls to hold the answers against: grey clips, frames
    in another order, and, for adapters that look at the question, another record's question to look at."""

    name: FolderName
    data: tuple[MixtureEntry, ...]
    batch_size: PositiveInt
    frames: PositiveInt
    video_frames: PositiveInt | None = None
    length: PositiveInt
    pack: bool = True
    controls: tuple[Literal["blank_video", "shuffled_frames", "shuffled_prompt"], ...] = (
        "blank_video",
        "shuffled_frames",
    )
    limit: PositiveInt | None = None
    seed: Seed = 0
    loss_on: Literal["answer"] = "answer"

    _weights = pydantic.field_validator("data", mode="after")(all_weighted)

    @property
    def frames_per_video(self) -> int:
        return self.video_frames or self.frames


class MeshConfig(Settings):
    """Sizes of the mesh axes; -1 (at most once) takes the devices that are left.

    `data` and `fsdp` split a batch's rows, `context` the tokens of a row, `tensor` heads and hidden units; parameters
    lie split over `fsdp`, `context` and `tensor`. `dcn_data` is the number of slices, which split the rows first; -1 is
    as many as there are.
    """

    dcn_data: int = -1
    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1


class CheckpointConfig(Settings):
    save_every: PositiveInt = 500
    keep: PositiveInt = 2


class Config(Settings):
    name: FolderName
    model: ModelConfig
    data: DataConfig
    stages: tuple[StageConfig, ...] = ()
    evals: tuple[EvalConfig, ...] = ()
    answers: AnswerConfig = AnswerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tensorboard: bool = True
    wandb_project: str | None = None
    seed: Seed = 0
    notes: tuple[str, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages share a name: {names}")
        for held_out in self.evals:
            if held_out.pack and self.data.prompt_tokenizer is not None:
                raise ValueError(
                    f"{held_out.name}: data.prompt_tokenizer has a question guide what is seen of its clip, and a row "
                    "holds one question; set pack to False"
                )
        longest = self.model.decoder.max_position_embeddings
        parts = {f"stages[{number}]": stage for number, stage in enumerate(self.stages)}
        parts |= {f"evals[{number}]": held_out for number, held_out in enumerate(self.evals)}
        for where, part in parts.items():
            if part.length > longest:
                raise ValueError(
                    f"{part.name}: length {part.length} > the decoder's max_position_embeddings {longest}; give "
                    f"length={longest} where the recipe takes it, else --config.{where}.length={longest}"
                )
        return self

    def asked_frames(self, stage: str | None) -> int | None:
        """Frames of a clip that questions are put with to the model of a stage: as the last evaluation has them, or a
        stage before the last itself. None where nothing says.

        Args:
          stage: None for a model that no stage has trained.
        """
        parts = [each for each in self.stages if each.name == stage]
        if self.evals and (stage is None or parts[0] is self.stages[-1]):
            parts = [self.evals[-1]]
        return self.answers.frames or (parts[0].frames_per_video if parts else None)


def require_stages(config: Config) -> None:
    """Raises `InputError` for a recipe that trains nothing."""
    if not config.stages:
        raise _nothing_to_do(config)


def require_work(config: Config) -> None:
    """Raises `InputError` for a recipe that neither trains nor evaluates anything."""
    if not config.stages and not config.evals:
        raise _nothing_to_do(config)


def _nothing_to_do(config: Config) -> InputError:
    return InputError(
        f"config.stages: {config.name} trains nothing; ask its model with python -m vlvm_jax.generate or "
        "vlvm_jax.evaluate"
    )
