"""What real sizes need on TPU slices, by the TPU compiler: the tables of docs/benchmarks.md.

usage: python benchmarks/tpu.py [--workdir DIR] [--only ROW ...] [--search] [--list]

No TPU is needed, libtpu is (`pip install -e '.[tpu]'`). Every row is a program compiled ahead of time, minutes each,
and a file of its own in DIR; what is there is not compiled again. `--search` also finds the largest batch that fits of
every row that is to be searched, by the line through two that do, which takes two or three more compilations each
(`vlvm_jax.compile --search` also tries whether an eighth more fits).
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from configs import ftfv, red_villm
from vlvm_jax.ahead_of_time import programs
from vlvm_jax.ahead_of_time import report as compile_report
from vlvm_jax.config import Config, build
from vlvm_jax.console import say
from vlvm_jax.parallel import topology as topology_lib
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.storage import write_text

TEXT = 512  # tokens beside a clip's visual ones, where rows of different numbers of them are compared
VICUNA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One program on one slice.

    Attributes:
      rows: of a batch, instead of the recipe's.
      searched: whether `--search` is of use; not where rows stand beside others of as many rows.
    """

    name: str
    topology: str
    stage: str
    make: Callable[[], Any]
    rows: int | None = None
    searched: bool = True

    def config(self) -> Config:
        return build(Config, self.make())


def llava_7b(**changes: Any) -> Any:
    """FTFV on LLaVA-1.5-7B: CLIP-L/14-336, Vicuna-7B, T=8, K=32."""
    options = "".join(f",{key}={value}" for key, value in changes.items())
    return ftfv.get_config(f"llava-1.5-7b{options}")


def instruct(tokens: int, sampler: str) -> Any:
    """The last stage with rows just long enough for a clip of eight frames and `TEXT` tokens."""
    config = llava_7b(tokens=tokens, sampler=sampler)
    _lengthen(config, 8 * tokens + TEXT)
    return config


def _lengthen(config: Any, length: int) -> None:
    """Rows of the last stage; beyond the decoder's own 4096 positions by linear interpolation."""
    config.stages[-1].length = length
    if length > 4096:
        config.model.decoder.max_position_embeddings = length
        config.model.decoder.rope_scaling = {"rope_type": "linear", "factor": length / 4096}


def llava_13b() -> Any:
    config = llava_7b()
    config.model.decoder.update(VICUNA_13B)
    return config


def long_video() -> Any:
    """1,984 frames at 32 tokens: 63,488 visual tokens in a row of 65,536, split over the whole slice."""
    config = llava_7b(frames=1984)
    _lengthen(config, 65536)
    config.model.adapter.options.apply_to_images = True  # or every frame would keep room for all of its patches
    config.mesh.update({"data": 1, "fsdp": 1, "context": 64})
    config.stages[-1].batch_size = 1
    return config


def hundred_frames() -> Any:
    """RED-VILLM on LLaVA-1.5-7B: 100 frames as 676 tokens, the decoder trained too."""
    return red_villm.get_config("llava-1.5-7b,train=decoder")


def decoder_alone(length: int | None = None) -> Any:
    """Llama2-7B by itself; as it is, 2 x 2048 tokens a chip of v5e-64: what MaxText 0.2.5 compiles to 2.80 GiB of
    temporaries."""
    config = llava_7b()
    config.model.vision = {
        "kind": "siglip",
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 14,
        "patch_size": 14,
        "feature_layer": -1,
    }
    config.model.adapter.name, config.model.adapter.options = "frames", {}
    config.model.decoder.vocab_size = 32000
    config.data.update({"processor": None, "chat_template": "vicuna_v1"})
    config.stages[-1].update({"trainable": {"decoder/**": 1e-5}, "batch_size": 128, "frames": 1})
    if length is not None:
        _lengthen(config, length)
    return config


def sampled() -> Any:
    return instruct(32, "soft_slots")


def unsampled() -> Any:
    return instruct(576, "none")


SLICES = ("v5e-64", "v5p-64", "v6e-64")
STAGES = ("align", "pretrain", "instruct")
ROWS = (
    *(Row(f"7B-{stage}-{slice_}", slice_, stage, llava_7b) for slice_ in SLICES for stage in STAGES),
    *(Row(f"7B-sampled-{slice_}", slice_, "instruct", sampled) for slice_ in SLICES),
    *(Row(f"7B-unsampled-{slice_}", slice_, "instruct", unsampled) for slice_ in SLICES),
    # The most rows, by and large, that the unsampled step has room for; and the decoder's part of it by itself.
    Row("7B-sampled-384-v5e-64", "v5e-64", "instruct", sampled, rows=384, searched=False),
    Row("7B-unsampled-384-v5e-64", "v5e-64", "instruct", unsampled, rows=384, searched=False),
    *(
        Row(f"decoder-{name}-384-v5e-64", "v5e-64", "instruct", part, rows=384, searched=False)
        for name, part in (
            ("sampled", lambda: decoder_alone(8 * 32 + TEXT)),
            ("unsampled", lambda: decoder_alone(8 * 576 + TEXT)),
        )
    ),
    *(Row(f"13B-{stage}-v5p-64", "v5p-64", stage, llava_13b) for stage in STAGES),
    # The smallest slices that the whole decoder trains on.
    *(Row(f"7B-instruct-{slice_}", slice_, "instruct", llava_7b, rows=16) for slice_ in ("v5e-8", "v5p-8", "v6e-8")),
    Row("7B-64k-v5e-64", "v5e-64", "instruct", long_video),
    Row("7B-100-frames-v5e-64", "v5e-64", "video", hundred_frames),
    Row("decoder-v5e-64", "v5e-64", "instruct", decoder_alone, searched=False),
)


def compile_row(row: Row) -> dict[str, Any]:
    """What `vlvm_jax.compile --json` writes of it."""
    config, topology = row.config(), topology_lib.parse(row.topology)
    mesh = make_mesh(config.mesh, topology.devices())
    made = programs.program(config, row.stage, row.rows, mesh)
    return compile_report.to_json(config, [programs.compile_program(made, mesh, topology)], topology)


def largest_batch(row: Row, result: dict[str, Any]) -> int:
    """Rows of about the largest batch that fits, found `by_line`; 0 where none does."""
    config, topology = row.config(), topology_lib.parse(row.topology)
    report = result["stages"][0]
    mesh = make_mesh(config.mesh, topology.devices())
    largest = programs.search(
        config, row.stage, mesh, topology, say, rows=row.rows, known=report["needed"], by_line=True
    )
    if largest is not None:
        return largest.batch_size
    return report["batch_size"] if report["fits"] else 0


def table(folder: Path) -> str:
    lines = [
        "| | rows | arguments | temporaries | peak | of HBM | most rows | collectives | PFLOP | ms | MFU bound |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in ROWS:
        path = folder / f"{row.name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        report, chip = result["stages"][0], result["topology"]["chip"]
        if report["needed"] is None:
            lines.append(f"| {row.name} | {report['batch_size']} | does not fit: {report['message']} |")
            continue
        gib = topology_lib.GIB
        flops, bytes_ = report["flops"], report["collectives"]["bytes"]
        operations = sum(flops.values()) / 1e15
        bound = 1000 * max(report["compute"], report["hbm"], report["interconnect"])
        moved = ", ".join(f"{kind} {size / gib:.1f}" for kind, size in sorted(bytes_.items()) if size > 0.05 * gib)
        cells = (
            row.name,
            report["batch_size"],
            f"{report['arguments'] / gib:.2f}",
            f"{report['temporaries'] / gib:.2f}",
            f"{report['peak'] / gib:.2f}",
            f"{report['needed'] / chip['hbm']:.0%}",
            result.get("largest_batch", "-"),
            moved,
            f"{operations:.1f}",
            f"{bound:.0f}",
            f"{report['mfu_bound']:.0%}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/tpu")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS])
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    args = parser.parse_args()
    if args.list:
        print("\n".join(row.name for row in ROWS))
        return
    folder = Path(args.workdir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        path = folder / f"{row.name}.json"
        if args.only and row.name not in args.only:
            continue
        if not path.exists():
            say(f"{row.name}: compiling")
            write_text(str(path), json.dumps(compile_row(row), indent=2))
        result = json.loads(path.read_text())
        if args.search and row.searched and "largest_batch" not in result:
            say(f"{row.name}: searching for the largest batch")
            result["largest_batch"] = largest_batch(row, result)
            write_text(str(path), json.dumps(result, indent=2))
    print("GiB per chip")
    print(table(folder))


if __name__ == "__main__":
    main()
