"""The model card (README.md) of an export: what it is, how it was made, how it was checked, how to run it."""

from typing import Any

from vlvm_jax import __version__, json_text
from vlvm_jax.models.params import Model
from vlvm_jax.weights.export.export import Export, ModelExport
from vlvm_jax.weights.export.verify import Report

_NEEDS_TORCHVISION = "Its processor needs the package torchvision."


def text(export: Export, report: Report | None) -> str:
    rung = export.rung
    lines = [
        "---",
        "library_name: transformers",
        *(["pipeline_tag: video-text-to-text"] if rung.number else []),
        "tags: [vlvm_jax]",
        "---",
        f"# {_title(export)}",
        "",
        f"Exported by vlvm_jax {__version__} as `{rung.family}`"
        + (f" (rung {rung.number})" if rung.number else "")
        + ".",
        f"Why this class: {rung.reason}.",
        "",
        "## Checked against the original",
        "",
        f"{report}." if report else "Not compared with PyTorch: torch was not installed, or the check was turned off.",
        "",
    ]
    if isinstance(export, ModelExport):
        lines += [*_tokens(export), *_use(export)]
    lines += _training(export)
    return "\n".join(lines)


def _title(export: Export) -> str:
    """The recipe's name, or that of the checkpoint: a directory's, or in the hub's cache the repository's."""
    config = getattr(export.source, "config", None)
    if config is not None:
        return config.name
    parts = str(export.source.name).rstrip("/").split("/")
    cached = [part.removeprefix("models--").replace("--", "/") for part in parts if part.startswith("models--")]
    return cached[-1] if cached else parts[-1]


def _tokens(export: ModelExport) -> list[str]:
    adapter = Model(export.model).adapter
    one, eight = adapter.num_video_tokens(1), adapter.num_video_tokens(8)
    ids = " and ".join(f"`{name}` is token {number}" for name, number in export.media_tokens().items())
    return [
        "## Visual tokens",
        "",
        "| input | tokens |",
        "|---|---|",
        f"| image | {adapter.num_image_tokens()} |",
        f"| clip of 1 frame | {one} |",
        f"| clip of 8 frames | {eight} |",
        "",
        f"{ids}; the decoder has {export.model.decoder.max_position_embeddings} positions.",
        "",
    ]


def _use(export: ModelExport) -> list[str]:
    stock = export.rung.stock
    loader = "AutoTokenizer" if stock is None else "AutoProcessor"
    lines = ["## Use", "", "```python", f"from transformers import AutoModelForImageTextToText, {loader}", ""]
    if stock is None:
        lines += [
            "model = AutoModelForImageTextToText.from_pretrained(DIRECTORY, trust_remote_code=True)",
            "tokenizer = AutoTokenizer.from_pretrained(DIRECTORY, trust_remote_code=True)",
            "# frames: uint8 [T, H, W, 3]; prompt: in the chat format the model was trained in, with <video> in it",
            "print(model.chat(tokenizer, prompt, videos=[frames]))",
        ]
        note = "Needs transformers; vLLM and SGLang do not load models with their own code of this kind."
    else:
        lines += ["model = AutoModelForImageTextToText.from_pretrained(DIRECTORY)"]
        lines += ["processor = AutoProcessor.from_pretrained(DIRECTORY)"]
        note = "The class has no video input: send the frames of a clip as images, in order."
        if export.rung.has_video:
            note = f"Send clips as videos (`pixel_values_videos`). {_NEEDS_TORCHVISION}"
        note = stock.note or note
    return [*lines, "```", "", note, ""]


def _training(export: Export) -> list[str]:
    if not export.source.stages:
        return []
    lines = ["## Training", "", f"Stages: {', '.join(export.source.stages)}.", ""]
    if unfinished := getattr(export.source, "unfinished", ()):
        lines += [
            f"The run was unfinished when this was exported ({', '.join(unfinished)} not finished). The weights are "
            f"those of stage {export.source.stages[-1]}, step {export.source.name.rpartition('/')[2]}.",
            "",
        ]
    summary = _run_file(export, "summary.json")
    if summary:
        lines += ["| stage | steps | loss, first to last |", "|---|---|---|"]
        lines += [
            f"| {stage['name']} | {stage['steps']} | {_number(stage['first_loss'])} to {_number(stage['last_loss'])} |"
            for stage in summary["stages"]
        ]
        lines += ["", *_evaluation(summary["eval"])]
    config = _run_file(export, "config.json")
    if config:
        lines += ["", "<details><summary>Configuration</summary>", "", "```json"]
        lines += [json_text.readable(config, indent=1), "```", "", "</details>", ""]
    return lines


def _evaluation(results: dict[str, Any]) -> list[str]:
    lines = []
    for split, result in results.items():
        lines += [
            f"Held out ({split}): accuracy {_number(result['accuracy'])}.",
            "",
            "| type | accuracy |",
            "|---|---|",
        ]
        lines += [f"| {kind} | {_number(value)} |" for kind, value in result["by_type"].items()]
        lines += [
            f"| control: {name} | {_number(control['accuracy'] if isinstance(control, dict) else control)} |"
            for name, control in result.get("controls", {}).items()
        ]
    return lines


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)


def _run_file(export: Export, name: str) -> Any:
    root = getattr(export.source, "root", None)
    path = None if root is None else root / name
    if path is None or not export.source.stages or not path.exists():
        return None
    return json_text.loads(path.read_bytes())
