"""Products under MultiWorkerMirroredStrategy, by two processes on this machine."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

SCRIPT = """
import os, sys, time
import keras, numpy as np, tensorflow as tf
log_dir, rank = sys.argv[1], int(sys.argv[2])
options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=60)
strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
from keras_hessian_callback import (
    Deflated, HessianNormCallback, HessianOperator, Hutchinson, Lanczos
)
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
in_one_piece = TracedProducts.in_one_piece
def watched(self, weights, batch, vectors):
    sizes.append(len(batch.x))
    return in_one_piece(self, weights, batch, vectors)
TracedProducts.in_one_piece = watched

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
callback = HessianNormCallback((x, y), Hutchinson(4), log_dir=f"{log_dir}/{rank}")
callback.set_model(model)
callback.on_train_begin()
callback.on_epoch_begin(0)
callback.on_epoch_end(0, {})
callback.on_train_end()
print("norm", callback.history["frobenius_norm"])
before = model.get_weights()
if rank == 1:
    os._exit(0)  # dies, while the other one goes on
try:
    operator.matmat(vectors)
except ConnectionError as error:
    print("lost", error)
for one, other in zip(before, model.get_weights()):
    np.testing.assert_array_equal(one, other)
print("all as expected")
"""


HANGING = """
import os, random, signal, sys, time
import keras, numpy as np, tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy
from keras_hessian_callback import Hutchinson, measure_curvature
from keras_hessian_callback.replicas import Workers, workers_of
from tests.problems import batch_normalization_and_dropout

case, rank = sys.argv[1], int(sys.argv[2])
if case == "sleeps":  # of two devices, which only GPUs are otherwise
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    collective_all_reduce_strategy.CollectiveAllReduceExtended._initialize_local_devices = (
        lambda self, resolver, worker_device: (
            tuple(f"{worker_device}/device:CPU:{index}" for index in range(2)), "CPU"
        )
    )
options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=10)
strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
keras.utils.set_random_seed(0)
with strategy.scope():
    model, data = batch_normalization_and_dropout()
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        variable.assign(variable + 1)
workers = workers_of(model)
assert float(workers.sum(tf.constant(1.0 + rank))) == 3.0  # whatever the number of devices

def state():
    arrays = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    generators = tf.random.get_global_generator().state.numpy(), np.random.get_state()[1]
    return [*arrays, *generators, np.array(random.getstate()[1])]

join, joined = Workers.sum, []
def hang(self, tensor):
    if len(joined) == {"sleeps": 0, "stands still": 3}[case]:  # at construction; in a measurement
        print("hangs", flush=True)
        if case == "stands still":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)
    joined.append(tensor)
    return join(self, tensor)
if rank == 1:
    Workers.sum = hang
before = state()
try:
    measure_curvature(model, data, Hutchinson(4))
except (TimeoutError, ConnectionError) as error:
    print(type(error).__name__, error)
for one, other in zip(before, state(), strict=True):
    np.testing.assert_array_equal(one, other)
print("state is the same")
"""


@contextmanager
def two_workers(script, *arguments):
    """Two processes that run the script, with the arguments and the rank; killed at the end."""
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (one, other)]
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    workers = []
    try:
        for rank in range(2):
            task = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", script, *arguments, str(rank)],
                    env=os.environ | {"TF_CONFIG": json.dumps(task)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_two_workers_measure_what_one_does_and_notice_when_the_other_is_gone(tmp_path):
    with two_workers(SCRIPT, str(tmp_path)) as workers:
        (first, complaints), (second, _) = (worker.communicate(timeout=300) for worker in workers)
    assert "all as expected" in first, complaints
    assert "lost One of the 2 workers is gone" in first, first
    norms = [line for line in first.splitlines() if line.startswith("norm")]
    assert len(norms) == 4
    assert norms == [line for line in second.splitlines() if line.startswith("norm")]
    took = [
        [int(line.split("[")[1].rstrip("]")) for line in out.splitlines() if "took" in line]
        for out in (first, second)
    ]
    assert list((tmp_path / "0" / "hessian").glob("events*"))
    assert not (tmp_path / "1").exists()  # only the chief writes
    assert [sum(shares) for shares in zip(*took, strict=True)] == [10, 7, 2]  # a single one: both


def test_a_worker_that_hangs_is_an_error_in_the_other_and_changes_nothing_there():
    with ExitStack() as stack:  # both at a time: they wait for most of it
        pairs = {
            case: stack.enter_context(two_workers(HANGING, case))
            for case in ("sleeps", "stands still")
        }
        for case, (survivor, hanging) in pairs.items():
            told, complaints = survivor.communicate(timeout=300)
            assert hanging.poll() is None, case
            assert hanging.stdout.readline() == "hangs\n", case
            assert "state is the same" in told, complaints
            late = "TimeoutError One of the 2 workers took no part in a measurement for 10 seconds"
            gone = "ConnectionError One of the 2 workers is gone or hangs"  # by its heartbeats
            assert late in told or (case == "stands still" and gone in told), (case, told)
