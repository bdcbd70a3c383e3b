"""Real media, and containers that hold them, for tests."""

import io

import av
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vlvm_jax.data.media import shard_record
from vlvm_jax.data.media.shard_record import StoredMedium
from vlvm_jax.data.sources import shards
from vlvm_jax.data.sources.shards import ShardInfo


def jpeg(shade: int, format: str = "JPEG") -> bytes:
    """An image of one shade of grey."""
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(file, format)
    return file.getvalue()


def clip(shades: list[int]) -> bytes:
    """An MP4 file of a second per 10 frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for shade in shades:
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def shades(file) -> list[int]:
    """Of the frames of an open clip, or of an open image."""
    try:
        with Image.open(file) as image:
            return [int(np.asarray(image.convert("L")).mean().round())]
    except OSError:
        file.seek(0)
    with av.open(file) as container:
        return [int(frame.to_ndarray(format="gray").mean().round()) for frame in container.decode(video=0)]


def write_shards(folder, parts: list[list[tuple[dict, list[StoredMedium]]]], name: str = "clips"):
    """A finished folder of shards, one for each part."""
    folder.mkdir(exist_ok=True)
    hashes, names = [], []
    for number, part in enumerate(parts):
        names.append(shards.shard_name(name, number, len(parts)))
        writer = ArrayRecordWriter(str(folder / names[-1]), "group_size:1")
        for record, media in part:
            writer.write(shard_record.encode(record, media))
        writer.close()
        hashes.append(f"{number:064x}")
        kinds = [({m.kind for m in media} | {"text"}, record) for record, media in part]
        info = ShardInfo(
            settings="made by hand", records=len(part), sha256=hashes[-1], bytes=(folder / names[-1]).stat().st_size,
            kinds=tuple(next(k for k in ("video", "image", "text") if k in found) for found, _ in kinds),
            types=tuple(tuple(record.get("types", ())) for record, _ in part),
            ids=tuple(record["id"] for record, _ in part),
        )  # fmt: skip
        (folder / shards.info_name(names[-1])).write_text(shards.to_json(info))
    manifest = shards.Manifest(name, tuple(names), sum(map(len, parts)), {}, shards.combined(hashes))
    (folder / shards.MANIFEST).write_text(shards.to_json(manifest))
    return folder
