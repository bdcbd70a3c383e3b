"""Instructions in Chinese: through template, loss and training to what a model says, character by character."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from support.stored import clip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs import red_villm
from vlvm_jax import samples
from vlvm_jax.config import Config, build
from vlvm_jax.data.sample.loader import SampleLoader
from vlvm_jax.evaluation import final
from vlvm_jax.models import decoding
from vlvm_jax.models import params as params_lib
from vlvm_jax.models.batch import Batch
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.stop import StopSignal
from vlvm_jax.training import plan, stages

pytestmark = pytest.mark.slow

SAID = {  # a shade of grey, what is asked about the clip and what is answered
    20: ("视频里发生了什么?", "夜里,一个人在海边跑步。"),
    100: ("视频里发生了什么?", "下雨了:两只猫躲在车底下。"),
    180: ("天气怎么样?", "多云,有风🌥。"),
    250: ("视频里发生了什么?", "孩子们在雪地里堆雪人,很开心!"),
}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of Qwen's kind: bytes, so that most characters are several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([text for pair in SAID.values() for text in pair], trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return made, file


@pytest.fixture(scope="module")
def config(tokenizer, tmp_path_factory):
    """The recipe over a translated set laid out as docs/red_villm.md has it, with a small model of random weights."""
    made, file = tokenizer
    root = tmp_path_factory.mktemp("data")
    (root / "VideoInstruct" / "videos").mkdir(parents=True)
    records = []
    for shade, (question, answer) in SAID.items():
        (root / "VideoInstruct" / "videos" / f"v_{shade}.mp4").write_bytes(clip([shade] * 12))
        records.append({"video_id": f"v_{shade}", "q": question, "a": answer})
    text = json.dumps(records, ensure_ascii=False)
    (root / "VideoInstruct" / "VideoInstruct100K_zh.json").write_text(text, encoding="utf-8")
    recipe = red_villm.get_config(f"qwen2-7b,language=zh,train=decoder,frames=4,data={root}")
    tiny = red_villm.get_config("tiny").model
    recipe.model.update({"vision": tiny.vision, "decoder": tiny.decoder, "dtype": "float32"})
    recipe.model.vision.num_hidden_layers = recipe.model.decoder.num_hidden_layers = 1
    recipe.model.init_from = None
    recipe.model.decoder.vocab_size = made.get_vocab_size()
    recipe.model.adapter.connector.num_queries = 4
    recipe.data.update({"tokenizer": str(file), "processor": None, "chat_template": "chatml", "workers": 0})
    recipe.stages = [recipe.stages[-1]]
    recipe.stages[0].update(epochs=140, batch_size=8, length=128, loss_chunks=1)
    recipe.stages[0].trainable = ConfigDict({"**": 4e-3})
    recipe.checkpoint.save_every = 500
    recipe.tensorboard = False
    return build(Config, recipe)


@pytest.fixture(scope="module")
def loader(config):
    return SampleLoader(
        plan.prepare_stage(config, config.stages[0]).records, samples.sample_spec(config, config.stages[0])
    )


def test_only_answers_are_learned_and_every_character_of_them(tokenizer, loader):
    for index, (question, answer) in enumerate(SAID.values()):
        sample = loader.load(index)
        learned = sample["token_ids"][sample["loss_mask"]].tolist()
        assert tokenizer[0].decode(learned, skip_special_tokens=False) == f"{answer}<|im_end|>\n"
        text = sample["token_ids"][~sample["media_mask"]].tolist()
        assert f"{question}<|im_end|>" in tokenizer[0].decode(text, skip_special_tokens=False)


def test_it_says_what_it_has_learned(config, tokenizer, loader, tmp_path):
    with StopSignal() as stop:
        summary = stages.run(config, epath.Path(tmp_path) / "run", stop, final.evaluate)
    assert summary["stages"][0]["last_loss"] < 0.05
    mesh = make_mesh(config.mesh)
    abstract = jax.eval_shape(params_lib.join, Model(config.model).abstract())
    trained = stages.initial_params(config, epath.Path(tmp_path) / "run" / "video", abstract, None, mesh)
    end = tokenizer[0].token_to_id("<|im_end|>")
    model = Model(config.model)
    greedy = jax.jit(lambda params, batch: decoding.generate(model.bind(params), batch, 64, (end,)))
    for index, (_, answer) in enumerate(SAID.values()):
        tokens, count = greedy(params_lib.split(trained, {}), prompt(loader.load(index)))
        said = tokens[0, : int(count[0])].tolist()
        assert tokenizer[0].decode(said, skip_special_tokens=False) == f"{answer}<|im_end|>"


def prompt(sample) -> Batch:
    """A row with all of a sample before its answer, 96 tokens wide."""
    length = int(np.argmax(sample["loss_mask"]))
    row = np.arange(96) < length

    def fill(name):
        values = np.zeros(96, sample[name].dtype)
        values[:length] = sample[name][:length]
        return values[None]

    return Batch(
        frames=sample["frames"][None], media=sample["media"][None], is_video=sample["is_video"][None],
        token_ids=fill("token_ids"), media_mask=fill("media_mask"), positions=np.arange(96, dtype=np.int32)[None] * row,
        segment_ids=row[None].astype(np.int32), loss_mask=np.zeros((1, 96), bool),
    )  # fmt: skip
