"""A method is one file and one recipe: `methods/mean_over_time.py` and `recipe.py`, which nothing else knows."""

import json
from pathlib import Path

import jax
import pytest
from etils import epath
from support.small import DATA

from tests.adding_a_method import recipe
from vlvm_jax.config import Config, build
from vlvm_jax.errors import InputError, Interrupted
from vlvm_jax.evaluation import final
from vlvm_jax.inference.loading import load
from vlvm_jax.inference.requests import Request
from vlvm_jax.models import adapters
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import stages
from vlvm_jax.weights.export import write
from vlvm_jax.weights.export.export import Options

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture(scope="module")
def added(data_root):
    """The folder of the method is among those where adapters are found; the embedded data are the session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLVM_JAX_DATA", str(data_root))
        patch.setattr(adapters, "__path__", [*adapters.__path__, str(Path(__file__).parent / "methods")])
        yield


@pytest.fixture(scope="module")
def config(added) -> Config:
    settings = recipe.get_config("tiny,scale=0.006,stages=instruct")
    settings.data.embedded = dict(DATA)
    settings.data.workers = 0
    settings.tensorboard = False
    settings.mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    settings.checkpoint = {"save_every": 1, "keep": 2}
    stage = settings.stages[0]
    stage.steps, stage.log_every = STEPS, 1
    return build(Config, settings)


def losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("method") / "run"
    summary = stages.run(config, epath.Path(folder), StopSignal(), final.evaluate)
    assert summary["stages"][0]["compilations"] == 1 and summary["eval"]
    return folder


def test_it_is_sharded(config):
    model = Model(config.model)
    grid = make_mesh(config.mesh, jax.devices())
    placed = model.on_mesh(model.abstract(), grid)
    assert placed["adapter/frame_scale"].sharding.is_fully_replicated
    assert not placed["adapter/connector/linear_1/kernel"].sharding.is_fully_replicated


def test_it_resumes_to_equal_losses(config, run, tmp_path):
    class StopSoon(StopSignal):
        """Before the stage it is asked once, then at every step."""

        asked = 0

        def reached(self) -> bool:
            self.asked += 1
            return self.asked > 3

    with pytest.raises(Interrupted):
        stages.run(config, epath.Path(tmp_path / "run"), StopSoon(), final.evaluate)
    assert 0 < len(losses(tmp_path / "run")) < STEPS
    stages.run(config, epath.Path(tmp_path / "run"), StopSignal(), final.evaluate)
    assert losses(tmp_path / "run") == losses(run) and len(losses(run)) == STEPS


def test_it_answers(run, data_root):
    clip = next(data_root.rglob("heldout_clips/*.mp4"))
    (answer,) = load(str(run)).answer([Request("1", (("video", str(clip)),), "What color is the shape?")])
    assert answer.text is not None and answer.visual_tokens == 64


def test_without_a_pytorch_file_its_export_is_refused_by_name(run, tmp_path):
    with pytest.raises(InputError, match=r"'mean_over_time' has no PyTorch code.*add adapter_mean_over_time\.py"):
        write.export_checkpoint(str(run), tmp_path / "out", Options(verify=False))
