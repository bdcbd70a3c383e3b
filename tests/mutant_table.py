"""The faults with which `mutants.py` breaks the package, and the quick tests that have to notice each."""

import dataclasses
from pathlib import Path

PACKAGE = "vlvm_jax"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      file: in the package.
      tests: files in `tests/` that have to notice, separated by spaces.
      old, new: the text it replaces, which must occur exactly once, and what stands there instead.
    """

    name: str
    file: str
    tests: str
    old: str
    new: str

    @property
    def paths(self) -> list[str]:
        return [f"tests/{name}" for name in self.tests.split()]

    def changed(self, root: Path) -> str:
        """The file's text with the fault.

        Raises:
          ValueError: the old text does not occur exactly once.
        """
        text = (root / PACKAGE / self.file).read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {PACKAGE}/{self.file} holds {self.old!r} {count} times, expected once")
        return text.replace(self.old, self.new)


MUTANTS = (
    # --- data
    Mutant(
        "positions-run-through-packed-samples", "data/batch/packing.py", "data/batch/test_packing.py",
        'row["token_ids_positions"],', 'np.arange(len(row["token_ids"]), dtype=np.int32),',
    ),
    Mutant(
        "packed-samples-share-a-medium", "data/batch/packing.py", "data/batch/test_packing.py",
        "(segment[1:] != segment[:-1]) | (local[1:] != local[:-1])", "local[1:] != local[:-1]",
    ),
    Mutant(
        "slots-of-packed-tiles-not-moved", "data/batch/packing.py",
        "data/batch/test_packing.py data/sample/test_processor_rows.py",
        "start[segments] = first * slots", "start[segments] = first",
    ),
    Mutant(
        "last-sample-of-a-row-is-the-first", "data/batch/packing.py",
        "data/batch/test_packing.py data/batch/test_dataset.py",
        '"last": row["number"][-1]', '"last": row["number"][0]',
    ),
    Mutant(
        "slots-at-the-cap-become-midpoints", "data/media/frame_rules.py", "data/media/test_frame_rules.py",
        "if slots > cap:", "if slots >= cap:",
    ),
    Mutant(
        "a-frame-shown-just-now-is-not-shown", "data/media/cursor.py", "data/media/test_decode_frames.py",
        "self._next.time <= target:", "self._next.time < target:",
    ),
    Mutant(
        "a-wanted-frame-that-was-skipped-is-not-missed", "data/media/cursor.py",
        "data/media/test_decode_frames.py",
        "if any(self._current.time < time <= target for time in self._skipped):", "if target < 0:",
    ),
    Mutant(
        "span-begins-a-frame-late", "data/media/decode.py", "data/media/test_clips.py data/media/test_decode_frames.py",
        "return max(0, first - 1), last", "return first, last",
    ),
    Mutant(
        "times-count-from-the-clip-not-the-span", "data/media/frames.py",
        "data/media/test_clips.py data/prompt/test_time_instruction.py",
        "max(0.0, time - start) for time in taken.times", "max(0.0, time) for time in taken.times",
    ),
    Mutant(
        "decoded-cache-without-bound", "data/media/cache.py", "data/media/test_cache.py",
        "self.held += value.nbytes", "self.held = value.nbytes",
    ),
    Mutant(
        "decoded-cache-ignores-span-and-seed", "data/sample/loader.py", "data/sample/test_sampled_frames.py",
        "self._cache.get((path, *chosen.values()), read)", "self._cache.get((path,), read)",
    ),
    Mutant(
        "every-clip-is-shuffled-alike", "data/sample/loader.py", "data/sample/test_evaluation_samples.py",
        "np.random.default_rng([index, 1]).permutation", "np.random.default_rng([1]).permutation",
    ),
    Mutant(
        "segments-drawn-alike-for-all-records", "data/sample/loader.py",
        "data/sample/test_sampled_frames.py data/batch/test_dataset.py",
        "None if spec.seed is None else (spec.seed, index)", "None if spec.seed is None else (spec.seed,)",
    ),
    Mutant(
        "media-in-file-order-not-text-order", "data/sample/assemble.py", "data/sample/test_media.py",
        "media = [media[i] for i in tokens.order]", "media = list(media)",
    ),
    Mutant(
        "placeholders-expanded-in-text-order", "data/prompt/conversation.py",
        "data/prompt/test_conversation.py data/prompt/test_checkpoint_template.py",
        "expansion = expansions[marker.medium]", "expansion = expansions[len(ends) - 1]",
    ),
    Mutant(
        "the-token-before-an-answer-is-learned", "data/prompt/conversation.py", "data/prompt/test_conversation.py",
        "any(start < b and a < stop for a, b in answers)", "any(start < b and a <= stop for a, b in answers)",
    ),
    Mutant(
        "a-span-has-no-end", "data/record.py", "data/test_record.py",
        'return (bounds["start"], bounds["end"]) if given', 'return (bounds["start"], math.inf) if given',
    ),
    Mutant(
        "placeholders-by-kind-swapped", "data/record.py", "data/test_record.py",
        'queues["image" if placeholder == "<image>" else "video"]', "queues[MEDIA_KINDS[len(shown) % 2]]",
    ),
    Mutant(
        "keyed-options-count-from-zero", "data/sources/options.py", "evaluation/test_option_layouts.py",
        "for number in range(1, len(written) + 1)) if from_one", "for number in range(len(written))) if from_one",
    ),
    Mutant(
        "weights-shorten-the-epoch", "data/sources/mixture.py", "data/sources/test_sources.py",
        "once = max(len(part.chosen) / weight", "once = min(len(part.chosen) / weight",
    ),
    Mutant(
        "another-number-of-readers-repeats-a-sample", "data/batch/stream.py", "data/batch/test_stream.py",
        "for position in self.ahead if position > start", "for position in self.ahead if position >= start + 2",
    ),
    Mutant(
        "a-batch-is-counted-without-its-last-sample", "data/batch/stream.py",
        "data/batch/test_stream.py data/batch/test_dataset.py",
        'int(batch["last"].max()) + 1', 'int(batch["last"].max())',
    ),
    Mutant(
        "a-state-within-a-block-begins-the-block", "data/batch/loading.py", "data/batch/test_loading.py",
        "self._receive(number)[skip:]", "self._receive(number)",
    ),
    Mutant(
        "the-allowed-share-of-bad-samples-is-too-many", "data/batch/skipped.py", "data/batch/test_dataset.py",
        "if bad > self.limit:", "if bad >= self.limit:",
    ),
    Mutant(
        "bad-samples-of-other-stages-count", "data/batch/skipped.py", "data/batch/test_dataset.py",
        'if entry["stage"] == self.stage:', "if entry:",
    ),
    # --- models
    Mutant(
        "padding-is-attended-to", "models/attention.py", "models/test_attention.py",
        "== key_segments[:, None, :]) & (key_segments[:, None, :] > 0)", "== key_segments[:, None, :])",
    ),
    Mutant(
        "attention-logits-in-bfloat16", "models/attention.py", "models/test_attention.py",
        "of_group, key.astype(query.dtype), preferred_element_type=jnp.float32)", "of_group, key.astype(query.dtype))",
    ),
    Mutant(
        "attention-received-by-the-wrong-axis", "models/attention.py", "models/test_attention.py models/test_vision.py",
        "jax.nn.softmax(logits, axis=-1).mean(axis=(1, 2))", "jax.nn.softmax(logits, axis=2).mean(axis=(1, 2))",
    ),
    Mutant(
        "llama3-rope-factors-swapped", "models/decoder.py", "models/test_decoder.py",
        "low, high = scaling.low_freq_factor, scaling.high_freq_factor",
        "high, low = scaling.low_freq_factor, scaling.high_freq_factor",
    ),
    Mutant(
        "rope-in-the-dtype-of-the-computation", "models/decoder.py", "models/test_decoder.py",
        "(x.astype(jnp.float32) * cos + rotated * sin).astype(x.dtype)",
        "x * cos.astype(x.dtype) + rotated.astype(x.dtype) * sin.astype(x.dtype)",
    ),
    Mutant(
        "logits-in-bfloat16", "models/decoder.py", "models/test_decoder.py",
        "jnp.dot(hidden, self.head(), preferred_element_type=jnp.float32)",
        "jnp.dot(hidden, self.head()).astype(jnp.float32)",
    ),
    Mutant(
        "lora-without-its-scale", "models/layers.py", "models/test_lora.py",
        "outputs += self.lora_scale * (rows @ a) @ b", "outputs += (rows @ a) @ b",
    ),
    Mutant(
        "all-layers-write-the-first-cache", "models/stack.py", "models/test_decoder.py",
        "jnp.arange(low, high)", "jnp.arange(high - low)",
    ),
    Mutant(
        "frame-index-along-the-row", "models/adapters/base.py",
        "models/adapters/test_weighted_sampler.py models/adapters/test_spatiotemporal.py",
        "return steps - jax.lax.cummax(jnp.where(starts, steps, 0), axis=1)",
        "return jnp.broadcast_to(steps, starts.shape)",
    ),
    Mutant(
        "newline-after-the-first-frame", "models/adapters/frames.py", "models/adapters/test_frames.py",
        "following = jnp.pad(layout.media[:, 1:], ((0, 0), (0, 1)))",
        "following = jnp.pad(layout.media[:, :-1], ((0, 0), (1, 0)))",
    ),
    Mutant(
        "prior-with-rows-and-columns-swapped", "models/adapters/_samplers.py",
        "models/adapters/test_samplers.py models/adapters/test_sampler_grids.py",
        "np.meshgrid(np.arange(side), np.arange(side), indexing=\"ij\")",
        "np.meshgrid(np.arange(side), np.arange(side), indexing=\"xy\")",
    ),
    Mutant(
        "the-merged-rest-holds-what-was-kept", "models/adapters/_samplers.py", "models/adapters/test_samplers.py",
        "rest = probability * (1 - jax.nn.one_hot(kept, num_patches, dtype=jnp.float32).sum(-2))",
        "rest = probability * 1.0",
    ),
    Mutant(
        "space-tokens-divided-by-the-row", "models/adapters/spatiotemporal.py",
        "models/adapters/test_spatiotemporal.py",
        "share = frames / jnp.maximum(frames.sum(-1, keepdims=True), 1)", "share = frames / frames.shape[-1]",
    ),
    Mutant(
        "pixel-shuffle-with-axes-swapped", "models/connector.py", "models/test_connector.py",
        "width).transpose(0, 1, 3, 2, 4, 5)", "width).transpose(0, 1, 3, 4, 2, 5)",
    ),
    Mutant(
        "adaptive-windows-do-not-overlap", "models/adapters/_pools.py", "models/adapters/test_pools.py",
        "(side * i // count, -(-side * (i + 1) // count))", "(side * i // count, side * (i + 1) // count)",
    ),
    Mutant(
        "boxes-off-their-centre", "models/adapters/_regions.py", "models/adapters/test_regions.py",
        "x - self.width // 2, 0,", "x - (self.width - 1) // 2, 0,",
    ),
    Mutant(
        "picked-frames-count-from-the-row", "models/adapters/_frame_paths.py", "models/adapters/test_slow_fast.py",
        "picks.index - clip.first[:, None], -1)", "picks.index, -1)",
    ),
    Mutant(
        "frames-of-both-paths-are-taken-twice", "models/adapters/prompt_guided.py",
        "models/adapters/test_prompt_guided.py",
        "return layout.is_video & ~taken", "return layout.is_video",
    ),
    Mutant(
        "one-token-more-than-allowed", "models/decoding.py", "models/test_decoding.py",
        "(progress.count >= limits.most)", "(progress.count > limits.most)",
    ),
    Mutant(
        "every-token-drawn-with-one-key", "models/decoding.py", "models/test_decoding.py inference/test_answering.py",
        "jax.vmap(jax.random.fold_in)(sampling.keys, count)", "sampling.keys",
    ),
    Mutant(
        "nucleus-with-one-token-too-many", "models/decoding.py", "models/test_decoding.py",
        "before = jnp.cumsum(ordered, axis=-1) - ordered", "before = jnp.cumsum(ordered, axis=-1) - 2 * ordered",
    ),
    Mutant(
        "tiles-merged-without-their-weights", "models/video_llm.py", "models/test_video_llm.py",
        "merged + weight[..., tap, None] * taken.astype(jnp.float32)",
        "merged + taken.astype(jnp.float32) / len(index)",
    ),
    # --- training
    Mutant(
        "loss-across-packed-samples", "models/batch.py", "training/test_losses.py",
        "(jnp.roll(batch.loss_mask, -1, axis=1) & same)", "jnp.roll(batch.loss_mask, -1, axis=1)",
    ),
    Mutant(
        "gradient-not-divided-by-the-count", "training/step.py", "training/test_step.py",
        "g.astype(jnp.float32) / count_or_one", "g.astype(jnp.float32)",
    ),
    Mutant(
        "mean-of-micro-batch-means", "training/step.py", "training/test_step.py",
        "return jax.tree.map(jnp.add, total, new), None",
        "return jax.tree.map(lambda t, x: t + x / jnp.maximum(new[0][1][0], 1), total, new), None",
    ),
    Mutant(
        "mean-of-micro-batch-gradients", "training/step.py", "training/test_step.py",
        "return jax.tree.map(jnp.add, total, new), None",
        "return jax.tree.map(jnp.add, total, (new[0], jax.tree.map(\n"
        "            lambda g: g * batch.loss_mask.sum() / (parts * new[0][1][0]), new[1]))), None",
    ),
    Mutant(
        "one-key-for-all-micro-batches", "training/step.py", "training/test_step.py",
        "jax.random.fold_in(key, index)", "key",
    ),
    Mutant(
        "one-key-for-all-steps", "training/step.py", "training/test_step.py",
        "jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)", "jax.random.wrap_key_data(state.rng)",
    ),
    Mutant(
        "stacked-biases-decay", "training/optimizer.py", "training/test_optimizer.py",
        "value.ndim - (path in stacked) > 1", "value.ndim > 1",
    ),
    Mutant(
        "decay-is-not-decoupled", "training/optimizer.py", "training/test_optimizer.py",
        "        optax.scale_by_adam(stage.beta1, stage.beta2, mu_dtype=jnp.float32),\n"
        "        optax.add_decayed_weights(stage.weight_decay, mask=decays),\n",
        "        optax.add_decayed_weights(stage.weight_decay, mask=decays),\n"
        "        optax.scale_by_adam(stage.beta1, stage.beta2, mu_dtype=jnp.float32),\n",
    ),
    Mutant(
        "betas-swapped", "training/optimizer.py", "training/test_optimizer.py",
        "optax.scale_by_adam(stage.beta1, stage.beta2,", "optax.scale_by_adam(stage.beta2, stage.beta1,",
    ),
    Mutant(
        "decay-ends-after-its-warm-up-again", "training/optimizer.py", "training/test_optimizer.py",
        "rest = max(1, steps - warmup)", "rest = max(1, steps)",
    ),
    Mutant(
        "a-stack-is-cut-only-where-a-slice-begins", "training/partition.py", "training/test_partition.py",
        "|= {pattern.layers.start, pattern.layers.stop}", "|= {pattern.layers.start}",
    ),
    Mutant(
        "resume-forgets-the-optimizer", "training/stages.py", "test_damaged_runs.py",
        "step=restored.step, opt_state=restored.opt_state", "step=restored.step",
    ),
    Mutant(
        "undone-steps-are-logged-twice", "training/metrics.py", "training/test_metrics.py",
        'entry["stage"] != stage or (entry["step"] <= step and not again)',
        'entry["stage"] != stage or (entry["step"] <= step + 1 and not again)',
    ),
    Mutant(
        "undone-steps-count-as-training", "training/throughput.py", "training/test_throughput.py",
        'key[1] <= entry["first"]', 'key[1] <= entry["last"]',
    ),
    Mutant(
        "the-queue-holds-a-step-too-many", "training/loop.py", "training/test_loop.py",
        "while len(in_flight) >= IN_FLIGHT:", "while len(in_flight) > IN_FLIGHT:",
    ),
    # --- evaluation
    Mutant(
        "macro-accuracy-weighs-questions", "evaluation/scoring.py", "evaluation/test_answer_scoring.py",
        "sum(shares.values()) / len(shares)", "sum(mark.right for mark in marks) / len(marks)",
    ),
    Mutant(
        "contains-part-of-a-word", "evaluation/scoring.py", "evaluation/test_answer_scoring.py",
        'f" {wanted} " in f" {normalise(said)} "', "wanted in normalise(said)",
    ),
    Mutant(
        "a-letter-beyond-the-options-counts", "evaluation/answer_letters.py", "evaluation/test_answer_letters.py",
        "if len(stated) == 1 and stated <= set(letters) else None", "if len(stated) == 1 else None",
    ),
    Mutant(
        "yes-and-no-is-yes", "evaluation/yes_no.py", "evaluation/test_yes_no.py",
        "*(other.groups() if other else ())", "*()",
    ),
    Mutant(
        "another-question-about-the-same-clip", "evaluation/controls.py", "evaluation/test_controls.py",
        "if other.media != question.media:", "if other.media:",
    ),
    Mutant(
        "right-with-one-token-right", "evaluation/heldout.py", "evaluation/test_heldout.py",
        "learned_by[i] == right_by[i]", "right_by[i] > 0",
    ),
    Mutant(
        "majority-of-all-types", "evaluation/heldout.py", "evaluation/test_heldout.py",
        "by_type[turn.type][turn.answer] += 1", 'by_type[""][turn.answer] += 1',
    ),
    # --- weights
    Mutant(
        "patches-with-rows-and-columns-swapped", "weights/export/export.py", "weights/export/test_export_values.py",
        "part.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)",
        "part.reshape(patch, patch, 3, -1).transpose(3, 2, 1, 0)",
    ),
    Mutant(
        "new-tokens-copy-the-last-one", "weights/export/export.py", "weights/export/test_export_values.py",
        "first = np.take(value, [0], axis=axis)", "first = np.take(value, [-1], axis=axis)",
    ),
    Mutant(
        "merged-lora-without-its-scale", "weights/export/lora.py",
        "models/test_lora.py weights/export/test_lora_export.py",
        "kernel + scale * jnp.matmul(a, b,", "kernel + jnp.matmul(a, b,",
    ),
    Mutant(
        "peft-without-rslora", "weights/export/lora.py", "models/test_lora.py weights/export/test_lora_export.py",
        '"use_rslora": config.rslora,', '"use_rslora": False,',
    ),
    Mutant(
        "odd-grids-go-out-as-next-video", "families/llava_next_video.py", "weights/test_ladder.py",
        "if fault is None and vision.grid % 2:", "if fault is None and vision.grid < 2:",
    ),
    Mutant(
        "an-unknown-tensor-is-dropped", "weights/tables.py", "families/test_tables.py",
        "(^|\\.)(position_ids|rotary_emb\\.inv_freq)$", "(position_ids|inv_freq)",
    ),
    Mutant(
        "a-gap-between-arrays-is-not-checked", "manifest.py", "test_manifest.py",
        'pieces.append((offset - end, ""))', "pass",
    ),
    Mutant(
        "content-outside-folders-is-not-compared", "manifest.py", "test_manifest.py",
        'elif not under or "/" not in name or', "elif not under or",
    ),
    Mutant(
        "steps-are-ordered-as-text", "weights/integrity.py", "training/test_damaged_checkpoints.py",
        "key=lambda path: (int(path.name) == first, int(path.name)), reverse=True",
        "key=lambda path: (int(path.name) == first, path.name), reverse=True",
    ),
    # --- inference
    Mutant(
        "seen-media-ignore-the-span", "inference/answering.py", "inference/test_answering.py",
        "key = (request.media, order, request.span, *", "key = (request.media, order, *",
    ),
    Mutant(
        "seen-media-ignore-their-order", "inference/answering.py", "inference/test_answering.py",
        "key = (request.media, order, request.span, *", "key = (frozenset(request.media), request.span, *",
    ),
    Mutant(
        "the-media-used-last-go-first", "inference/answering.py", "inference/test_answering.py",
        "self._kept.move_to_end(key)", "self._kept.move_to_end(key, last=False)",
    ),
    Mutant(
        "draws-depend-on-the-row", "inference/answering.py", "inference/test_answering.py",
        "keys[number] = decoding.seed, zlib.crc32(row.request.id.encode())", "keys[number] = decoding.seed, number",
    ),
    Mutant(
        "what-is-said-after-the-end-counts", "inference/text.py", "inference/test_text.py",
        "            if self.finish is not None:\n                break\n", "",
    ),
    Mutant(
        "the-later-stop-string-cuts", "inference/text.py", "inference/test_text.py",
        "return text[: min(stops)[1]]", "return text[: max(stops)[1]]",
    ),
    Mutant(
        "half-a-stop-string-is-shown", "inference/text.py", "inference/test_text.py",
        "for n in range(1, len(stop)) if text.endswith(stop[:n])",
        "for n in range(1, len(stop) - 1) if text.endswith(stop[:n])",
    ),
    Mutant(
        "buckets-beyond-the-context", "inference/engine.py", "inference/test_answering.py",
        "return min(-(-tokens // step) * step, longest)", "return -(-tokens // step) * step",
    ),
    # --- parallel, storage, commands
    Mutant(
        "a-sharding-axis-that-does-not-divide", "parallel/rules.py", "parallel/test_mesh_and_rules.py",
        "while names and size % _width(mesh, names):", "while names and size < _width(mesh, names):",
    ),
    Mutant(
        "an-axis-that-divides-in-part-lies-whole", "parallel/rules.py", "parallel/test_mesh_and_rules.py",
        "names = names[:-1]", "names = ()",
    ),
    Mutant(
        "down-projections-split-as-up-projections", "parallel/rules.py", "parallel/test_mesh_and_rules.py",
        '(r"(o_proj|out_proj|down_proj|fc2)/kernel", ("heads", "embed"))',
        '(r"(o_proj|out_proj|down_proj|fc2)/kernel", ("embed", "heads"))',
    ),
    Mutant(
        "slices-along-the-innermost-axis", "parallel/mesh.py", "parallel/test_mesh_and_rules.py",
        "shape = (slices * shape[0], *shape[1:])", "shape = (*shape[:3], slices * shape[3])",
    ),
    Mutant(
        "a-share-of-rows-by-process-number", "parallel/processes.py", "parallel/test_processes.py",
        "return shares.index(rows[jax.process_index()]), len(shares)", "return jax.process_index(), len(shares)",
    ),
    Mutant(
        "a-file-is-written-in-place", "storage.py", "test_storage.py",
        "yield str(partial)\n        partial.replace(target)", "yield str(target)",
    ),
    Mutant(
        "bytes-are-written-in-place", "storage.py", "test_storage.py",
        "    with writing(path) as local:\n        Path(local).write_bytes(data)",
        "    Path(path).parent.mkdir(parents=True, exist_ok=True)\n    Path(path).write_bytes(data)",
    ),
    Mutant(
        "a-name-leaves-its-root", "storage.py", "test_storage.py",
        "path.startswith(f\"{root.rstrip('/')}/\")", "path.startswith(root.rstrip('/'))",
    ),
    Mutant(
        "bad-input-ends-in-0", "cli.py", "test_cli.py",
        "    tell(error)\n    return error.exit_code\n\n\ndef _write", "    tell(error)\n    return 0\n\n\ndef _write",
    ),
)  # fmt: skip
