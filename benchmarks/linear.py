"""Why `models.layers.Linear` multiplies in two dimensions: forward plus gradient of a dense layer on [B, L, C].

usage: python benchmarks/linear.py

Runs `nnx.Linear` and ours in turn, round after round, and prints the ratio of their medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from vlvm_jax.models.layers import Linear

BATCH, LENGTH, WIDTH, HIDDEN = 64, 64, 128, 320


def gradient(cls: type[nnx.Linear]):
    graphdef, params = nnx.split(cls(WIDTH, HIDDEN, use_bias=False, rngs=nnx.Rngs(0)))
    inputs = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH))

    def loss(params, inputs):
        return jnp.square(nnx.merge(graphdef, params)(inputs)).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(compiled(params, inputs))


def main() -> None:
    contenders = {"nnx.Linear, three dimensions": gradient(nnx.Linear), "Linear, two dimensions": gradient(Linear)}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(41):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if number:  # the first call compiles
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name, median in medians.items():
        print(f"{name}: {median * 1e3:.2f} ms")
    three, two = medians.values()
    print(f"two dimensions take {two / three:.2f} of the time ({jax.devices()[0].device_kind}, jax {jax.__version__})")


if __name__ == "__main__":
    main()
