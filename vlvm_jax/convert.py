"""Import pretrained weights, and export trained models to PyTorch.

usage: python -m vlvm_jax.convert import SRC DST
       python -m vlvm_jax.convert export SRC DST [flags]
       python -m vlvm_jax.convert export --config=RECIPE DST [flags]

  SRC   What to read. For import: a hub id or a directory in Hugging Face format (config.json and safetensors). For
        export: a training run, one of its stages or steps, an import, or a Hugging Face directory. A recipe that trains
        nothing is exported by its --config.
  DST   The new directory. For import: local or gs://; `init_from` and `export` accept it. For export: local;
        transformers loads it.

Flags apply to export. Exit codes: 0 done, 2 bad input (one line says what), 1 an internal error.
"""

import sys
from pathlib import Path
from typing import Any, cast

from absl import flags

from vlvm_jax import cli, memory
from vlvm_jax.errors import InputError

_CONFIG = cli.define_recipe("A recipe that trains nothing, to export as it is (export).")
_FORMAT = flags.DEFINE_string(
    "format",
    None,
    "The class to export as: a model_type of docs/weights.md, or vlvm, which is our own PyTorch code. It is refused "
    "unless it computes exactly the same (default: the best class that does).",
)
_MEDIA = flags.DEFINE_enum(
    "media",
    "all",
    ["all", "image", "video"],
    "The media that the exported model will be used with. A class needs to be exact only for these.",
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the exported tensors (default: that of the checkpoint the model started from).",
)
_LORA = flags.DEFINE_enum(
    "lora",
    "merge",
    ["merge", "peft"],
    "Merge LoRA into the weights, or write it as a PEFT adapter beside the base model (folder `adapter`).",
)
_VERIFY = flags.DEFINE_bool(
    "verify",
    True,
    "Compare the export with PyTorch, if torch is installed. A float32 export is compared with the model as trained, "
    "others with its rounded weights, and the effect of rounding is reported.",
)
_FALLBACK = flags.DEFINE_bool(
    "fallback", False, "If the newest step of the run is damaged, rename it and export the newest intact step."
)


def main(arguments: list[str]) -> None:
    if _CONFIG.value is not None:
        if len(arguments) != 2 or arguments[0] != "export":
            raise InputError("--config: expected `export --config=RECIPE DST`; see --help")
        arguments = ["export", "", arguments[1]]
    if len(arguments) != 3 or arguments[0] not in ("import", "export"):
        problem = ""
        if arguments and arguments[0] not in ("import", "export"):
            problem = f"; there is no {arguments[0]!r}"
        elif len(arguments) == 2:
            problem = "; DST is missing"
        raise InputError(f"expected `import SRC DST` or `export SRC DST`{problem}; see --help")
    command, source, destination = arguments
    from vlvm_jax import storage

    if command == "export" and storage.is_remote(destination):
        raise InputError(f"DST: {destination}: an export is written to a local folder; copy it to the bucket then")
    if not storage.is_remote(destination) and Path(destination).expanduser().exists():
        raise InputError(f"DST: {destination}: exists already; remove it, or name another destination")
    storage.check_output(destination, "DST")
    memory.give_back_large()  # parameters and the pieces in which they are written; or some would be held twice
    (_import if command == "import" else _export)(source, destination)


def _import(source: str, destination: str) -> None:
    from etils import epath

    from vlvm_jax.console import Meter, say
    from vlvm_jax.weights.importing import import_checkpoint

    target = epath.Path(destination)
    target = target if "://" in destination else target.expanduser().resolve()
    with Meter("import", 100) as meter:
        opened = import_checkpoint(source, target, lambda done, total: meter.update(100 * done // total, "%"))
    hf = opened.checkpoint.hf
    parameters = sum(a.size for a in opened.shapes.values())
    say(f"{hf.family} ({opened.checkpoint.layout.name} layout), {parameters:,} parameters: {target}")


def _export(source: str, destination: str) -> None:
    from vlvm_jax.config import command_line
    from vlvm_jax.console import Meter, say
    from vlvm_jax.weights import sources
    from vlvm_jax.weights.export import verify, write

    options = write.Options(
        format=_FORMAT.value, media=cast(Any, _MEDIA.value), dtype=_DTYPE.value, lora=_LORA.value, verify=_VERIFY.value
    )
    target = Path(destination).expanduser().resolve()
    if _FALLBACK.value:
        sources.set_aside_damaged(source, "SRC")
    exported = source if _CONFIG.value is None else command_line.read()
    with Meter("export", 100) as meter:
        result = write.export_checkpoint(
            exported, target, options, lambda done, total: meter.update(100 * done // total, "%")
        )
    rung = result.rung
    say(f"class: {rung.family}" + (f" (rung {rung.number})" if rung.number else "") + f": {rung.reason}")
    if result.verified:
        say(f"checked: {result.verified}")
    else:
        why = f"{' and '.join(verify.missing(_LORA.value))} not installed" if _VERIFY.value else "--noverify"
        say(f"not compared with PyTorch ({why})")
    say(f"{result.parameters:,} parameters, {result.bytes / 2**20:,.1f} MiB: {result.directory}")


if __name__ == "__main__":
    sys.exit(cli.run(main, __doc__ or "", positional=True))
