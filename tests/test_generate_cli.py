"""The command: what it writes, what it shows, a conversation; bad input ends in one line, exit code 2, no traceback."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from support import tiny_checkpoints as tiny
from support import xla
from support.recipes import ROOT, errors_in

from vlvm_jax import cli, console, generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    tiny.checkpoint(root / "model", "llava_onevision")
    tiny.clip(root / "clip.mp4")
    tiny.picture(root / "picture.png")
    (root / "text.mp4").write_text("no clip")
    (root / "clips").mkdir()
    (root / "clips" / "a.mp4").touch()
    (root / "empty.txt").write_text("\n\n")
    (root / "list.json").write_text(json.dumps(["what is it ?", {"id": "b", "question": "how many ?"}]))
    (root / "bad.json").write_text('[{"text": "what ?"}]')
    (root / "deep.json").write_text("[" * 100_000)
    (root / "deep.jsonl").write_text('{"question": ' + "[" * 500 + "]" * 500 + "}")
    (root / "lines.txt").write_text("what is it ?\n\nhow many ?\n")
    return root


@pytest.fixture
def ask(folder, capsys):
    """Runs the command in this process; the exit code and what it wrote."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with flagsaver.flagsaver():
            if flags.FLAGS.is_parsed():
                flags.FLAGS.unparse_flags()
            given = [argument.replace("{}", str(folder)) for argument in arguments]
            code = cli.run(generate.main, generate.__doc__ or "", ["generate", *given])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


MODEL = ("--checkpoint={}/model", "--max_new_tokens=12", "--frames=4")
CLIP = (*MODEL, "--video={}/clip.mp4")


def test_one_question(ask):
    code, out, err = ask(*CLIP, "--prompt=what is it ?", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["question"] == "what is it ?" and answer["finish"] == "length" and answer["new_tokens"] == 12
    assert answer["visual_tokens"] == 17 and answer["prompt_tokens"] > 17
    code, out, err = ask(*CLIP, "--prompt=what is it ?")
    assert (code, out) == (0, answer["text"] + "\n"), err


def test_questions_of_a_file_and_a_contact_sheet(ask, folder, tmp_path):
    listed = ask(*CLIP, "--questions={}/list.json", "--json")
    code, out, err = ask(*CLIP, "--questions={}/lines.txt", "--json", f"--show={tmp_path}/sheet.png")
    assert code == listed[0] == 0, err
    answers, others = ([json.loads(line) for line in text.splitlines()] for text in (out, listed[1]))
    assert [a["question"] for a in answers] == ["what is it ?", "how many ?"]
    assert [a["id"] for a in answers] == ["1", "3"] and [a["id"] for a in others] == ["1", "b"]
    assert [a["text"] for a in answers] == [a["text"] for a in others]
    assert answers[0]["seconds_vision"] > 10 * answers[1]["seconds_vision"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert f"written: {tmp_path}/sheet.png" in err
    assert sheet.shape[1] > 2 * sheet.shape[0] and sheet.std() > 20  # four frames in a row


SCRIPTS = ["视频里发生了什么\uff1f", "ماذا يحدث ؟", "👩\u200d👧 🎬 ?", "  what is it ?  ", "a\u2028b\x85c ?"]


def test_questions_in_every_script(ask, tmp_path):
    """As lines and as JSON they are asked as they stand, and answers repeat them readably."""
    lines, listed = tmp_path / "lines.txt", tmp_path / "list.json"
    lines.write_text("\ufeff" + "\n".join(SCRIPTS), encoding="utf-8")
    listed.write_text(json.dumps(SCRIPTS))
    outputs = []
    for file in (lines, listed):
        code, out, err = ask(*CLIP, f"--questions={file}", "--json", "--max_new_tokens=2")
        assert code == 0, err
        assert all(question.splitlines()[0] in out for question in SCRIPTS)
        outputs.append([json.loads(line) for line in out.split("\n") if line])
        assert [answer["question"] for answer in outputs[-1]] == SCRIPTS
    for one, other in zip(*outputs, strict=True):
        assert (one["text"], one["prompt_tokens"]) == (other["text"], other["prompt_tokens"])
    code, out, err = ask(*CLIP, f"--prompt={SCRIPTS[2]}")
    assert code == 0 and out.endswith("\n"), err


def test_a_questions_file_that_is_not_utf_8_is_refused(ask, tmp_path):
    (tmp_path / "latin.txt").write_bytes("où ?".encode("latin-1"))
    code, _, err = ask(*CLIP, f"--questions={tmp_path}/latin.txt")
    assert code == 2 and "latin.txt: line 1, byte 2: 0xf9 is not UTF-8; convert the file" in err


def test_images(ask):
    code, out, err = ask(*MODEL, "--image={}/picture.png", "--image={}/picture.png", "--prompt=is it a dog ?", "--json")
    assert code == 0, err
    assert json.loads(out)["visual_tokens"] == 2 * 17


def test_without_media_the_model_is_asked_by_text(ask, monkeypatch):
    code, out, err = ask(*MODEL, "--prompt=what is it ?", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["visual_tokens"] == 0 and answer["new_tokens"] == 12
    assert answer["text"] != json.loads(ask(*CLIP, "--prompt=what is it ?", "--json")[1])["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is it ?\n"))
    assert ask(*MODEL, "--interactive")[:2] == (0, f"{answer['text']}\n")


def test_progress_leaves_the_answers_alone(ask, monkeypatch):
    monkeypatch.setattr(console, "GRACE", 0.0)
    monkeypatch.setattr(console.Waiting.__init__, "__defaults__", ("", 0.05, 0.01))
    code, out, err = ask(*CLIP, "--prompt=what is it ?", "--json")
    assert code == 0 and json.loads(out)["new_tokens"] == 12
    for said in ("reading weights: ", " GB", "compiling the prefill step", "compiling the decode step"):
        assert said in err


def test_a_conversation(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is it ?\nhow many ?\n/clear\nhow many ?\n/quit\nnever\n"))
    code, out, err = ask(*CLIP, "--interactive")
    assert code == 0, err
    monkeypatch.setattr(sys, "stdin", io.StringIO("how many ?\n"))
    alone = ask(*CLIP, "--interactive")[1]
    said = out.splitlines()
    assert out.endswith(alone) and not out.removesuffix(alone).endswith(alone)  # history changes the second answer
    assert len(said) >= 3


def test_a_conversation_that_fills_the_context_says_so(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is it ?\n" + "what " * 500 + "?\nhow many ?\n"))
    code, out, err = ask(*CLIP, "--interactive")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "max_position_embeddings" in line]
    assert "4 frames' 17 visual tokens" in line and "max_position_embeddings is 512" in line and "/clear" in line
    assert not out.endswith(line + "\n")  # it goes on


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*CLIP,), "exactly one of --prompt, --questions, --interactive; found none"),
        ((*CLIP, "--prompt=a", "--interactive"), "found --prompt and --interactive"),
        ((*CLIP, "--prompt= "), "--prompt is empty"),
        ((*MODEL, "--prompt=a", "--show=a.png"), "--show draws the frames of --video or --image"),
        ((*CLIP, "--image={}/picture.png", "--prompt=a"), "not both"),
        ((*CLIP, "--interactive", "--json"), "--interactive excludes --json"),
        (("--video={}/clip.mp4", "--prompt=a"), "--checkpoint is required"),
        (("--checkpoint={}/nothing", "--video={}/clip.mp4", "--prompt=a"), "is neither a directory that exists nor a"),
        ((*MODEL, "--video={}/text.mp4", "--prompt=a"), "--video: "),
        ((*MODEL, "--video={}/text.mp4", "--prompt=a"), "cannot be used (corrupt)"),
        ((*MODEL, "--video={}/none.mp4", "--prompt=a"), "none.mp4: no such file"),
        (
            (*MODEL, "--video={}/clips", "--prompt=a"),
            "a folder of clips, not of a clip's frames; name one of them: a.mp4",
        ),
        ((*MODEL, "--image={}/none.png", "--prompt=a"), "--image: "),
        ((*CLIP, "--prompt=" + "what " * 600), "4 frames' 17 visual tokens + "),
        ((*CLIP, "--prompt=" + "what " * 600), "max_position_embeddings is 512"),
        ((*CLIP, "--questions={}/none.txt"), "none.txt: cannot be read (FileNotFoundError)"),
        ((*CLIP, "--questions={}/empty.txt"), "empty.txt: no question in it"),
        ((*CLIP, "--questions={}/bad.json"), "entry 1 is neither a string nor"),
        ((*CLIP, "--questions={}/deep.json"), "deep.json: not JSON (nested more than 100 levels deep)"),
        ((*CLIP, "--questions={}/deep.jsonl"), "not JSON (line 1: nested more than 100 levels deep)"),
        ((*CLIP, "--prompt=a", "--temperature=-1"), "--temperature: -1.0; expected 0"),
        ((*CLIP, "--prompt=a", "--top_p=0.5"), "--top_p: 0.5 does nothing at temperature 0"),
        ((*CLIP, "--prompt=a", "--frames=0"), "frames"),
        ((*CLIP, "--prompt=a", "--show=sheet.jpg"), "ends in .png"),
        ((*CLIP, "--prompt=a", "--chat_template=no"), "no template 'no'"),
        ((*CLIP, "--prompt=a", "--dtype=int8"), "dtype"),
        ((*CLIP, "--prompt=a", "--nonsense"), "nonsense"),
        ((*CLIP, "what is it ?"), "unexpected argument"),
    ],
)
def test_bad_input(ask, arguments, message):
    code, out, err = ask(*arguments)
    assert code == 2 and not out, (out, err)
    assert message in err and len(errors_in(err)) == 1 and "Traceback" not in err


def test_the_process_ends_with_the_code(folder):
    def run(*arguments):
        environment = {**os.environ, "XLA_FLAGS": xla.flags(1), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(
            [sys.executable, "-m", "vlvm_jax.generate", f"--checkpoint={folder}/model", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    done = run(f"--video={folder}/text.mp4", "--prompt=what ?")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "text.mp4" in done.stderr and len(errors_in(done.stderr)) == 1


def test_help_helps(capsys):
    assert cli.run(generate.main, generate.__doc__ or "", ["generate", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--checkpoint", "--video", "--questions", "--interactive", "--top_p", "--show", "--json"):
        assert flag in out
