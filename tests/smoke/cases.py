"""What the reference files hold, and how a model is asked about them. Imports no torch."""

import jax
import jax.numpy as jnp
import numpy as np

from vlvm_jax.data.sample.assemble import Sample
from vlvm_jax.inference.answering import Answering
from vlvm_jax.inference.requests import Request
from vlvm_jax.models.batch import Batch

FAMILIES = ("llava", "llava_onevision", "smolvlm")
QUESTION = "what is in the picture ?"
FRAMES = 4
NEW_TOKENS = 16
# A training run that takes a minute: the README's command on fewer files and with fewer steps.
TRAINING = (
    "--config=configs/ftfv.py:tiny,scale=0.05",
    "--config.data.embedded.train_arrangements=400",
    "--config.data.embedded.train_clips=200",
    "--config.data.embedded.heldout_clips=40",
)


def requests(folder) -> dict[str, Request]:
    """One question about each kind of medium in the reference folder."""
    media = {
        "text": (),
        "image": (("image", f"{folder}/picture.png"),),
        "clip": (("video", f"{folder}/clip.mp4"),),
    }
    return {kind: Request(kind, files, QUESTION) for kind, files in media.items()}


def sample_of(answering: Answering, request: Request) -> Sample:
    prompts = answering.prompts
    return prompts.sample(request, prompts.prompt(request), prompts.media(request))


def logits(answering: Answering, sample: Sample) -> np.ndarray:
    """fp32 logits [L, vocabulary] of a prompt with its media."""
    length = len(sample["token_ids"])
    if not len(sample["media"]):  # a batch has at least one frame; number 0 marks it as padding
        size = sample["frames"].shape[1]
        blank = {"frames": np.zeros((1, size, size, 3), np.uint8), "media": np.zeros(1, np.int32)}
        sample = {**sample, **blank, "is_video": np.zeros(1, bool)}
    fields = {
        **sample,
        "positions": np.arange(length, dtype=np.int32),
        "segment_ids": np.ones(length, np.int32),
        "loss_mask": np.zeros(length, bool),
    }
    batch = Batch(**{name: jnp.asarray(value[None]) for name, value in fields.items()})
    model = answering.engine.model

    def run(params, batch):
        bound = model.bind(params)
        return bound.decoder.logits(bound(batch)[0])

    with jax.set_mesh(answering.engine.mesh), jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(run)(answering.engine.params, batch))[0]
