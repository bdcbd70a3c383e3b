"""Draw how diverse the instructions of several sources are: one point per sample, one colour per source.

usage: python -m vlvm_jax.data diversity --data=SOURCE --data=SOURCE ... --out=FILE.png [flags]

Needs the extra `diversity`.

Exit codes: 0 done, 2 bad input (one line says what), 1 an internal error.
"""

from absl import flags

from vlvm_jax import storage
from vlvm_jax.commands import _shared
from vlvm_jax.errors import InputError

_DATA = flags.DEFINE_multi_string(
    "data", [], "A source (docs/your_data.md); the first question of each sample is taken."
)
_OUT = flags.DEFINE_string("out", None, "PNG file to draw. The points are written to a CSV file beside it.")
_SAMPLES = flags.DEFINE_integer("samples", 5000, "Most samples of each source, drawn by the seed.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draw and the projection.", lower_bound=0)
_EMBED = flags.DEFINE_enum(
    "embed",
    "auto",
    ["auto", "sentence", "tfidf"],
    "How questions are embedded: by a sentence-transformers model, by TF-IDF, or by the first that is installed.",
)
_MODEL = flags.DEFINE_string("model", "all-mpnet-base-v2", "The sentence-transformers model.")
_PROJECT = flags.DEFINE_enum(
    "project", "tsne", ["tsne", "umap"], "The projection: t-SNE of scikit-learn, or UMAP of umap-learn."
)
_MEDIA_ROOT = _shared.define_media_root()
_FORMAT = _shared.define_format()


def main(arguments: list[str]) -> None:
    if arguments or not _DATA.value or not _OUT.value:
        raise InputError("expected `diversity --data=SOURCE --out=FILE.png`; see --help")
    storage.check_output(_OUT.value, "--out", folder=False)
    from vlvm_jax.console import say
    from vlvm_jax.data.tools import diversity, prepare

    names = diversity.short_names(_DATA.value)
    seed = _SEED.value
    questions = {
        name: diversity.questions(prepare.open_records([path], _MEDIA_ROOT.value, _FORMAT.value), _SAMPLES.value, seed)
        for name, path in zip(names, _DATA.value, strict=True)
    }
    texts = [text for of_source in questions.values() for text in of_source]
    how, vectors = diversity.embed(texts, _EMBED.value, _MODEL.value)
    say(f"{len(texts)} instructions of {len(questions)} sources, embedded by {how}, projected by {_PROJECT.value}")
    points = diversity.project(vectors, _PROJECT.value, seed)
    picture = _shared.in_new_folder(_OUT.value)
    diversity.write_csv(picture.with_suffix(".csv"), questions, points)
    diversity.draw(picture, questions, points, f"{how}, {_PROJECT.value}")
    say(f"{picture}, {picture.with_suffix('.csv')}")
