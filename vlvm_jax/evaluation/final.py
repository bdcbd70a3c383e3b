"""What a training run asks its model at the end: the held-out questions, the controls, and a few frames to look at."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlvm_jax.config import Config, EvalConfig
from vlvm_jax.console import Meter, Waiting
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import Record, usable
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.sample import turns
from vlvm_jax.data.sources import mixture
from vlvm_jax.evaluation import heldout
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.adapters.base import FrameLayout, Guidance
from vlvm_jax.models.params import Model, Params
from vlvm_jax.parallel import rules
from vlvm_jax.pictures import Picture
from vlvm_jax.samples import sample_spec
from vlvm_jax.stop import StopSignal

MAJORITY_OF = 20_000  # training records at most, whose answers the majority control counts: all are read for it


def evaluate(
    config: Config, params: Params, trained_on: Sequence[Record], mesh: Mesh, stop: StopSignal
) -> tuple[dict[str, Any], list[Picture]]:
    """Answers every held-out set with and without its controls.

    Args:
      trained_on: whose commonest answers are the control `majority`; without any there is none.

    Returns:
      The `eval` entry of the summary by set, and pictures of the last set's first clips.
    """
    results: dict[str, Any] = {}
    pictures: list[Picture] = []
    if not config.evals:
        return results, pictures
    predict = heldout.make_predict(config.model, mesh)
    segmented = params_lib.split(params, {})
    for held_out in config.evals:
        asked = turns.split_turns(usable(mixture.read_mixture(held_out.data, held_out.seed)))
        if held_out.limit is not None:
            asked = asked[: held_out.limit]
        has_video = any(record.kind == "video" for record in asked)
        controls = held_out.controls if has_video else ()
        given = {}
        with Meter(f"eval {held_out.name}", len(asked) * (1 + len(controls))) as meter:
            waits = Waiting(f"eval {held_out.name}: compiling the evaluation step")
            for number, control in enumerate((None, *controls)):

                def on_batch(done: int, number=number, meter=meter, asked=asked, waits=waits) -> None:
                    stop.check("during evaluation; every stage is saved")
                    waits.close()
                    meter.update(number * len(asked) + done, "questions")

                with waits:
                    given[control] = heldout.ask(
                        predict,
                        segmented,
                        asked,
                        sample_spec(config, held_out, control),
                        held_out,
                        mesh,
                        workers=config.data.workers,
                        on_batch=on_batch,
                    )
        answers = given.pop(None)
        if trained_on:
            given["majority"] = heldout.majority_answers([a.record for a in answers], usable(trained_on, MAJORITY_OF))
        results[held_out.name] = heldout.summarise(answers, given)
        if has_video:
            pictures = draw_clips(config, segmented, held_out, asked, mesh)
    return results, pictures


def draw_clips(
    config: Config, params: Params, held_out: EvalConfig, asked: list[Record], mesh: Mesh, count: int = 3
) -> list[Picture]:
    """Frames and sampler weights of a few clips, each another clip and another type of question."""
    loader = loader_lib.SampleLoader(asked, sample_spec(config, held_out))
    model = Model(config.model)

    @functools.partial(jax.jit, out_shardings=rules.replicated(mesh))
    def weigh(params: Params, frames, guidance: Guidance | None):
        bound = model.bind(params)
        layout = FrameLayout(jnp.ones(frames.shape[:2], jnp.int32), jnp.ones(frames.shape[:2], bool))
        return bound.adapter.frame_weights(bound.encode_media(frames), layout, guidance)

    pictures, seen = [], set()
    for index, record in enumerate(asked):
        turn = record.turns[0]
        if record.kind != "video" or turn.type in seen or record.media in seen:
            continue
        try:
            sample = loader.load(index)
        except BadSampleError:
            continue
        frames = sample["frames"]
        if len(frames) < held_out.frames_per_video:
            continue
        seen |= {turn.type, record.media}
        guidance = Guidance(jnp.asarray(sample["prompt_ids"])[None]) if "prompt_ids" in sample else None
        weights = weigh(params, frames[None], guidance)
        if weights is not None:
            side = round(weights.shape[-1] ** 0.5)
            weights = np.asarray(weights[0]).reshape(len(frames), side, side)
        question = turn.question.replace("<image>", "").strip()
        pictures.append(Picture(frames, weights, f"{question}  {turn.answer}"))
        if len(pictures) == count:
            break
    return pictures
