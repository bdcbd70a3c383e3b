"""Turn an image vision-language model into a video model, in JAX on TPUs."""

import os

__version__ = "0.1.0"

# A request to gs:// that TensorStore makes fails after so long without a byte; see `weights.param_store`. Read when
# TensorStore makes the first one; on TPUs jax sets a minute, where nothing is set before it.
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "6")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "6")

# Without PyTorch, transformers advises at every import, in each worker too, that models are not available; ours need
# no PyTorch. Read when transformers is imported.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
