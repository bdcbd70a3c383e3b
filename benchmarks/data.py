"""Decoding for training: frames per second and per core, seconds to the first batch, memory, time spent waiting.

usage: python benchmarks/data.py [--folder DIR] [--rounds N] [--minutes M] [--step SECONDS] [--sizes 720p ...]
                                 [--emulator] [--prepared]

Clips of 10 s (one with a keyframe every 8 s, as x264 sets them by default, one with a keyframe every 2 s, as sites
encode) and of an hour are made once in the folder. 8 frames of each go through two workers to squares of 336 pixels:

- `ours`: `vlvm_jax.data.media.frames.read_clip` in workers by `vlvm_jax.data.batch.loading`, as the pipeline has them;
- `torch`: a DataLoader whose workers decode the whole clip with PyAV and pick 8 frames, as LLaVA-NeXT's loader does
  (which also keeps all frames until then), then resize and normalise with torch as the CLIP image processor does;
- `torchcodec`: a DataLoader with torchcodec's decoder asked for the 8 frames, the rest alike. Only if it is installed;
  it needs FFmpeg's shared libraries;
- `ours, emulator`: ours, of the same files in a bucket of the emulator that the tests use (`--emulator`), which runs on
  the same cores.

Contenders take turns, round after round, so that each ratio compares neighbours in time; the numbers are medians. CPU
seconds are the workers' own and suffer less from a busy machine than the time on the clock. The clip of an hour is read
once a round, without workers.

`--prepared`, instead of all that, reads the clips as they are and as `data prepare` re-encodes them, without workers,
and says how large they are.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import grain
import numpy as np
from PIL import Image

from vlvm_jax import storage
from vlvm_jax.data.batch.loading import loaded
from vlvm_jax.data.batch.tuning import Loading
from vlvm_jax.data.media import frames as video
from vlvm_jax.data.media.frame_rules import uniform_indices
from vlvm_jax.data.tools import reencode
from vlvm_jax.data.tools.reencode import Target

COUNT, SIDE, WORKERS, BATCH = 8, 336, 2, 4
SETTLING = 2 * WORKERS * BATCH  # clips, more than workers hold ready
SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
LOADING = Loading(workers=WORKERS, threads=1, samples=BATCH, batches=1)  # as planned for frames of this size
Cost = tuple[float, int]  # CPU seconds, frames
EMULATED = "ours, emulator"


# --- clips -------------------------------------------------------------------------------------------------------


def make_clip(path: Path, size: tuple[int, int], frames: int, gop: int, *, distinct: int, **options: str) -> Path:
    """A texture that moves under a square that moves the other way; it repeats after `distinct` frames."""
    if path.exists():
        return path
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((width + 320, height + 320), Image.Resampling.BICUBIC))
    shown = []
    part = path.with_suffix(".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(frames):
            if number < distinct:
                x, y = int(150 + 140 * np.sin(number / 37)), int(150 + 140 * np.cos(number / 23))
                pixels = texture[y : y + height, x : x + width].copy()
                left = 7 * number % (width - width // 8)
                pixels[height // 3 : height // 2, left : left + width // 8] = (number % 256, 99, 255 - number % 256)
                shown.append(av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p"))
            frame = shown[number % distinct]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    part.rename(path)
    return path


def make_clips(folder: Path, sizes: list[str]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    clips = {}
    for name in sizes:
        for gop in (250, 60):
            path = folder / f"{name}-{gop}.mp4"
            clips[f"{name}, 10 s, a keyframe every {gop / 30:.0f} s"] = make_clip(
                path, SIZES[name], 300, gop, distinct=300, preset="medium", crf="25"
            )
    path = folder / "hour.mp4"
    clips["360p, an hour"] = make_clip(path, SIZES["360p"], 108_000, 250, distinct=50, preset="ultrafast", crf="30")
    return clips


# --- contenders --------------------------------------------------------------------------------------------------


def ours(path: str) -> np.ndarray:
    return video.read_clip(path, COUNT, SIDE)


def decode_all(path: str):
    """Frames [8, 3, H, W] uint8, as LLaVA-NeXT's loader takes them."""
    import torch

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = set(uniform_indices(stream.frames, COUNT))
        chosen = [frame for number, frame in enumerate(container.decode(stream)) if number in wanted]
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def torchcodec_frames(path: str):
    """Frames [8, 3, H, W] uint8."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    return decoder.get_frames_at(uniform_indices(len(decoder), COUNT)).data


def clip_processor(frames):
    """What the CLIP image processor computes on tensors: shortest edge, centre square, normalised float32."""
    import torch

    short = min(frames.shape[2:])
    size = [edge * SIDE // short for edge in frames.shape[2:]]
    scaled = torch.nn.functional.interpolate(frames, size, mode="bicubic", antialias=True)
    top, left = ((edge - SIDE) // 2 for edge in size)
    square = scaled[:, :, top : top + SIDE, left : left + SIDE].float() / 255
    return (square - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def torch_peer(path: str) -> np.ndarray:
    return clip_processor(decode_all(path)).numpy()


def torchcodec_peer(path: str) -> np.ndarray:
    return clip_processor(torchcodec_frames(path)).numpy()


class Weighed:
    """A contender that tells what it took, in a worker."""

    def __init__(self, read: Callable[[str], np.ndarray]):
        self.read = read

    def __call__(self, path: str) -> tuple[np.ndarray, Cost]:
        start = time.process_time()
        frames = self.read(path)
        return frames, (time.process_time() - start, len(frames))


class Listed:
    """Paths as a torch data set."""

    def __init__(self, paths: list[str], read: Callable):
        self.paths, self.read = paths, Weighed(read)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        return self.read(self.paths[index])


def load(read: Callable, paths: list[str]) -> Any:
    """An iterator over the samples of paths, from two workers: frames and `Cost`."""
    if read is ours:
        return iter(loaded(grain.MapDataset.source(paths).map(Weighed(read)), LOADING, BATCH))
    from torch.utils.data import DataLoader

    listed: Any = Listed(paths, read)
    return iter(DataLoader(listed, batch_size=None, num_workers=WORKERS, prefetch_factor=BATCH))


# --- measurements ------------------------------------------------------------------------------------------------


def measure(read: Callable, path: str, clips: int) -> dict[str, float]:
    """One run over a clip, `clips` times once both workers are at work, with as much waiting after as before."""
    start = time.perf_counter()
    samples = load(read, [path] * (clips + 2 * SETTLING))
    for number in range(SETTLING):
        next(samples)
        if number == BATCH - 1:
            first = time.perf_counter() - start
    start = time.perf_counter()
    costs = [next(samples)[1] for _ in range(clips)]
    wall = time.perf_counter() - start
    stop(samples)
    cpu, frames = (sum(column) for column in zip(*costs, strict=True))
    return {"frames per second": frames / wall, "frames per CPU second": frames / cpu, "first batch, s": first}


def stop(samples: Any) -> None:
    """Ends the workers."""
    if hasattr(samples, "close"):
        samples.close()
    else:
        samples._shutdown_workers()  # torch has no other name for it


def measure_once(read: Callable, path: str) -> dict[str, float]:
    """One clip, here."""
    start = time.perf_counter()
    _, (cpu, frames) = Weighed(read)(path)
    return {"frames per second": frames / (time.perf_counter() - start), "frames per CPU second": frames / cpu}


@contextlib.contextmanager
def emulator(clips: dict[str, Path]):
    """A bucket with the clips; its URI."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from support import gcs  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder, gcs.serve(Path(folder)) as bucket:
        os.environ.update(bucket.environment)
        for path in clips.values():
            storage.write_bytes(f"{bucket.root}/{path.name}", path.read_bytes())
        yield bucket.root


def compare(
    contenders: dict[str, Callable], clips: dict[str, Path], rounds: int, number: int, bucket: str | None
) -> None:
    for name, local in clips.items():
        results: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
        for _ in range(rounds):
            for contender, read in contenders.items():
                path = f"{bucket}/{local.name}" if contender == EMULATED else str(local)
                measured = measure_once(read, path) if name.endswith("hour") else measure(read, path, number)
                results[contender].append(measured)
        print(f"\n{name}")
        for contender, runs in results.items():
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            said = [f"{key} {value:.3g}" for key, value in medians.items()]
            for key in ("frames per second", "frames per CPU second"):
                ratios = [ours[key] / run[key] for ours, run in zip(results["ours"], runs, strict=True)]
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                said += [f"ours / it by {key}: {spread}"] if contender != "ours" else []
            print(f"  {contender}: " + "; ".join(said), flush=True)


def compare_prepared(clips: dict[str, Path], rounds: int) -> None:
    targets = {"as it is": None, "--size=360": Target(360), "--size=360 --fps=8": Target(360, 8.0)}
    for name, local in clips.items():
        if name.endswith("hour"):
            continue
        paths = {}
        for number, (said, target) in enumerate(targets.items()):
            paths[said] = local.with_name(f"{local.stem}-{number}.mp4") if target else local
            if target:
                paths[said].write_bytes(reencode.clip(local.read_bytes(), target, str(local)))
        spent = {said: [Weighed(ours)(str(path))[1][0] for _ in range(2)][1:] for said, path in paths.items()}
        for _ in range(rounds):
            for said, path in paths.items():
                spent[said].append(Weighed(ours)(str(path))[1][0])
        print(f"\n{name}, prepared: CPU of {COUNT} frames, size")
        for said, path in paths.items():
            ratios = [before / after for before, after in zip(spent["as it is"], spent[said], strict=True)]
            size = path.stat().st_size / 2**20
            print(
                f"  {said}: {1000 * statistics.median(spent[said]):.0f} ms, {size:.1f} MiB, "
                f"as it is / it {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def resident() -> float:
    """MiB that this process and those below it hold, shared arrays once; without files mapped, as libraries are."""
    pids = [os.getpid()]
    for pid in pids:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total / 1024


def endure(clips: list[Path], minutes: float, step: float) -> None:
    """Steps of a given length that take a batch each: the share of time they wait, and memory."""
    paths = [str(path) for path in clips] * 100_000
    samples = load(ours, paths)
    memory: list[tuple[float, float]] = []
    waited = steps = 0
    begin = start = time.perf_counter()
    while time.perf_counter() - begin < 60 * minutes:
        before = time.perf_counter()
        for _ in range(BATCH):
            next(samples)
        if steps:
            waited += time.perf_counter() - before
        else:
            start = time.perf_counter()
        steps += 1
        time.sleep(step)
        if not memory or time.perf_counter() - memory[-1][0] > 5:
            memory.append((time.perf_counter(), resident()))
    spent = time.perf_counter() - start
    print(f"\n{steps} steps of {step:g} s, {BATCH} clips each ({', '.join(path.stem for path in clips)})")
    print(f"  waiting for data: {waited / spent:.1%} of the time after the first batch")
    settled = [size for when, size in memory if when - begin > 0.2 * 60 * minutes]
    if len(settled) > 1:
        early, late = np.split(np.array(settled), [len(settled) // 2])
        change = late.mean() / early.mean()
        print(f"  memory: {min(settled):.0f} to {max(settled):.0f} MiB once settled; second half / first {change:.3f}")
        tenths = [part.mean() for part in np.array_split(np.array([size for _, size in memory]), 10)]
        print("  by tenths of the time: " + ", ".join(f"{size:.0f}" for size in tenths) + " MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/clips")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=16, help="clips of a run after its first batch")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--step", type=float, default=2.0, help="seconds of the steps that wait for data")
    parser.add_argument("--emulator", action="store_true")
    parser.add_argument("--prepared", action="store_true")
    args = parser.parse_args()
    clips = make_clips(Path(args.folder), args.sizes)
    contenders: dict[str, Callable] = {"ours": ours, "torch": torch_peer}
    try:
        import torchcodec  # noqa: F401  # pyright: ignore[reportMissingImports]

        contenders["torchcodec"] = torchcodec_peer
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec ({type(error).__name__})")
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if args.prepared:
        compare_prepared(clips, args.rounds)
        return
    if args.minutes:
        endure(list(clips.values()), args.minutes, args.step)
    if args.emulator:
        contenders[EMULATED] = ours
    with emulator(clips) if args.emulator else contextlib.nullcontext() as bucket:
        if args.rounds:
            compare(contenders, clips, args.rounds, args.clips, bucket)


if __name__ == "__main__":
    main()
