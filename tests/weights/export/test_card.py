"""What a model card repeats of a run, in any script and of any length."""

import json
from types import SimpleNamespace
from typing import Any

from vlvm_jax.weights.export import card

KIND, PROMPT = "颜色 🎬", "红 what ماذا " * 800


def test_names_and_prompts_of_every_script_stand_as_they_are(tmp_path):
    stage = {"name": KIND, "steps": 2, "first_loss": 2.0, "last_loss": 1.0}
    evaluation = {"خارج": {"accuracy": 0.5, "by_type": {KIND: 0.5}, "controls": {}}}
    summary = {"config": KIND, "stages": [stage], "eval": evaluation}
    config = {"data": {"chat_template": "plain", "prompt_template": PROMPT}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = SimpleNamespace(root=tmp_path, stages=(KIND,), name="run", config=SimpleNamespace(name=KIND))
    export: Any = SimpleNamespace(source=source)
    text = "\n".join(card._training(export))
    for part in (f"Stages: {KIND}.", f"| {KIND} | 2 | 2.000 to 1.000 |", "Held out (خارج)", f"| {KIND} | 0.500 |"):
        assert part in text
    assert PROMPT in text and json.loads(text.split("```json\n")[1].split("```")[0]) == config
    assert card._title(export) == KIND
    assert text.encode().decode() == text
