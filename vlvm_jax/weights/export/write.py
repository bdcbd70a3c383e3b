"""`convert export`: a run, a checkpoint or an import as a directory that transformers loads.

Tensors go out one parameter at a time, in the layout that Hugging Face checkpoints have on the hub. The directory
appears whole or not at all, and only after the exported model was compared with this one (`verify`).
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlvm_jax import families, run_card
from vlvm_jax.config import Config
from vlvm_jax.data.files import read_json
from vlvm_jax.data.prompt.templates import TEMPLATES
from vlvm_jax.errors import InputError
from vlvm_jax.weights.export import card, clip, lora, media_tokens, verify
from vlvm_jax.weights.export.clip import ClipExport
from vlvm_jax.weights.export.export import Export, ModelExport, Options, plan
from vlvm_jax.weights.export.ladder import Rung
from vlvm_jax.weights.hf import side_files
from vlvm_jax.weights.hf.safetensors_files import SafetensorsWriter
from vlvm_jax.weights.recipe_source import RecipeSource
from vlvm_jax.weights.sources import Stored, open_source
from vlvm_jax.weights.torch_model import names as own_names


@dataclasses.dataclass(frozen=True)
class Result:
    rung: Rung
    parameters: int
    bytes: int
    verified: verify.Report | None
    directory: Path


def export_checkpoint(
    source: str | Config, destination: Path, options: Options, progress: Callable[[int, int], None] | None = None
) -> Result:
    """Exports what `source` names, or a recipe's model as it starts.

    Args:
      progress: called with (parameters done, parameters in all).

    Raises:
      InputError: the source or the destination is at fault, or the class asked for is not exact.
    """
    if destination.exists():
        raise InputError(f"{destination}: exists already; remove it, or name another destination")
    opened = RecipeSource(source) if isinstance(source, Config) else open_source(source, "SRC")
    if options.format == clip.FORMAT:
        if isinstance(opened, RecipeSource):
            raise InputError(
                f"--format={clip.FORMAT}: the CLIP of a recipe that trains nothing is a checkpoint already"
            )
        export: Export = ClipExport(opened, options)
    else:
        export = plan(opened, options)
    temporary = destination.parent / f"{destination.name}.exporting"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        parameters, size = write(export, temporary, progress)
        report = verify.compare(export, temporary) if options.verify else None
        (temporary / "README.md").write_text(card.text(export, report), encoding="utf-8")
        temporary.rename(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Result(export.rung, parameters, size, report, destination)


def write(export: Export, folder: Path, progress: Callable[[int, int], None] | None) -> tuple[int, int]:
    """Tensors, config, tokenizer, code; returns the numbers of parameters and of bytes."""
    rules = export.rules()
    carried = {f"{export.layout.prefixes['tower']}{name}": value for name, value in export.carried.items()}
    names = [*carried, *(name for rule in rules for name in rule.tensors())]
    writer = SafetensorsWriter(folder, names, export.options.max_shard_bytes)
    for number, rule in enumerate(rules):
        for name, value in export.tensors(rule):
            writer.add(name, value)
        if progress is not None:
            progress(number + 1, len(rules))
    for name, value in carried.items():
        writer.add(name, export.cast(value))
    writer.close()
    if isinstance(export, ClipExport):
        export.write_files(folder)
    elif export.source.hf_files is not None:
        side_files.copy_flat(export.source.hf_files, folder)
        _write_processors(export, folder)
        if isinstance(export, ModelExport) and export.rung.stock is None:
            _write_guide(export, folder / side_files.CLIP_FOLDER)
    if isinstance(export, ModelExport):
        _write_beside_model(export, folder)
    _write_json(folder / "config.json", export.config())
    if export.options.lora == "peft":
        _write_peft(export, folder / "adapter")
    _write_run_card(export, folder)
    return writer.total_parameters, writer.total_bytes


def _write_beside_model(export: ModelExport, folder: Path) -> None:
    """The tokenizer, what ends an answer, and our own class's code."""
    if export.tokenizer is not None:
        media_tokens.write_tokenizer(export.tokenizer, folder, export.media_tokens())
    if not (folder / "generation_config.json").exists() and export.end_id is not None:
        values = {"eos_token_id": export.end_id, "pad_token_id": export.end_id}
        _write_json(folder / "generation_config.json", values)
    _write_own_files(export, folder)
    if export.rung.stock is None:
        for name, path in own_names.source_files(export.adapter.name).items():
            shutil.copyfile(path, folder / name)


def _write_own_files(export: ModelExport, folder: Path) -> None:
    """The chat template and the processors' files of a run that started from no checkpoint."""
    run = export.run
    if run is None or export.base is not None:
        return
    template = TEMPLATES.get(run.data.chat_template)
    if template is not None and (text := template.jinja()) is not None:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    stock = export.rung.stock
    if stock is not None:
        made = stock.made_files(export.vision, run.data.frame_fit, export.config(), media_tokens.IMAGE)
        for name, values in made.items():
            _write_json(folder / name, values)


def _write_processors(export: Export, folder: Path) -> None:
    """The processors' files that the tower's checkpoint does not have."""
    if export.source.hf_files is None or export.vision is None:
        return
    files = Path(side_files.local(side_files.of_tower(export.source.hf_files)))
    family = families.of_config(read_json(files / "config.json"))
    if family is None:
        return
    for name, values in family.processor_files(files, export.rung.stock, export.config()).items():
        _write_json(folder / name, values)


def _write_guide(export: ModelExport, folder: Path) -> None:
    """The tokenizer of the CLIP that an adapter holds, with which questions are put to it; nothing if there is none."""
    files = export.source.hf_files
    assert files is not None
    asks = export.run is not None and export.run.data.prompt_tokenizer is not None
    if side_files.of_clip(files).exists():
        folder.mkdir()
        side_files.copy_into(side_files.of_clip(files), folder)
    elif asks and (files / side_files.SCORING_FILE).exists():
        folder.mkdir()
        media_tokens.write_tokenizer(files / side_files.SCORING_FILE, folder, {})


def _write_run_card(export: Export, folder: Path) -> None:
    """What a run was made with, if the source is one."""
    root = export.source.root if isinstance(export.source, Stored) and export.trained else None
    if root is not None and (root / run_card.FILE).exists():
        (root / run_card.FILE).copy(folder / run_card.FILE)


def _write_peft(export: Export, folder: Path) -> None:
    stock = export.rung.stock
    assert export.lora is not None and stock is not None
    wanted = {path: export.source.read(path) for path in export.source.shapes if lora.is_lora(path)}
    lora.write_peft(folder, wanted, export.lora, stock.peft_prefixes, base_model="..")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
