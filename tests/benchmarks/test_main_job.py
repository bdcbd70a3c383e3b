"""Phases of a recipe's command, found in what it prints, and the table of them."""

import json

from benchmarks.main_job import data_waits, next_phase, report

SAID = {
    "making the embedded data set (once) in /data": "data",
    "data: 100/50000  files  eta 7:32": "data",
    "opening the files of the model ...": "data",
    "align: samples are loaded by this process, on 2 threads": "align, compilation",
    "align: compiling the train step ...": "align, compilation",
    "align: running the first steps (the loss is shown every 10) ...": "align, steps",
    "align: 9/40  loss 0.0001  eta 0:44": "align, steps",
    "eval videos: compiling the evaluation step ...": "evaluation",
    "eval videos: 32/168  questions  eta 0:14": "evaluation",
}


def test_a_line_begins_a_phase_or_none():
    phase = "start"
    for line, expected in SAID.items():
        phase = next_phase(line, phase)
        assert phase == expected, line


def test_the_table(tmp_path):
    records = [{"stage": "align", "step": step, "data_wait": wait} for step, wait in ((1, 0.1), (2, 0.3))]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in [{"stage": "align", "step": 0}, *records]))
    result = {"accuracy": 0.5, "by_type": {"order": 0.25}}
    summary = {"eval": {"videos": {**result, "controls": {"majority": result}}}}
    table = report({"start": 1.0, "align, steps": 65.0}, data_waits(metrics), 2**30, summary)
    assert "| align, steps | 65 | 20% |" in table and "| all | 66 (1:06) | |" in table
    assert "largest process 1.00 GiB" in table
    assert "| asked | 0.25 | 0.50 |" in table and "| majority | 0.25 | 0.50 |" in table
