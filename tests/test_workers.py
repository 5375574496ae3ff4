"""Products under MultiWorkerMirroredStrategy, by two processes on this machine."""

import json
import os
import socket
import subprocess
import sys

SCRIPT = """
import os, sys, time
import keras, numpy as np, tensorflow as tf
rank = int(sys.argv[1])
options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=60)
strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
from keras_hessian_callback import Deflated, HessianOperator, Hutchinson, Lanczos
from keras_hessian_callback.operators.traced import TracedProducts
from tests.problems import batch_normalization_and_dropout

def problem():
    keras.utils.set_random_seed(0)
    return batch_normalization_and_dropout()

with strategy.scope():
    model, (x, y) = problem()
single, _ = problem()
single.set_weights(model.get_weights())

sizes = []
in_one_piece = TracedProducts._in_one_piece
def watched(self, weights, batch, vectors):
    sizes.append(len(batch.x))
    return in_one_piece(self, weights, batch, vectors)
TracedProducts._in_one_piece = watched

for examples in (10, 7, 1):  # evenly, raggedly, not at all
    for batch_size in (None, 4):
        data = x[:examples], y[:examples]
        operator = HessianOperator(model, data, batch_size=batch_size)
        alone = HessianOperator(single, data, batch_size=batch_size)
        vectors = np.random.default_rng(0).normal(size=(operator.shape[0], 3)).astype("float32")
        sizes.clear()
        products = operator.matmat(vectors)
        if batch_size is None:
            half = examples // 2
            assert sizes == [1] if examples == 1 else sizes[0] in (half, examples - half), sizes
            print("took", sizes)
        truth = alone.matmat(vectors)
        np.testing.assert_allclose(products, truth, atol=1e-6 * np.abs(truth).max())

operator, alone = HessianOperator(model, (x, y)), HessianOperator(single, (x, y))
for estimator in (Deflated(max_matvecs=8), Hutchinson(4), Lanczos(2, 4)):
    found, truth = estimator(operator, seed=3)[0], estimator(alone, seed=3)[0]
    for name in ("frobenius_norm", "trace"):
        np.testing.assert_allclose(found[name].value, truth[name].value, rtol=1e-5)
    print("norm", found["frobenius_norm"].value)
before = model.get_weights()
if rank == 1:
    os._exit(0)  # dies, while the other one goes on
try:
    operator.matmat(vectors)
except tf.errors.OpError as error:
    print("lost", type(error).__name__)
for one, other in zip(before, model.get_weights()):
    np.testing.assert_array_equal(one, other)
print("all as expected")
"""


def test_two_workers_measure_what_one_does_and_notice_when_the_other_is_gone():
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (one, other)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = []
    for rank in range(2):
        task = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
        workers.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(rank)],
                env=os.environ | {"TF_CONFIG": json.dumps(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        (first, complaints), (second, _) = (worker.communicate(timeout=300) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
    assert "all as expected" in first, complaints
    assert "lost UnavailableError" in first or "lost DeadlineExceededError" in first, first
    norms = [line for line in first.splitlines() if line.startswith("norm")]
    assert len(norms) == 3
    assert norms == [line for line in second.splitlines() if line.startswith("norm")]
    took = [
        [int(line.split("[")[1].rstrip("]")) for line in out.splitlines() if "took" in line]
        for out in (first, second)
    ]
    assert [sum(shares) for shares in zip(*took, strict=True)] == [10, 7, 2]  # a single one: both
