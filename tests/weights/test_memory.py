"""Conversions of a checkpoint several times larger than the memory they may take.

Memory is counted above that of the same command on a tiny checkpoint, and recorded as a property of the test; the
figures in docs/weights.md are those.
"""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import xla
from support.recipes import ROOT

pytestmark = pytest.mark.slow

GIB = 1 << 30
SHARD = GIB // 8
IMAGE, PATCH = 64, 16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A LLaVA in which every stack of matrices, the embeddings and the head have the same size."""

    width: int
    layers: int

    @property
    def vocab(self) -> int:
        return self.layers * self.width

    @property
    def largest(self) -> int:
        """Bytes of a stack."""
        return 2 * self.layers * self.width**2

    def config(self) -> dict:
        shared = {"hidden_size": self.width, "intermediate_size": self.width, "num_hidden_layers": self.layers}
        shared |= {"num_attention_heads": 4}
        vision = {"model_type": "siglip_vision_model", "image_size": IMAGE, "patch_size": PATCH, **shared}
        text = {"model_type": "llama", "num_key_value_heads": 4, "vocab_size": self.vocab, **shared}
        return {
            "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "dtype": "bfloat16",
            "vision_config": vision | {"vision_use_head": False}, "text_config": text,
            "image_token_index": self.vocab - 1, "vision_feature_select_strategy": "full",
        }  # fmt: skip

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        row, square, table = (self.width,), (self.width, self.width), (self.vocab, self.width)
        tower, decoder = "vision_tower.vision_model.", "language_model.model."

        def with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
            yield f"{name}.weight", shape
            yield f"{name}.bias", row

        yield from with_bias(f"{tower}embeddings.patch_embedding", (self.width, 3, PATCH, PATCH))
        yield f"{tower}embeddings.position_embedding.weight", ((IMAGE // PATCH) ** 2, self.width)
        yield from with_bias(f"{tower}post_layernorm", row)
        for i in range(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from with_bias(f"{tower}encoder.layers.{i}.self_attn.{name}", square)
            for number in (1, 2):
                yield from with_bias(f"{tower}encoder.layers.{i}.mlp.fc{number}", square)
                yield from with_bias(f"{tower}encoder.layers.{i}.layer_norm{number}", row)
        for number in (1, 2):
            yield from with_bias(f"multi_modal_projector.linear_{number}", square)
        yield f"{decoder}embed_tokens.weight", table
        for i in range(self.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{decoder}layers.{i}.self_attn.{name}.weight", square
            for name in ("gate_proj", "up_proj", "down_proj"):
                yield f"{decoder}layers.{i}.mlp.{name}.weight", square
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{decoder}layers.{i}.{name}.weight", row
        yield f"{decoder}norm.weight", row
        yield "language_model.lm_head.weight", table


BIG, TINY = Sizes(width=1024, layers=32), Sizes(width=16, layers=2)


def write_checkpoint(folder: Path, sizes: Sizes) -> int:
    """Writes shard by shard, a piece of noise at a time; returns the bytes of all tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(sizes.config()))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in sizes.tensors():
        if sum(map(math.prod, shards[-1].values())) * 2 > SHARD:
            shards.append({})
        shards[-1][name] = shape
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, shapes in zip(files, shards, strict=True):
        write_shard(folder / file, shapes)
    weight_map = {name: file for file, shapes in zip(files, shards, strict=True) for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return 2 * sum(math.prod(shape) for shapes in shards for shape in shapes.values())


def write_shard(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    ends = np.cumsum([2 * math.prod(shape) for shape in shapes.values()]).tolist()
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False)
    }
    text = json.dumps(header).encode()
    rng = np.random.default_rng(len(file.name))
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, ends[-1], 1 << 22):
            noise = np.frombuffer(rng.bytes(min(1 << 22, ends[-1] - start)), np.uint16)
            out.write((noise & 0xBFFF).tobytes())  # finite: the highest bit of bfloat16's exponent is 0


def anonymous(pid: int) -> int:
    """Bytes that a process holds itself: not the pages of files it reads."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    return 0  # it has ended


def peak_of(*arguments: str | Path) -> int:
    """The most that the command held while it ran."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vlvm_jax.convert", *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla.flags(1)},
    )  # fmt: skip
    most = 0
    while process.poll() is None:
        most = max(most, anonymous(process.pid))
        time.sleep(0.005)
    assert process.returncode == 0, process.communicate()[1]
    return most


def convert(folder: Path, sizes: Sizes) -> tuple[int, int]:
    """Peaks of an import and of an export of it; what is not needed any more is removed on the way."""
    imported = peak_of("import", folder / "source", folder / "imported")
    shutil.rmtree(folder / "source")
    exported = peak_of("export", folder / "imported", folder / "exported", "--noverify")
    shutil.rmtree(folder / "imported")
    return imported, exported


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_far_below_the_checkpoint_s_size(tmp_path, record_property):
    big, tiny = tmp_path / "big", tmp_path / "tiny"
    try:
        for folder in (big, tiny):
            folder.mkdir()
        total = write_checkpoint(big / "source", BIG)
        write_checkpoint(tiny / "source", TINY)
        peaks = np.subtract(convert(big, BIG), convert(tiny, TINY))
        written = sum(file.stat().st_size for file in (big / "exported").glob("*.safetensors"))
    finally:
        shutil.rmtree(big, ignore_errors=True)
    for what, peak in zip(("import", "export"), peaks, strict=True):
        record_property(f"GiB of memory, {what}", float(peak / GIB))
    allowed = 2 * BIG.largest + GIB // 8
    assert total > 3 * allowed
    assert total <= written < 1.01 * total
    assert (peaks < allowed).all(), f"import and export took {peaks / GIB} GiB; allowed are {allowed / GIB}"
