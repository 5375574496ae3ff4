"""A file with a network's weights along its training, its data, and what they give in Keras."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Problem:
    """One network on one batch, in Keras's shapes and order.

    Attributes:
        name: Of the network, a key of `networks.BUILDERS`.
        kind: `"mlp"`, `"transformer"` or `"resnet"`: the architecture, for the other sides.
        activation: Of the MLP's hidden layers.
        heads: Of the transformer's attention.
        x: Inputs.
        y: Classes, int32.
        trainable: Per epoch, the trainable variables.
        frozen: Per epoch, the others: the moving statistics.
        losses: Per epoch, what Keras makes of it.
        vector: Per trainable variable, a vector; its product is below.
        products: Per checked epoch, the Hessian times `vector`.
    """

    name: str
    kind: str
    activation: str
    heads: int
    x: np.ndarray
    y: np.ndarray
    trainable: dict[int, Arrays]
    frozen: dict[int, Arrays]
    losses: dict[int, float]
    vector: Arrays
    products: dict[int, Arrays]

    @property
    def epochs(self) -> list[int]:
        return sorted(self.trainable)

    def save(self, path: Path) -> None:
        arrays = {"x": self.x, "y": self.y, "heads": np.array(self.heads)}
        arrays |= {key: np.array(getattr(self, key)) for key in ("name", "kind", "activation")}
        arrays |= {f"loss:{epoch}": np.array(loss) for epoch, loss in self.losses.items()}
        arrays |= _numbered("vector", self.vector)
        for key in ("trainable", "frozen", "products"):
            for epoch, values in getattr(self, key).items():
                arrays |= _numbered(f"{key}:{epoch}", values)
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Problem":
        with np.load(path) as file:
            arrays = dict(file)
        epochs = sorted(int(key.split(":")[1]) for key in arrays if key.startswith("loss:"))
        checked = sorted({int(key.split(":")[1]) for key in arrays if key.startswith("products:")})
        return cls(
            **{key: str(arrays[key]) for key in ("name", "kind", "activation")},
            heads=int(arrays["heads"]),
            x=arrays["x"],
            y=arrays["y"],
            trainable={epoch: _list(arrays, f"trainable:{epoch}") for epoch in epochs},
            frozen={epoch: _list(arrays, f"frozen:{epoch}") for epoch in epochs},
            losses={epoch: float(arrays[f"loss:{epoch}"]) for epoch in epochs},
            vector=_list(arrays, "vector"),
            products={epoch: _list(arrays, f"products:{epoch}") for epoch in checked},
        )


def _numbered(key: str, values: Arrays) -> dict[str, np.ndarray]:
    return {f"{key}:#{i}": value for i, value in enumerate(values)}


def _list(arrays: dict[str, np.ndarray], key: str) -> Arrays:
    found = []
    while f"{key}:#{len(found)}" in arrays:
        found.append(arrays[f"{key}:#{len(found)}"])
    return found
