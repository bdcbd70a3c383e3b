"""A fine-tuning step beside PyTorch's, on the same weights and rows, with equal losses.

usage: python -m benchmarks.train [--rounds N] [--rows N] [--length N] [--compile] [--json FILE]

A LLaVA-1.5 of random weights is written to disk as transformers writes it: a decoder of 4 layers of width 1,024, a
vocabulary of 32,064, 24 x 24 patches an image. transformers loads it (PyTorch, sdpa, as many threads), and so do we.
Both train the connector and the decoder in fp32; the tower is frozen. AdamW, gradients clipped to norm 1. A row is one
image and text to its end; all of its tokens are learned, or the last 15%. Losses of the first steps must agree to 1e-4,
or nothing is measured.

Contenders take turns, round after round, after rounds that are not counted; numbers are medians with their range,
ratios are within rounds. `products` are the step's larger matrix products alone, forward and backward, in both
libraries: what of the ratio belongs to the backends. With --compile, PyTorch's model goes through `torch.compile`.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.products import contenders, decoder_sizes
from benchmarks.random_models import GRID, SCALES, save, threads, tokenizer, tower
from vlvm_jax.config import MeshConfig, StageConfig
from vlvm_jax.inference.loading import load
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import Batch, to_device
from vlvm_jax.parallel import cpu_options
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.training import partition as partition_lib
from vlvm_jax.training.stages import divide
from vlvm_jax.training.step import make_step

SCALE = SCALES["small"]
PATCHES = GRID**2
RATE, WEIGHT_DECAY, BETAS, EPSILON = 1e-4, 0.0, (0.9, 0.999), 1e-8
CHECKED = 3  # steps whose losses have to agree
LEARNED = {"all": 1.0, "15%": 0.15}

Step = Callable[[], float]


def write_llava(folder: Path) -> None:
    """A checkpoint with its tokenizer and processor, random weights."""
    size, words = GRID * SCALE.patch, tokenizer(SCALE.vocabulary - 64)
    text = transformers.LlamaConfig(
        vocab_size=SCALE.vocabulary,
        hidden_size=SCALE.width,
        intermediate_size=SCALE.inner,
        num_hidden_layers=SCALE.layers,
        num_attention_heads=SCALE.width // SCALE.head,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    config = transformers.LlavaConfig(
        vision_config=tower(transformers.CLIPVisionConfig, SCALE, image_size=size, patch_size=SCALE.patch),
        text_config=text,
        image_token_index=words.get_vocab()["<image>"],
        image_seq_length=PATCHES,
    )
    save(transformers.LlavaForConditionalGeneration, config, SCALE, folder)
    words.save_pretrained(folder)
    edges: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(CLIPImageProcessorPil(**edges).to_dict()))
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def rows_of(rows: int, length: int, learned: float, image_token: int) -> dict[str, np.ndarray]:
    """A batch of images with text after them."""
    rng, size = np.random.default_rng(0), GRID * SCALE.patch
    ids = rng.integers(1000, SCALE.vocabulary - 64, (rows, length), np.int32)
    media_mask = np.zeros((rows, length), bool)
    media_mask[:, 1 : 1 + PATCHES] = True
    ids[media_mask] = image_token
    loss_mask = np.broadcast_to(np.arange(length) >= length - round(learned * length), ids.shape) & ~media_mask
    return {
        "frames": rng.integers(0, 256, (rows, 1, size, size, 3), np.uint8),
        "media": np.ones((rows, 1), np.int32),
        "is_video": np.zeros((rows, 1), bool),
        "token_ids": ids,
        "media_mask": media_mask,
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape).copy(),
        "segment_ids": np.ones_like(ids),
        "loss_mask": loss_mask.copy(),
    }


def ours(folder: Path, batch: dict[str, np.ndarray]) -> Step:
    """Our step, on this process's devices."""
    engine = load(str(folder), rows=1).engine
    model = engine.model.config.model_copy(update={"dtype": "float32"})
    rows, length = batch["token_ids"].shape
    stage = StageConfig.model_validate(
        {
            "name": "train",
            "data": [{"path": "none"}],
            "steps": 1000,
            "batch_size": rows,
            "frames": 1,
            "length": length,
            "trainable": {"adapter/**": RATE, "decoder/**": RATE},
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": WEIGHT_DECAY,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
        }
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    partition = partition_lib.resolve(model, stage)
    functions = make_step(model, stage, partition, mesh, 1000, cpu_options.compiler_options(mesh, model.dtype))
    with jax.set_mesh(mesh):
        trainable, frozen = divide(params_lib.join(engine.params), partition, functions, stage)
        state = functions.init(trainable, jax.random.key_data(jax.random.key(0)))
        placed: Batch = to_device(batch, mesh)

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = functions.train(state, frozen, placed)
        return float(metrics["loss"])

    return step


def theirs(folder: Path, batch: dict[str, np.ndarray], compiled: bool) -> Step:
    """The same step of transformers' model."""
    model: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.train()
    model.model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
    mean, std = (np.asarray(getattr(CLIPImageProcessorPil(), name)) for name in ("image_mean", "image_std"))
    pixels = (batch["frames"][:, 0] / 255 - mean) / std
    ids = torch.from_numpy(batch["token_ids"].astype(np.int64))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)),
        "labels": torch.where(torch.from_numpy(batch["loss_mask"]), ids, -100),
    }
    run = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = run(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def products(rows: int, length: int) -> tuple[Step, Step]:
    """The decoder's matrix products and the head's, forward and backward, in jax and in PyTorch."""
    inputs, outputs = decoder_sizes(SCALE.width, SCALE.inner, SCALE.layers)
    return contenders(rows * length, [*inputs, SCALE.width], [*outputs, SCALE.vocabulary], backward=True)


def measured(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's steps, in turn, after a round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                taken[name].append(time.perf_counter() - start)
    return taken


def check(name: str, one: Step, other: Step) -> None:
    """Raises `SystemExit` if the losses of the first steps differ."""
    losses = np.array([[one(), other()] for _ in range(CHECKED)])
    print(f"{name}: losses {losses[:, 0].round(5).tolist()}, PyTorch {losses[:, 1].round(5).tolist()}", flush=True)
    if np.abs(losses[:, 0] - losses[:, 1]).max() > 1e-4:
        raise SystemExit(f"{name}: losses differ by more than 1e-4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=1152)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(threads())
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_llava(Path(folder))
        image_token = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>")
        for name, share in LEARNED.items():
            batch = rows_of(args.rows, args.length, share, image_token)
            both = {"ours": ours(Path(folder), batch), "torch": theirs(Path(folder), batch, args.compile)}
            check(name, *both.values())
            results[name] = measured(both, args.rounds)
            del both
        jax_products, torch_products = products(args.rows, args.length)
        results["products"] = measured({"ours": jax_products, "torch": torch_products}, args.rounds)
    print(f"{platform.machine()}, {threads()} threads, jax {jax.__version__}, torch {torch.__version__}")
    for name, taken in results.items():
        ratios = [other / own for own, other in zip(taken["ours"], taken["torch"], strict=True)]
        print(
            f"{name:9} ours {statistics.median(taken['ours']):.3f} s, torch {statistics.median(taken['torch']):.3f} s; "
            f"torch / ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
