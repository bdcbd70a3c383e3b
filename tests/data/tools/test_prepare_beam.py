"""The pipeline makes the very shards that processes make."""

from typing import Any

import pytest
from support import user_folder
from test_prepare import contents, marks, run

from vlvm_jax.data.sources import shards
from vlvm_jax.data.tools import prepare, prepare_beam
from vlvm_jax.data.tools.prepare import Job
from vlvm_jax.data.tools.reencode import Target
from vlvm_jax.errors import InputError


@pytest.mark.parametrize("target", [Target(), Target(24, 4)], ids=["as they are", "smaller"])
def test_the_same_shards(tmp_path, target):
    source = str(user_folder.good(tmp_path / "mine"))
    run(Job((source,), str(tmp_path / "processes"), "x", shards=4, target=target), workers=2)
    plan = prepare.make_plan(Job((source,), str(tmp_path / "beam"), "x", shards=4, target=target))
    prepare_beam.run_beam(plan, "DirectRunner", [])
    prepare.finish(plan, 0.0)
    assert contents(tmp_path / "beam") == contents(tmp_path / "processes")


def test_a_rerun_makes_only_what_is_missing(tmp_path):
    source, out = str(user_folder.good(tmp_path / "mine")), tmp_path / "out"
    plan = prepare.make_plan(Job((source,), str(out), "x", shards=4))
    prepare.write_shard(plan, 2)
    before = marks(out)
    prepare_beam.run_beam(plan, "DirectRunner", ["--direct_num_workers=2", "--direct_running_mode=multi_threading"])
    assert len(marks(out)) == 4 and marks(out)[shards.shard_name("x", 2, 4)] == before[shards.shard_name("x", 2, 4)]


@pytest.mark.parametrize(
    ("runner", "flags", "why"),
    [
        ("NoSuchRunner", [], "Unexpected pipeline runner: NoSuchRunner"),
        ("DirectRunner", ["--direct_num_workers=many"], "argument --direct_num_workers: invalid int value: 'many'"),
    ],
    ids=["runner", "flag"],
)
def test_what_beam_refuses_is_said_in_one_line(capsys, runner, flags, why):
    """Before the plan is looked at."""
    plan: Any = None
    with pytest.raises(InputError) as raised:
        prepare_beam.run_beam(plan, runner, flags)
    assert str(raised.value).startswith(f"--runner={runner}: Beam refuses it or its flags ({why}")
    assert "\n" not in str(raised.value) and not capsys.readouterr().err
