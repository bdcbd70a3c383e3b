"""Command lines that cannot be: one line on stderr, exit code 2, nothing done before it."""

import pytest
from support.recipes import ROOT

RECIPE = f"--config={ROOT}/configs/ftfv.py:tiny"
ASK = ("--checkpoint=model", "--video=clip.mp4", "--prompt=a")
EVALUATE = ("--checkpoint=model", "--questions=notes.jsonl", "--output=out")
CONFIGS = {
    "raising.py": "def get_config(arg=None):\n    raise RuntimeError('no')\n",
    "key.py": "def get_config(arg=None):\n    return {}['a']\n",
    "syntax.py": "\ndef get_config(:\n",
    "nothing.py": "x = 1\n",
    "none.py": "def get_config(arg=None):\n    return None\n",
    "number.py": "def get_config(arg=None):\n    return 3\n",
    "importing.py": "import nothing_here\n",
    "no_argument.py": "def get_config():\n    return None\n",
    "exiting.py": "import sys\nsys.exit(3)\n",
}
CASES = {
    "train": [
        (["--config=gone.py"], "--config=gone.py: no such file"),
        (["--config="], "--config=: no such file"),
        (["--config=no_recipe"], "--config=no_recipe: no such file; give a file, or one of base, free_video_llm, ftfv"),
        (["--config=ftfv:huge"], "--config: no preset 'huge'; there are tiny"),
        (["--config=ftfv:tiny", "--config.nothing=1"], "--config.nothing: the config has no such key"),
        (["--config=free_video_llm:tiny,stages=image"], "--config: unknown key 'stages' in 'stages=image'"),
        (["--config=free_video_llm:tiny,base=model"], "--config: base has no effect on tiny, which takes budget"),
        (["--config=free_video_llm", "--config.data.prompt_length=13"], "config.data.prompt_length: 13, but the text"),
        (["--config=folder"], "--config=folder: Is a directory"),
        (["--config=raising.py"], "--config=raising.py, line 2: RuntimeError: no"),
        (["--config=key.py"], "--config=key.py, line 2: KeyError: 'a'"),
        (["--config=syntax.py"], "--config=syntax.py, line 2: SyntaxError"),
        (["--config=nothing.py"], "--config=nothing.py: has no get_config()"),
        (["--config=none.py"], "--config=none.py: its get_config() returned nothing"),
        (["--config=number.py"], "--config=number.py: its get_config() returned a int"),
        (["--config=importing.py"], "--config=importing.py, line 1: ModuleNotFoundError"),
        (["--config=no_argument.py:tiny"], "--config=no_argument.py: TypeError: get_config() takes 0"),
        (["--config=exiting.py"], "--config=exiting.py, line 2: SystemExit: 3"),
        ([f"{RECIPE},scale=1e30"], "--config: scale=1e+30 is not above 0"),
        ([f"{RECIPE},scale=-1"], "--config: scale=-1.0 is not above 0"),
        ([f"{RECIPE},scale=nan"], "--config: scale=nan is not above 0"),
        ([f"{RECIPE},seed=-5"], "--config: seed=-5 is not in [0, 2**32)"),
        ([RECIPE, "--config.seed=-5"], "config.seed: Input should be greater than or equal to 0"),
        ([RECIPE, "--config.stages[9].steps=3"], "--config.stages[9].steps: the config has no such key"),
        ([RECIPE, "--config.stages[x].steps=3"], "--config.stages[x].steps: the config has no such key"),
        ([RECIPE, "--config.stages[0].steps=3000000000"], "config.stages.0.steps: Input should be less than"),
        ([RECIPE, "--config.stages[0].weight_decay=nan"], "weight_decay=nan: expected a finite number"),
        ([RECIPE, "--config.name=../x"], "config.name: expected the name of a folder"),
        ([RECIPE, "--config.data.workers=100000"], "config.data.workers: more than 1024 processes"),
        ([RECIPE, "--workdir="], "--workdir is empty"),
        ([RECIPE, "--workdir=file"], "--workdir=file: there is a file of this name"),
        ([RECIPE, "--workdir=file/x"], "--workdir=file/x: file is a file"),
        ([RECIPE, "--workdir=/proc/x"], "--workdir=/proc/x: nothing can be written there"),
        ([RECIPE, "--workdir=s3://b/x"], "--workdir=s3://b/x: expected a local folder or gs://"),
        ([RECIPE, "--workdir=gs://"], "--workdir=gs://: names no bucket"),
        ([RECIPE, "--workdir=file/\x1b[2J\n"], "--workdir=file/\\x1b[2J\\n: file is a file"),
    ],
    "generate": [
        ([*ASK, "--frames=100000000"], "flag --frames=100000000"),
        ([*ASK, "--seed=-1"], "--seed: -1 is not in [0, 2**32)"),
        ([*ASK, "--show=file/x.png"], "--show=file/x.png: file is a file"),
        ([*ASK, "--show=/proc/x.png"], "--show=/proc/x.png: nothing can be written there"),
        (["--checkpoint=model", "--questions=folder"], "--questions=folder: cannot be read"),
        (["--checkpoint=s3://a/b", "--prompt=a"], "'s3://a/b' is no place that checkpoints are read from"),
        (["--checkpoint=gs://", "--prompt=a"], "'gs://' is no place that checkpoints are read from"),
        (["--checkpoint=file", "--prompt=a"], "is neither a directory that exists nor a hub id"),
    ],
    "evaluate": [
        ([*EVALUATE[:2], "--output="], "--output is required"),
        ([*EVALUATE[:2], "--output=file"], "--output=file: there is a file of this name"),
        ([*EVALUATE[:2], "--output=s3://b/x"], "--output=s3://b/x: expected a local folder"),
        ([*EVALUATE, "--frames=100000000"], "flag --frames=100000000"),
        ([*EVALUATE, "--batch_size=4097"], "flag --batch_size=4097"),
        ([*EVALUATE, "--batch_size=0"], "flag --batch_size=0"),
    ],
    "convert": [
        (["import", "model", "file"], "DST: file: exists already"),
        (["import", "model", "folder"], "DST: folder: exists already"),
        (["import", "model", ""], "DST: : exists already"),
        (["import", "model", "/proc/x"], "DST=/proc/x: nothing can be written there"),
        (["export", "model", "file/x"], "DST=file/x: file is a file"),
        (["export", "model", "gs://b/x"], "DST: gs://b/x: an export is written to a local folder"),
    ],
    "compile": [
        ([RECIPE, "--topology=v5e-8", "--json=folder"], "--json=folder: there is a folder of this name"),
        ([RECIPE, "--topology=v5e-8", "--json="], "--json is empty"),
        ([RECIPE, "--topology=zz"], "zz"),
    ],
    "data": [
        (["check", "notes.jsonl", "--json=folder"], "--json=folder: there is a folder of this name"),
        (["check", "notes.jsonl", "--picture=file/x.png"], "--picture=file/x.png: file is a file"),
        (["check", "notes.jsonl", "--workers=100000000"], "flag --workers=100000000"),
        (["check", "notes.jsonl", "--config=raising.py"], "--config=raising.py, line 2: RuntimeError"),
        (["prepare", "notes.jsonl", "--output=file"], "--output=file: there is a file of this name"),
        (["prepare", "notes.jsonl", "--output=o", "--name=[/x]"], "--name=[/x]: expected the beginning of a file's"),
        (["check", "notes.jsonl", "--max_bad_share=nan"], "--max_bad_share=nan: expected a finite number"),
        (["prepare", "notes.jsonl", "--output=o", "--shard_mb=nan"], "--shard_mb=nan: expected a finite number"),
        (["prepare", "notes.jsonl", "--output=/"], "--output=/: the root of all folders"),
        (["verify", "/"], "expected `verify DIR`"),
        (["verify", ""], "expected `verify DIR`"),
        (["synthesize", "--source=notes.jsonl", "--out=/proc/x"], "--out=/proc/x: nothing can be written there"),
        (["diversity", "--data=notes.jsonl", "--out=folder"], "--out=folder: there is a folder of this name"),
    ],
}


@pytest.fixture(scope="module", autouse=True)
def configs(place):
    for name, text in CONFIGS.items():
        (place / name).write_text(text)


@pytest.mark.parametrize("module", CASES)
def test_one_line_says_what_is_wrong(command, place, module):
    before = sorted(path.name for path in place.iterdir())
    wrong = []
    for arguments, said in CASES[module]:
        result = command(f"vlvm_jax.{module}", arguments, place, 120)
        line = "\n".join(line for line in result.err.splitlines() if line != "starting ...")  # said where it takes long
        if result.fault([2]) or said not in line or line.count("\n"):
            wrong.append(f"{arguments}: {result.fault([2]) or line}")
    assert not wrong, "\n".join(wrong)
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


def test_an_answer_longer_than_the_context_is_refused(command, place):
    result = command("vlvm_jax.generate", ["--checkpoint=model", "--prompt=a", "--max_new_tokens=9999"], place, 300)
    assert "max_new_tokens: 9999, but the model's context (max_position_embeddings) has 512 tokens" in result.err
    assert not result.fault([2])
