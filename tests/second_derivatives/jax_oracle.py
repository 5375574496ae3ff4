"""Loss, gradient and Hessian of rows in float64, by JAX on Keras' JAX backend.

Run in a process of its own, with KERAS_BACKEND=jax:

    python -m tests.second_derivatives.jax_oracle FILE KEY...

writes an .npz with an entry per key; one that JAX cannot compute is left out, with a line on
the standard error.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests.second_derivatives.row import DUMMY, Derivatives, Row, build, loss, precision

ROOT = Path(__file__).parents[2]


def derivatives(keys: Sequence[str], directory: Path) -> tuple[dict[str, Derivatives], str]:
    """Of rows by key, and what JAX said of those that it cannot compute."""
    file = directory / "jax.npz"
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.second_derivatives.jax_oracle", str(file), *keys],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    with np.load(file) as arrays:
        found = {key: Derivatives(*np.split(array, [1, 2])) for key, array in arrays.items()}
    return found, done.stderr


def _derivatives(row: Row) -> np.ndarray:
    """(n + 2, n): the loss n times, the gradient, the Hessian."""
    import jax

    with precision("float64"):
        model = build(row)
        variables = model.trainable_variables
        flat = np.concatenate([np.asarray(v.value, "float64").ravel() for v in variables])
        splits = np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1]

        def objective(vector: Any) -> Any:
            parts = jax.numpy.split(vector, splits)
            values = [part.reshape(v.shape) for part, v in zip(parts, variables, strict=True)]
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return loss(model, DUMMY)

        value, gradient = jax.jit(jax.value_and_grad(objective))(flat)
        try:
            hessian = jax.jit(jax.hessian(objective))(flat)
        except TypeError:  # a rule for reverse mode alone
            hessian = jax.jit(jax.jacrev(jax.grad(objective)))(flat)
    return np.stack([np.full_like(gradient, value), gradient, *hessian])


def main(file: str, *keys: str) -> None:
    from tests.second_derivatives.rows import ROWS

    by_key = {row.key: row for row in ROWS}
    found = {}
    for key in keys:
        try:
            found[key] = _derivatives(by_key[key])
        except Exception as failure:  # the caller sees which are missing
            print(f"{key}: {type(failure).__name__}: {failure}"[:500], file=sys.stderr)
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
