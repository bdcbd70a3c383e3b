"""How the instructions of sources spread: embedded, projected to a plane, a point a sample (docs/t2vid.md).

The released tool embeds with sentence-transformers' all-mpnet-base-v2 and projects by t-SNE, unseeded; here the draw
and the projection are seeded, and TF-IDF stands in where sentence-transformers is not installed. The picture is
qualitative.
"""

import csv
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from vlvm_jax.data.extras import need
from vlvm_jax.data.faults import BadSampleError
from vlvm_jax.data.record import PLACEHOLDERS, Record
from vlvm_jax.errors import InputError, brief
from vlvm_jax.pictures import PictureText

_WHY = "draws instructions"
_PERPLEXITY = 30.0  # scikit-learn's own; less where there are too few points for it
_TAGS = re.compile("|".join(map(re.escape, PLACEHOLDERS)))


def short_names(paths: Sequence[str]) -> list[str]:
    """Names of sources for a legend: those of their files; where these are equal, the paths."""
    names = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def questions(records: Sequence[Record], most: int, seed: int) -> list[str]:
    """The first question of each record, without placeholders; of more than `most`, this many drawn by the seed.

    Records that cannot be used are left out.
    """
    drawn = np.arange(len(records))
    if len(records) > most:
        drawn = np.sort(np.random.default_rng(seed).choice(len(records), most, replace=False))
    texts = []
    for index in drawn.tolist():
        try:
            question = records[index].turns[0].question
        except BadSampleError:
            continue
        texts.append(" ".join(_TAGS.sub(" ", question).split()))
    return texts


def embed(texts: Sequence[str], how: str, model: str) -> tuple[str, Float[np.ndarray, "n d"]]:
    """What embedded the texts, and a vector of each.

    Args:
      how: `sentence`, `tfidf`, or `auto`: sentence-transformers where it is installed.
      model: of sentence-transformers, a name or a directory.

    Raises:
      InputError: what is asked for is not installed, or the model cannot be had.
    """
    if how == "sentence" or (how == "auto" and importlib.util.find_spec("sentence_transformers")):
        package = need("sentence_transformers", "diversity", f"{_WHY}, or take --embed=tfidf")
        try:
            embeddings = package.SentenceTransformer(model).encode(list(texts), show_progress_bar=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--model={model}: {brief(error)}; or take --embed=tfidf") from None
        return model, np.asarray(embeddings, np.float32)
    vectoriser = need("sklearn.feature_extraction.text", "diversity", _WHY).TfidfVectorizer(ngram_range=(1, 2))
    try:
        weights = vectoriser.fit_transform(texts)
    except ValueError as error:  # no word in any of them
        raise InputError(f"--data: {brief(error)}") from None
    # t-SNE starts from principal components, which needs dense vectors of few dimensions.
    size = min(50, weights.shape[0] - 1, weights.shape[1] - 1)
    if size < 2:
        raise InputError(f"--data: {len(texts)} instructions of too few words; there is nothing to draw")
    reduce = need("sklearn.decomposition", "diversity", _WHY).TruncatedSVD(size, random_state=0)
    return "TF-IDF", np.asarray(reduce.fit_transform(weights), np.float32)


def project(vectors: Float[np.ndarray, "n d"], how: str, seed: int) -> Float[np.ndarray, "n 2"]:
    """The vectors in a plane, by t-SNE (from principal components, cosine distances) or UMAP.

    Raises:
      InputError: what is asked for is not installed, or there are too few vectors.
    """
    if len(vectors) < 5:
        raise InputError(f"--data: {len(vectors)} instructions; a picture needs 5 or more")
    # A text of no known word has no direction, and cosine distances need one.
    vectors = np.where(np.any(vectors, axis=1, keepdims=True), vectors, np.float32(1e-6))
    if how == "umap":
        mapper = need("umap", "diversity", f"{_WHY} by --project=umap (its package is umap-learn)")
        neighbours = min(15, len(vectors) - 1)
        return mapper.UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed).fit_transform(vectors)
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    manifold = need("sklearn.manifold", "diversity", _WHY)
    tsne = manifold.TSNE(init="pca", metric="cosine", perplexity=perplexity, random_state=seed)
    return tsne.fit_transform(vectors)


def write_csv(path: Path, by_source: Mapping[str, Sequence[str]], points: Float[np.ndarray, "n 2"]) -> None:
    """A row a point: source, x, y, instruction."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "x", "y", "instruction"])
        labelled = [(name, text) for name, texts in by_source.items() for text in texts]
        for (name, text), (x, y) in zip(labelled, points, strict=True):
            rows.writerow([name, f"{x:.4f}", f"{y:.4f}", text])


def draw(path: Path, by_source: Mapping[str, Sequence[str]], points: Float[np.ndarray, "n 2"], title: str) -> None:
    """A point a sample, a colour a source."""
    written = PictureText([*by_source, title])
    with written.fonts():
        _figure(by_source, points, title, written).savefig(path, dpi=120)


def _figure(
    by_source: Mapping[str, Sequence[str]], points: Float[np.ndarray, "n 2"], title: str, written: PictureText
) -> Figure:
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    start = 0
    for number, (name, texts) in enumerate(by_source.items()):
        part = points[start : start + len(texts)]
        label = f"{written(name, 40)} ({len(texts)})"
        axes.scatter(part[:, 0], part[:, 1], s=6, alpha=0.6, linewidths=0, color=f"C{number}", label=label)
        start += len(texts)
    axes.set(xticks=[], yticks=[], title=written(title, 80))
    axes.legend(loc="best", markerscale=3)
    return figure
