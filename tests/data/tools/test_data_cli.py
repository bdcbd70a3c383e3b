"""`python -m vlvm_jax.data` as a user runs it."""

import json
import subprocess
import sys

import pytest
from support import user_folder
from support.recipes import ROOT, SMALL, environment


def data(tmp_path, *arguments: str):
    command = [sys.executable, "-m", "vlvm_jax.data", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a command: check, prepare, verify, synthesize, diversity"),
        (["mend"], "no command 'mend'; there are check, prepare, verify, synthesize, diversity"),
        (["check"], "expected `check FILE...`"),
        (["check", "gone.json"], "gone.json: no such"),
        (["check", "x.json", "--size=3"], "Unknown command line flag 'size'"),
        (["check", "--config=configs/ftfv.py", "--stage=teach"], "--stage: no stage 'teach' in ftfv-tiny-S1; there"),
        (["prepare", "x.json"], "expected `prepare SOURCE... --output=DIR`"),
        (["prepare", "x.json", "--output=o", "--shards=0"], "flag --shards=0"),
        (["prepare", "x.json", "--output=o", "--", "--project=p"], "--project=p is a flag of a Beam runner"),
        (["verify"], "expected `verify DIR`"),
        (["verify", "tests"], "no manifest.json"),
        (["synthesize", "--out=o"], "expected `synthesize --source=FILE --out=DIR`"),
        (
            ["synthesize", "--source=x", "--out=o", "--format=zip"],
            "--format=zip: there are llava, array_record, triplets",
        ),
        (["synthesize", "--source=gone.json", "--out=o", "--overflow=hide"], "flags.overflow: "),
        (["synthesize", "--source=gone.json", "--out=o", "--layout_engine=basic"], "gone.json: no such file of texts"),
        (["diversity", "--out=o.png"], "expected `diversity --data=SOURCE --out=FILE.png`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(tmp_path, arguments, said):
    done = data(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_help():
    for command, said in (([], "COMMAND --help"), (["check"], "--picture"), (["prepare"], "--runner")):
        done = subprocess.run(
            [sys.executable, "-m", "vlvm_jax.data", *command, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and said in done.stdout and not done.stderr


def test_names_that_look_like_markup_or_hold_escape_sequences(tmp_path):
    source = user_folder.good(tmp_path / "[/x] \x1b[2J")
    folder = f"{tmp_path}/o[/x] \x1b]0;owned\x07"
    for arguments in (
        ["prepare", str(source), f"--output={folder}", "--workers=0"],
        ["prepare", str(source), f"--output={folder}", "--workers=0"],
        ["verify", folder],
        ["check", str(source), folder, "--workers=0", f"--json={folder}/[/y].json"],
        ["check", f"{source} \x1b"],
        ["check", f"{folder}/*\x1b"],
    ):
        done = data(tmp_path, *arguments)
        assert done.returncode == (2 if arguments[-1].endswith("\x1b") else 0), done.stderr
        assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stdout
        assert "Traceback" not in done.stderr


def test_prepare_then_verify_then_check(tmp_path):
    source = user_folder.bad(tmp_path / "mine", fill=20)
    flags = [f"--output={tmp_path}/out", "--size=24", "--workers=2", "--name=mine"]
    done = data(tmp_path, "prepare", str(source), *flags)
    assert done.returncode == 2 and "6 of 26 records cannot be used (2 bad_record, 1 corrupt" in done.stderr
    done = data(tmp_path, "prepare", str(source), *flags, "--max_bad_share=0.5")
    assert done.returncode == 0, done.stderr
    for said in ("prepare: 26/26", "1 of 1 shards were there", "dropped: no_video", "in dropped.jsonl", "sha256"):
        assert said in done.stdout
    done = data(tmp_path, "verify", f"{tmp_path}/out")
    assert done.returncode == 0 and "1 shard is whole" in done.stdout
    done = data(tmp_path, "check", f"{tmp_path}/out", "--workers=0")
    assert done.returncode == 0 and "20 of 20 records checked" in done.stdout and "usable" in done.stdout
    shard = next((tmp_path / "out").glob("*.array_record"))
    shard.write_bytes(shard.read_bytes()[::-1])
    done = data(tmp_path, "verify", f"{tmp_path}/out")
    assert done.returncode == 2 and "1 file damaged, the first mine-00000-of-00001.array_record" in done.stderr


def test_check_of_a_recipes_own_data(tmp_path, data_root):
    figures, picture = tmp_path / "new" / "found.json", tmp_path / "found.png"
    done = data(
        data_root, "check", f"--config={SMALL}", "--config.stages[3].length=60", "--limit=24",
        "--workers=0", f"--json={figures}", f"--picture={picture}",
    )  # fmt: skip
    assert done.returncode == 2 and "too_long" in done.stdout and "check: 24/24" in done.stdout
    assert "more than config.data.max_bad_share = 0.01 allows" in done.stderr.splitlines()[-1]
    found = json.loads(figures.read_text())
    assert (found["checked"], found["length"]) == (24, 60) and found["records"] > 24 > found["usable"] > 0
    assert 0 < found["visual_tokens"]["max"] < 60 < found["tokens"]["max"]
    assert picture.read_bytes().startswith(b"\x89PNG") and f"written: {picture}" in done.stdout


WEIGHTED = """
from support import small
from vlvm_jax.recipes._common import complete

def get_config(arg=None):
    config = small.get_config(arg).to_dict()
    config["stages"] = [dict(stage) for stage in config["stages"]]
    last = config["stages"][-1]
    last["data"] = [{**entry, "weight": 1.0} for entry in last["data"]]
    last["validation"] = [{"path": "{embedded}/heldout_clips.json"}]
    return complete(config)
"""


def test_check_reads_what_a_stage_is_validated_on_by_itself(tmp_path, data_root):
    """Weights are of the training data alone."""
    (tmp_path / "weighted.py").write_text(WEIGHTED)
    done = data(data_root, "check", f"--config={tmp_path}/weighted.py", "--limit=8", "--workers=0")
    assert done.returncode == 0 and "8 of " in done.stdout, done.stderr
