"""How fast a stage goes, and how much of the time it takes is training.

FLOPs are the model's (`flops.StepFlops.needed`): matrix products of tower, adapter and decoder, forward and backward,
attention in full, the head over learned tokens; what rematerialisation runs again does not count. MFU holds them
against the chip's published dense bf16 peak.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from vlvm_jax import jsonl
from vlvm_jax.parallel.topology import peak_flops
from vlvm_jax.storage import Logs
from vlvm_jax.training.flops import StepFlops
from vlvm_jax.training.metrics import MetricsWriter
from vlvm_jax.training.profiling import Profiler


@dataclasses.dataclass
class Throughput:
    """Rates over the steps between two readings. The first reading holds the compilation and gives none.

    Attributes:
      flops: of a step over the whole batch; None where there is no peak to hold them against.
      positions: of a whole batch.
      waited: seconds that the loop has waited for data since the last reading.
      productive: seconds spent in steps so far, data waits taken off.
    """

    flops: StepFlops | None
    positions: int
    waited: float = 0.0
    productive: float = 0.0
    _last: float | None = None

    def read(self, steps: int, samples: float, tokens: float, learned: float) -> dict[str, float]:
        """Rates of the `steps` since the last reading, by their names in `metrics.jsonl`; {} at the first one.

        Args:
          samples, tokens, learned: of all these steps.
        """
        now = time.monotonic()
        last, waited = self._last, self.waited
        self._last, self.waited = now, 0.0
        if last is None or now <= last:
            return {}
        seconds, chips = now - last, jax.device_count()
        self.productive += seconds - min(waited, seconds)
        rates = {
            "step_seconds": seconds / steps,
            "samples_per_second": samples / seconds,
            "tokens_per_second_per_chip": tokens / seconds / chips,
            "data_wait": min(waited / seconds, 1.0),
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if self.flops is not None and peak is not None:
            flops = self.flops.needed(learned / steps / self.positions)
            rates["tflops_per_chip"] = flops * steps / seconds / chips / 1e12
            rates["mfu"] = rates["tflops_per_chip"] * 1e12 / peak
        if stats := jax.local_devices()[0].memory_stats():
            rates["device_memory_gib"] = stats["peak_bytes_in_use"] / 2**30
        return rates

    def resume(self) -> None:
        """Leaves out what has passed since the last reading: it was no training (a save, say)."""
        self._last, self.waited = time.monotonic(), 0.0


def brief(rates: dict[str, float]) -> str:
    """For the progress line."""
    if not rates:
        return ""
    words = [f"{rates['samples_per_second']:,.1f} samples/s", f"data wait {rates['data_wait']:.0%}"]
    if "mfu" in rates:
        words.append(f"MFU {rates['mfu']:.1%}")
    return "  ".join(words)


class Timeline:
    """Goodput: seconds of training that count, over seconds that processes ran.

    Appends to `timeline.jsonl` when a process starts, when a stage has trained some steps, and when the process ends.
    Steps that a crash undid and a later process did again count once; time between processes does not count at all.
    """

    def __init__(self, folder: Path, *, write: bool = True):
        self.path = folder / "timeline.jsonl"
        self._write = write
        self.add("start")

    def add(self, event: str, **values: Any) -> None:
        if self._write:
            jsonl.append(self.path, {"event": event, "time": time.time(), **values})

    def goodput(self) -> dict[str, float]:
        """`productive` and `wall` seconds over all processes that worked in the folder, and their ratio."""
        wall, start, last, done = 0.0, None, 0.0, {}
        for entry in jsonl.read(self.path):
            if entry["event"] == "start":
                wall += 0.0 if start is None else last - start
                start = entry["time"]
            last = entry["time"]
            if entry["event"] == "steps":
                # What an earlier process did after the step that this one continued from is lost.
                done = {
                    key: seconds
                    for key, seconds in done.items()
                    if key[0] != entry["stage"] or key[1] <= entry["first"]
                }
                done[entry["stage"], entry["last"]] = entry["productive"]
        wall += 0.0 if start is None else last - start
        productive = sum(done.values())
        return {"productive": productive, "wall": wall, "goodput": productive / wall if wall else 0.0}


@dataclasses.dataclass
class Watch:
    """What looks on while stages train; all of it writes into `logs`."""

    logs: Logs
    metrics: MetricsWriter
    timeline: Timeline
    profiler: Profiler
