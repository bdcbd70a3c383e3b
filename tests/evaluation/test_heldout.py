"""Accuracy by type, the majority control, and that teacher-forced rightness is greedy decoding's."""

import jax
import jax.numpy as jnp
import numpy as np
from support.recipes import small

from vlvm_jax.config import MeshConfig
from vlvm_jax.data.record import Record, Turn
from vlvm_jax.data.sample import loader as loader_lib
from vlvm_jax.data.sample import turns
from vlvm_jax.data.sources import mixture
from vlvm_jax.evaluation import heldout
from vlvm_jax.models.batch import Batch, next_tokens
from vlvm_jax.models.params import Model
from vlvm_jax.parallel.mesh import make_mesh
from vlvm_jax.samples import sample_spec, with_embedded_data
from vlvm_jax.stop import StopSignal


def record(question: str, answer: str, kind: str = "color") -> Record:
    return Record("0", "test", (), (Turn(question, answer, kind),))


def test_majority_is_the_commonest_training_answer_to_the_same_words():
    trained = [record("a ?", "red"), record("a ?", "red"), record("a ?", "blue"), record("b ?", "blue")]
    asked = [record("<image>\na ?", "red"), record("a ?", "blue"), record("b ?", "blue"), record("c ?", "blue")]
    assert [a.right for a in heldout.majority_answers(asked, trained)] == [True, False, True, True]


def test_summary_by_type():
    answers = [heldout.Answered(record("a ?", "x", kind), right) for kind, right in
               (("color", True), ("color", False), ("speed", True))]  # fmt: skip
    summary = heldout.summarise(answers, {"blank_video": answers[1:]})
    assert summary["questions"] == 3
    assert summary["by_type"] == {"color": 0.5, "speed": 1.0}
    assert summary["controls"]["blank_video"] == {"accuracy": 0.5, "by_type": {"color": 0.0, "speed": 1.0}}


def test_right_means_that_greedy_decoding_gives_the_answer(embedded):
    """Asks real questions with a random model biased so that some answers are right, and decodes them for real."""
    config = with_embedded_data(small(), StopSignal())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    held_out = config.evals[0]
    asked = turns.split_turns(mixture.read_mixture(held_out.data, 0))[:24]
    model = Model(config.model)
    params = jax.jit(lambda: model.init(1))()
    spec = sample_spec(config, held_out)
    answers = heldout.ask(heldout.make_predict(config.model, mesh), params, asked, spec, held_out, mesh, workers=0)
    assert [a.record for a in answers] == asked
    loader = loader_lib.SampleLoader(asked, spec)
    for index in (0, 5, 11):
        sample = loader.load(index)
        learned = int(sample["loss_mask"].sum())
        prompt = len(sample["token_ids"]) - learned
        said = greedy(model, params, sample, prompt, learned)
        assert answers[index].right == (said == sample["token_ids"][prompt:].tolist())


def test_one_wrong_token_makes_an_answer_wrong(embedded):
    """A model that says all answers but the first token of every second one."""
    config = with_embedded_data(small(), StopSignal())
    held_out = config.evals[0]
    asked = turns.split_turns(mixture.read_mixture(held_out.data, 0))[:6]

    def predict(params, batch, record):
        learned, owner = np.array(next_tokens(batch)[1]), np.asarray(record)
        right = learned.copy()
        for number in range(1, 6, 2):
            first, *others = np.argwhere(learned & (owner == number))
            assert others
            right[tuple(first)] = False
        return learned, right, owner

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    answers = heldout.ask(predict, {}, asked, sample_spec(config, held_out), held_out, mesh, workers=0)
    assert [answer.right for answer in answers] == [True, False] * 3


def greedy(model: Model, params, sample, prompt: int, count: int) -> list[int]:
    ids = sample["token_ids"].copy()
    for position in range(prompt, prompt + count):
        ids[position:] = 0
        length = len(ids)
        batch = Batch(
            frames=sample["frames"][None], media=sample["media"][None], is_video=sample["is_video"][None],
            token_ids=ids[None], media_mask=sample["media_mask"][None],
            positions=np.arange(length, dtype=np.int32)[None], segment_ids=np.ones((1, length), np.int32),
            loss_mask=np.zeros((1, length), bool),
        )  # fmt: skip
        bound = model.bind(params)
        hidden, _ = bound(jax.tree.map(jnp.asarray, batch))
        ids[position] = int(jnp.argmax(bound.decoder.logits(hidden[0, position - 1])))
    return ids[prompt : prompt + count].tolist()
