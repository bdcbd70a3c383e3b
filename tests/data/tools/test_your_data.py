"""The guide's ten lines, as they stand there, on a handful of clips and a checkpoint of a few thousand parameters."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from support import user_folder
from support.families import randomized
from support.hf_checkpoints import checkpoint
from support.recipes import ROOT, environment

from configs import own
from vlvm_jax.config import Config, build
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.sources import formats, mixture
from vlvm_jax.samples import sample_spec
from vlvm_jax.training import partition

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "your_data.md").read_text()


def tiny_smolvlm(folder: Path) -> Path:
    checkpoint(folder, "smolvlm")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.image_token_id = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>")
    randomized(transformers.SmolVLMForConditionalGeneration, config).save_pretrained(folder)
    return folder


def test_the_ten_lines(tmp_path):
    (lines,) = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    assert len(lines.splitlines()) <= 10
    for name in ("1", "2"):
        user_folder.clip(tmp_path / f"clips/{name}.mp4")
    base = tiny_smolvlm(tmp_path / "base")
    *most, last = lines.splitlines(keepends=True)
    assert last.startswith("python -m vlvm_jax.convert export runs/own ")  # as tests/weights does
    here = "".join(most).replace("smolvlm2-256m,", f"smolvlm2-256m,base={base},frames=4,length=400,rows=2,epochs=2,")
    assert here.count(str(base)) == 1
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", here], cwd=tmp_path, env={**environment(tmp_path), "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 records checked" in done.stdout and (tmp_path / "clips.png").exists()
    assert (tmp_path / "runs/own/summary.json").exists()


@pytest.mark.parametrize(("arg", "tokens"), [("smolvlm2-256m", 512), ("llava-1.5-7b,pool=2,lora=8", 1152)])
def test_clips_fit_the_recipe(arg, tokens):
    config = build(Config, own.get_config(f"{arg},data=a.json+b.yaml"))
    (stage,) = config.stages
    assert [entry.path for entry in stage.data] == ["a.json", "b.yaml"]
    spec = sample_spec(config, stage)
    spec.check("own", has_video=True)
    assert spec.video_tokens[-1] == tokens
    rates = partition.resolve(config.model, stage).rates
    assert any(path.startswith("decoder") for path in rates) and not any(path.startswith("encoder") for path in rates)


def test_the_guide_names_what_there_is():
    def column(title: str, number: int) -> set[str]:
        """The words in code in a column of the table under a title."""
        rows = re.findall(r"^\|.*\|$", GUIDE.partition(f"\n## {title}")[2].partition("\n## ")[0], re.MULTILINE)
        return {word for row in rows[2:] for word in re.findall(r"`(\w+)`", row.split("|")[number])}

    assert column("What can be a source", 3) == {*formats.FORMATS, *mixture.CONTAINERS}
    known = set(re.findall(r"`(\w+)`\s+\(", BadSampleError.__doc__ or ""))
    assert len(known) > 6 and column("What is dropped", 1) == known
