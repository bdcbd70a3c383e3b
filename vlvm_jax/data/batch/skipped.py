"""What of the records could not be used, or not whole: counted where samples come in, once each."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from vlvm_jax import jsonl
from vlvm_jax.data.record import Record
from vlvm_jax.data.sample.assemble import Sample
from vlvm_jax.errors import InputError
from vlvm_jax.printing import one_line
from vlvm_jax.storage import StorageError


class SkipLog:
    """Counts the records that could not be used, once each, and fails the run when they are too many.

    Args:
      records: of the stage; `max_share` of them may be unusable.
      path: JSON-lines file `skipped*.jsonl` of this process that lists them; what such files in its folder list of
        this stage already counts.
      processes: how many write such files at the same time.
      fetch: brings into the folder what the others have written, where they write elsewhere.
    """

    def __init__(
        self,
        records: Sequence[Record],
        max_share: float,
        path: Path | None = None,
        stage: str = "",
        processes: int = 1,
        fetch: Callable[[], None] = lambda: None,
    ):
        self.records, self.path, self.stage, self.fetch = records, path, stage, fetch
        self.max_share, self.limit, self.processes = max_share, max_share * len(records), processes
        self.causes: dict[int, str] = {}
        self.cut_prompts: set[int] = set()  # records whose question was too long for the tower that scores by it
        self._read_lists()

    def _read_lists(self) -> None:
        """Takes note of what this and other processes, now or in earlier runs, have listed of this stage."""
        self.fetch()
        for path in self.path.parent.glob("skipped*.jsonl") if self.path is not None else ():
            for entry in jsonl.read(path):
                if entry["stage"] == self.stage:
                    self.causes[entry["record"]] = entry["cause"]

    def usable(self, sample: Sample) -> bool:
        """False for an empty sample, which is noted.

        Raises:
          InputError: more than `max_share` of the records are unusable; or as loading the sample raised it.
          StorageError: storage failed while the sample was loaded.
        """
        if not len(sample["bad"]):
            self._note_prompt(sample)
            return True
        note = json.loads(sample["bad"].tobytes())
        if "raises" in note:
            raise (StorageError if note["raises"] == StorageError.__name__ else InputError)(note["detail"])
        if note["record"] not in self.causes:
            self.causes[note["record"]] = note["cause"]
            if self.path is not None:
                jsonl.append(self.path, {"stage": self.stage, **note})
            self._check(note)
        return False

    def _note_prompt(self, sample: Sample) -> None:
        """Counts the questions that CLIP reads only the beginning of, and says so at the first."""
        if not len(sample.get("prompt_cut", ())):
            return
        record = int(sample["record"][0])
        if not self.cut_prompts:
            logging.warning(
                "%s: prompt over CLIP's length of %d tokens: truncated (others are counted)",
                one_line(self.records[record].source),
                len(sample["prompt_ids"]),
            )
        self.cut_prompts.add(record)

    def _check(self, note: dict[str, Any]) -> None:
        if self.processes > 1 and len(self.causes) * self.processes > self.limit:  # never before all have too many
            self._read_lists()
        bad = len(self.causes)
        if bad > self.limit:
            raise InputError(
                f"{bad} of {len(self.records)} samples of stage {self.stage!r} cannot be used, more than "
                f"config.data.max_bad_share = {self.max_share:g} allows; the last: {note['cause']}: {note['detail']}"
            )

    def summary(self) -> dict[str, int]:
        """Number of unusable records by cause, of all processes."""
        self._read_lists()
        return dict(Counter(self.causes.values()))
