import copy
import csv
import dataclasses
import math
import pickle
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext

from keras_hessian_callback import (
    Deflated,
    Exact,
    HessianNormCallback,
    Hutchinson,
    every,
    measure_curvature,
    within,
)
from keras_hessian_callback import callback as callback_room
from keras_hessian_callback.replicas import Workers
from keras_hessian_callback.summaries import SummaryWriter
from tests.oracles import dense_hessian, double_precision
from tests.problems import tanh_classifier
from tests.test_objective import Subclassed, own_train_step
from tests.test_summaries import events

KEY = "hessian_frobenius_norm"


def fit(callback, *, model=None, epochs=3, others=(), **arguments):
    """Trains the classifier on 20 examples in 5 steps an epoch."""
    problem, (x, y) = tanh_classifier()
    model = model or problem
    model.fit(
        np.tile(x, (2, 1)),
        np.tile(y, 2),
        epochs=epochs,
        batch_size=4,
        verbose=0,
        callbacks=[callback, *others],
        **arguments,
    )
    return model


def data():
    return tanh_classifier()[1]


def test_each_epoch_is_logged_with_the_weights_of_that_moment(tmp_path):
    truths = []

    class Truth(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights = keras.Sequential.get_weights(self.model)
            reference, _examples = tanh_classifier()
            reference.set_weights(weights)
            truths.append(reference)

    callback = HessianNormCallback(data(), "autodiff", log_dir=tmp_path)
    model = fit(callback, others=[Truth()])
    expected = [
        np.linalg.norm(dense_hessian(*double_precision(tanh_classifier, like=reference)))
        for reference in truths
    ]
    assert callback.history["epoch"] == callback.history["step"] == [0, 1, 2]
    assert callback.history["frobenius_norm"] == pytest.approx(expected, rel=1e-5)
    assert model.history.history[KEY] == callback.history["frobenius_norm"]
    assert all(type(value) is float for value in model.history.history[KEY])
    assert callback.report["frobenius_norm"].value == pytest.approx(expected[-1], rel=1e-5)
    written = events(tmp_path / "hessian")["hessian/frobenius_norm"]
    assert written == [(step, pytest.approx(value)) for step, value in enumerate(expected)]


def test_history_holds_everything_that_is_drawn():
    callback = HessianNormCallback(data(), Hutchinson(num_probes=9))
    fit(callback)
    assert {name: len(values) for name, values in callback.history.items()} == dict.fromkeys(
        [
            "epoch",
            "step",
            "frobenius_norm",
            "frobenius_norm/lower",
            "frobenius_norm/upper",
            "trace",
            "trace/lower",
            "trace/upper",
            "num_matvecs",
            "seconds",
            "overhead",
            "stability_threshold",
        ],
        3,
    )
    assert callback.history["num_matvecs"] == [9, 9, 9]
    for lower, value, upper in zip(
        *(callback.history[f"frobenius_norm{end}"] for end in ("/lower", "", "/upper")),
        strict=True,
    ):
        assert lower < value < upper


@pytest.mark.parametrize(
    ("schedule", "arguments", "steps", "epochs", "drawn"),
    [
        ("epoch", {}, [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]),
        (every(epochs=2), {}, [0, 2], [0, 2], [0, 2]),
        (every(epochs=3), {"initial_epoch": 1}, [1, 3], [1, 3], [3]),
        (every(steps=12), {"initial_epoch": 2}, [5], [2], []),
        (every(steps=4), {}, [4, 8, 12, 16, 20], [0, 1, 2, 3, 3], [4, 8, 12, 16, 20]),
        (every(steps=8), {}, [5, 8, 16], [0, 1, 3], [5, 8, 16]),
        (every(steps=100), {}, [5], [0], [5]),
    ],
)
def test_schedules(schedule, arguments, steps, epochs, drawn, tmp_path):
    callback = HessianNormCallback(
        data(), Hutchinson(num_probes=2), schedule=schedule, log_dir=tmp_path
    )
    model = fit(callback, epochs=4, **arguments)
    assert callback.history["step"] == steps
    assert callback.history["epoch"] == epochs
    assert len(model.history.history[KEY]) == len(set(epochs))
    read = events(tmp_path / "hessian")
    assert all([step for step, _ in values] == drawn for values in read.values())
    assert bool(read) == bool(drawn)


class Slow(keras.callbacks.Callback):
    """Steps of 4 ms at least, whatever the machine."""

    def on_train_batch_begin(self, batch, logs=None):
        time.sleep(0.004)


@pytest.mark.parametrize("epochs", [1, 100])
def test_a_share_of_the_time_is_kept_and_drawn(epochs, tmp_path):
    """500 steps, and a measurement costs about one; also where all are of one epoch.

    A machine that is busy with something else now and then keeps no share: the best of three
    tries counts. (test_budget.py has the same with a clock of its own.)
    """
    for attempt in range(3):
        problem, (x, y) = tanh_classifier()
        repeats = 200 // epochs  # of 10 examples, in steps of 4
        x, y = np.tile(x, (repeats, 1)), np.tile(y, repeats)
        log_dir = tmp_path / str(attempt)
        callback = HessianNormCallback(
            data(), Hutchinson(num_probes=2), schedule=within(overhead=0.2), log_dir=log_dir
        )
        others = [callback, Slow()]
        problem.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=others)
        steps = callback.history["step"]
        assert steps == sorted(set(steps))
        assert callback.setup_seconds > 0.0
        read = events(log_dir / "hessian")
        drawn = dict(read["hessian/overhead"])
        assert list(drawn) == sorted({*steps, 500})
        assert drawn[500] == pytest.approx(callback.overhead)
        assert [step for step, _ in read["hessian/trace"]] == steps
        if callback.overhead == pytest.approx(0.2, rel=0.2):
            break
    assert callback.overhead == pytest.approx(0.2, rel=0.2)
    assert len(steps) > 5
    assert callback.history["overhead"][-1] == pytest.approx(0.2, rel=0.3)


def test_a_run_that_cannot_pay_makes_the_fewest_products_and_says_so():
    callback = HessianNormCallback(data(), schedule=within(overhead=0.0005))
    with pytest.warns(UserWarning, match=r"within\(overhead=0.0005\) could not be kept"):
        fit(callback, epochs=4)
    assert callback.history["num_matvecs"] == [3]  # of the first epoch, in any case
    assert callback.report.method == repr(Deflated(max_matvecs=3))
    assert callback.overhead > 0.0005


def test_steps_are_counted_right_under_steps_per_execution():
    """An epoch of 5 steps is a call of 4 and one of 1; multiples of 6 are passed at 9, 14, 19."""
    model, _ = tanh_classifier()
    model.compile("adam", model.loss, steps_per_execution=4)
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), schedule=every(steps=6))
    fit(callback, model=model, epochs=4)
    assert callback.history["step"] == [5, 9, 14, 19]  # 5: the end of the first epoch
    model.compile("adam", model.loss, steps_per_execution=5)
    fit(callback, model=model, epochs=4)
    assert callback.history["step"] == [5, 10, 15, 20]


@pytest.mark.parametrize("update_freq", ["epoch", "batch", 3])
@pytest.mark.parametrize("first", [True, False])
def test_beside_the_tensorboard_callback(update_freq, first, tmp_path):
    callback = HessianNormCallback(
        data(), Hutchinson(num_probes=2), log_dir=tmp_path, schedule=every(steps=2)
    )
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=update_freq, write_graph=False)
    order = [callback, board] if first else [board, callback]
    fit(order[0], others=order[1:])
    assert [step for step, _ in events(tmp_path / "hessian")["hessian/trace"]] == list(
        range(2, 16, 2)
    )
    if first and update_freq == "epoch":
        assert len(events(tmp_path / "train")[f"epoch_{KEY}"]) == 3


def test_the_back_end_of_tensorboard_serves_the_curve(tmp_path):
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path)
    fit(callback, others=[keras.callbacks.TensorBoard(tmp_path)])
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = RequestContext()
    listed = provider.list_scalars(context, experiment_id="", plugin_name="scalars")
    tags = {
        f"hessian/{n}{e}" for n in ("frobenius_norm", "trace") for e in ("", "/lower", "/upper")
    }
    assert set(listed["hessian"]) == tags | {"hessian/overhead"}
    series = provider.read_scalars(
        context, experiment_id="", plugin_name="scalars", downsample=100
    )["hessian"]["hessian/frobenius_norm"]
    assert [point.step for point in series] == [0, 1, 2]
    assert [point.value for point in series] == pytest.approx(callback.history["frobenius_norm"])


def test_nothing_is_written_without_a_log_dir_or_a_measurement(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(HessianNormCallback(data(), Hutchinson(num_probes=1)))
    assert list(tmp_path.iterdir()) == []
    fit(HessianNormCallback(data(), log_dir="logs"), epochs=0)
    assert list(tmp_path.glob("logs/hessian/*")) == []


def test_other_callbacks_see_the_value(tmp_path):
    callback = HessianNormCallback(data(), "autodiff")
    stop = keras.callbacks.EarlyStopping(KEY, mode="min", min_delta=1e9, patience=0)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    model = fit(callback, epochs=9, others=[stop, logger])
    assert len(model.history.epoch) < 9
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row[KEY]) for row in rows] == callback.history["frobenius_norm"]


def test_two_in_one_fit_keep_their_values_apart(tmp_path):
    x, y = data()
    first = HessianNormCallback((x, y), "autodiff", log_dir=tmp_path / "one")
    second = HessianNormCallback((2 * x, y), "autodiff", log_dir=tmp_path / "two")
    with pytest.warns(UserWarning, match="value of another HessianNormCallback, which stays"):
        model = fit(first, others=[second])
    assert model.history.history[KEY] == first.history["frobenius_norm"]
    assert second.history["frobenius_norm"] != first.history["frobenius_norm"]
    assert len(events(tmp_path / "two" / "hessian")["hessian/trace"]) == 3
    same = HessianNormCallback((2 * x, y), log_dir=tmp_path / "one")
    with pytest.warns(UserWarning, match=r"one writer per directory.*its own `log_dir`"):
        fit(first, model=model, others=[same])


def test_one_instance_serves_several_fits(tmp_path):
    callback = HessianNormCallback(data(), "autodiff", log_dir=tmp_path)
    model = fit(callback, epochs=2)
    operator = callback._operator
    fit(callback, model=model, epochs=4, initial_epoch=2)
    assert callback._operator is operator  # nothing was traced again
    assert callback.history["epoch"] == [2, 3]
    assert [step for step, _ in events(tmp_path / "hessian")["hessian/trace"]] == [0, 1, 2, 3]


def test_steps_of_optimizers_that_are_not_the_models_are_not_counted_in_silence():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.own = keras.optimizers.SGD(0.1)

        def call(self, inputs):
            return self.dense(inputs)

        def train_step(self, data):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x)))
            self.own.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    model = Own()
    x = np.ones((8, 4), "float32")
    model(x)
    model.own.build(model.trainable_variables)
    model.compile()
    callback = HessianNormCallback(
        (x,), schedule=every(steps=2), loss_fn=lambda m, x, y, w: tf.reduce_mean(m(x) ** 2)
    )
    with pytest.warns(UserWarning, match="has made no step in the first epoch"):
        model.fit(x, batch_size=2, epochs=2, verbose=0, callbacks=[callback])
    assert callback.history["epoch"] == [0]


def test_workers_do_not_measure_by_the_clock(monkeypatch):
    monkeypatch.setattr(callback_room, "workers_of", lambda model: Workers(0, 2, None))
    with pytest.raises(ValueError, match="goes by the clock"):
        fit(HessianNormCallback(data(), schedule=within(overhead=0.05)), epochs=1)


def test_a_basis_is_carried_from_epoch_to_epoch_but_not_back():
    carried = []

    class Carried(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            carried.append(callback.report.carried)

    callback = HessianNormCallback(data(), Deflated(max_matvecs=12))
    model = fit(callback, others=[Carried()])
    fit(callback, model=model, epochs=5, initial_epoch=3, others=[Carried()])
    assert carried == [False, True, True, True, True]
    fit(callback, model=model, epochs=1, others=[Carried()])  # probes that shaped the basis
    assert not carried[-1]


def test_layers_are_drawn_in_a_group_of_their_own(tmp_path):
    callback = HessianNormCallback(data(), log_dir=tmp_path)
    fit(callback, epochs=2)
    layers = list(callback.report.layers)
    assert len(layers) == 2
    read = events(tmp_path / "hessian")
    for layer in layers:
        values = [value for _, value in read[f"hessian_by_layer/frobenius_norm/{layer}"]]
        assert values == pytest.approx(callback.history[f"frobenius_norm/layer/{layer}"])
    assert "hessian/spectral_norm/upper" in read


def test_the_preconditioned_hessian_is_drawn_beside_the_plain_one(tmp_path, recwarn):
    """Against D^-1/2 H D^-1/2 with D of Adam's own state and formula, at every epoch."""
    truths = []

    class Truth(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            adam = self.model.optimizer
            steps = int(adam.iterations)
            v = np.concatenate([np.ravel(v) for v in adam._velocities]).astype("float64")
            diagonal = (np.sqrt(v) + adam.epsilon) / np.sqrt(1.0 - adam.beta_2**steps)
            truths.append((self.model.get_weights(), diagonal * (1.0 - adam.beta_1**steps)))

    plain = HessianNormCallback(data(), "autodiff", log_dir=tmp_path)
    seen = HessianNormCallback(data(), "autodiff", log_dir=tmp_path, preconditioned=True)
    model = fit(plain, others=[seen, Truth()])
    expected = []
    for weights, diagonal in truths:
        reference, examples = double_precision(tanh_classifier)
        reference.set_weights(weights)
        scale = 1.0 / np.sqrt(diagonal)
        dense = scale[:, None] * dense_hessian(reference, examples) * scale
        expected.append(np.linalg.norm(dense))
    assert seen.history["frobenius_norm"] == pytest.approx(expected, rel=1e-4)
    assert seen.report.preconditioned
    assert not plain.report.preconditioned
    assert model.history.history[f"preconditioned_{KEY}"] == seen.history["frobenius_norm"]
    assert model.history.history[KEY] == plain.history["frobenius_norm"]
    written = events(tmp_path / "preconditioned_hessian")
    assert {tag.split("/")[0] for tag in written} == {"preconditioned_hessian"}
    assert written["preconditioned_hessian/frobenius_norm"] == [
        (step, pytest.approx(value)) for step, value in enumerate(seen.history["frobenius_norm"])
    ]
    threshold = 38.0 / float(model.optimizer.learning_rate.numpy())
    assert written["preconditioned_hessian/stability_threshold"] == [
        (step, pytest.approx(threshold)) for step in range(3)
    ]
    assert seen.history["stability_threshold"] == pytest.approx([threshold] * 3)
    assert "hessian/stability_threshold" not in events(tmp_path / "hessian")
    assert all(math.isnan(value) for value in plain.history["stability_threshold"])
    assert not [w for w in recwarn if "HessianNormCallback" in str(w.message)]


def test_the_threshold_is_that_of_the_step_size_of_the_moment(tmp_path):
    model, _ = tanh_classifier()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), model.loss)
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path)
    halving = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    fit(callback, model=model, others=[halving])
    assert callback.history["stability_threshold"] == pytest.approx([30.0, 60.0, 120.0])
    assert events(tmp_path / "hessian")["hessian/stability_threshold"] == [
        (step, pytest.approx(value)) for step, value in enumerate([30.0, 60.0, 120.0])
    ]
    assert callback.report.stability_threshold == pytest.approx(120.0)


def test_a_basis_of_the_preconditioned_hessian_is_carried_on_its_own(tmp_path):
    seen = HessianNormCallback(data(), log_dir=tmp_path, preconditioned=True)
    fit(seen)
    assert seen.report.carried
    assert (tmp_path / "preconditioned_hessian" / "carried.npz").exists()
    assert not (tmp_path / "hessian").exists()
    tags = events(tmp_path / "preconditioned_hessian")
    assert any(tag.startswith("preconditioned_hessian_by_layer/") for tag in tags)


def test_what_is_carried_and_cannot_be_read_is_left(tmp_path):
    (tmp_path / "hessian" / "carried.npz").mkdir(parents=True)
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path)
    fit(callback, epochs=2)
    assert callback.history["epoch"] == [0, 1]


def test_a_text_that_cannot_be_written_does_not_end_the_run(tmp_path):
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path)
    callback._about = lambda *_: 1 / 0
    with pytest.warns(UserWarning, match="could not be written at epoch 0.*ZeroDivisionError"):
        fit(callback)
    assert callback.history["epoch"] == [0, 1, 2]


def test_accumulated_gradients_have_no_preconditioner_before_the_first_step():
    problem, _ = tanh_classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    problem.compile(keras.optimizers.Adam(gradient_accumulation_steps=6), loss)
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), preconditioned=True)
    with pytest.warns(UserWarning, match="The optimizer made no step up to epoch 0"):
        fit(callback, model=problem)  # 5 batches an epoch
    assert callback.history["epoch"] == [1, 2]
    logged = problem.history.history["preconditioned_hessian_frobenius_norm"]
    assert np.isfinite(logged).tolist() == [False, True, True]


def test_a_model_compiled_anew_within_a_fit_is_measured_no_more():
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2))

    def compile_anew(epoch, _):
        if epoch == 1:
            callback.model.compile("adam", keras.losses.SparseCategoricalCrossentropy())
            callback.model.make_train_function()

    with pytest.warns(UserWarning, match="compiled or frozen anew during this fit"):
        fit(callback, others=[keras.callbacks.LambdaCallback(on_epoch_begin=compile_anew)])
    assert callback.history["epoch"] == [0]


def test_a_shallow_copy_has_its_own_history():
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2))
    fit(callback, epochs=1)
    other = copy.copy(callback)
    fit(other, epochs=2)
    assert callback.history["epoch"] == [0]
    assert other.history["epoch"] == [0, 1]


def test_what_another_kind_of_matrix_left_is_not_taken_up(tmp_path):
    fit(HessianNormCallback(data(), Deflated(max_matvecs=8), log_dir=tmp_path), epochs=2)
    keras.config.set_dtype_policy("float64")
    callback = HessianNormCallback(data(), Deflated(max_matvecs=8), log_dir=tmp_path)
    fit(callback, epochs=3, initial_epoch=2)
    assert callback.history["epoch"] == [2]
    assert not callback.report.carried


def test_a_loop_of_ones_own_is_measured_too(tmp_path):
    """Without `fit`, `compile` and what `fit` tells of its length."""
    model, held_out = tanh_classifier()
    model = keras.models.clone_model(model)
    squared = HessianNormCallback(
        held_out,
        Hutchinson(num_probes=2),
        log_dir=tmp_path,
        loss_fn=lambda model, x, y, w: tf.reduce_mean(tf.square(model(x))),
        schedule=within(overhead=0.5),
        on_error="raise",
    )
    model.compile("sgd")  # for the iterations
    squared.set_model(model)
    squared.on_train_begin()
    for epoch in (1, 2):
        squared.on_epoch_begin(epoch)
        for _ in range(5):
            squared.on_train_batch_end(0)
        squared.on_epoch_end(epoch, {})
    squared.on_train_end()
    assert squared.history["epoch"][0] == 1
    uncompiled = keras.models.clone_model(model)
    plain = HessianNormCallback(
        held_out,
        Hutchinson(num_probes=2),
        log_dir=tmp_path / "plain",
        loss_fn=lambda model, x, y, w: tf.reduce_mean(tf.square(model(x))),
        on_error="raise",
    )
    plain.set_model(uncompiled)
    plain.on_train_begin()
    plain.on_epoch_begin(0)
    plain.on_epoch_end(0, {})
    plain.on_train_end()
    assert "hessian/trace" in events(tmp_path / "plain" / "hessian")


def test_a_compiled_or_frozen_model_is_taken_up_anew():
    callback = HessianNormCallback(data(), "autodiff")
    model = fit(callback, epochs=1)
    before = callback.report
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), loss_weights=[3.0])
    fit(callback, model=model, epochs=1)
    assert callback.report["trace"].value != pytest.approx(before["trace"].value, rel=0.1)
    model.layers[0].trainable = False
    model.compile("adam", model.loss)
    fit(callback, model=model, epochs=1)
    assert callback.report.num_parameters == 21


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])  # noqa: S301
def test_copies_measure_what_the_original_does(copied, tmp_path):
    callback = HessianNormCallback(data(), Hutchinson(num_probes=3), log_dir=tmp_path, seed=5)
    keras.utils.set_random_seed(1)
    fit(copied(callback))
    clone = copied(callback)
    keras.utils.set_random_seed(1)
    fit(callback)
    keras.utils.set_random_seed(1)
    fit(clone)
    assert clone.history["trace"] == callback.history["trace"]
    again = copied(callback)  # after a fit, too
    np.testing.assert_equal(again.history, callback.history)  # NaN is NaN
    keras.utils.set_random_seed(1)
    fit(again)
    assert again.history["trace"] == callback.history["trace"]


def test_evaluate_and_predict_are_left_alone(tmp_path):
    callback = HessianNormCallback(data(), log_dir=tmp_path)
    model, (x, y) = tanh_classifier()
    logs = model.evaluate(x, y, callbacks=[callback], verbose=0, return_dict=True)
    model.predict(x, callbacks=[callback], verbose=0)
    assert set(logs) == {"loss"}
    assert callback.history == {"epoch": [], "step": []}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("schedule", ["epoch", every(epochs=4), every(steps=3)])
@pytest.mark.parametrize("method", [Hutchinson(num_probes=4), Deflated(max_matvecs=10)])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(method, schedule, tmp_path):
    def run(directory, epochs):
        callback = HessianNormCallback(data(), method, schedule=schedule, log_dir=directory)
        backup = keras.callbacks.BackupAndRestore(directory / "backup", delete_checkpoint=False)
        keras.utils.clear_session()  # as in a new process, layers get the same names
        keras.utils.set_random_seed(2)
        model, _ = tanh_classifier()
        model.build((None, 4))
        fit(callback, model=model, epochs=epochs, others=[backup], shuffle=False)

    run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3)
    run(tmp_path / "parts", 6)
    whole, parts = (events(tmp_path / name / "hessian") for name in ("whole", "parts"))
    overheads = [read.pop("hessian/overhead") for read in (whole, parts)]  # by the clock
    assert len(overheads[0]) == len(overheads[1])
    assert whole == parts
    count = {"epoch": 6, every(epochs=4): 2, every(steps=3): 10}[schedule]
    assert len(whole["hessian/trace"]) == count


def test_the_value_of_an_epoch_can_be_measured_again_by_hand():
    callback = HessianNormCallback(data(), Hutchinson(num_probes=4), seed=9)
    model = fit(callback, epochs=3)
    report = measure_curvature(model, data(), Hutchinson(num_probes=4), seed=(9, 2))
    assert dict(report) == dict(callback.report)


# --- bad input: an error before the first step ---------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"on_error": "ignore"}, ValueError, "`on_error` must be 'warn' or 'raise'; got 'ignore'"),
        ({"method": "exact"}, ValueError, "'stochastic', 'autodiff', 'finite_difference'"),
        ({"schedule": "batch"}, ValueError, "`schedule` must be 'epoch', every"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer"),
        ({"preconditioned": 1}, TypeError, "`preconditioned` must be True or False; got 1"),
        ({"seed": None}, TypeError, "`seed` must be an integer"),
        ({"log_dir": 3}, TypeError, "`log_dir` must be a path or None"),
        ({"data": None}, ValueError, "`data` is None"),
        ({"data": (np.ones((3, 4)), np.ones(2))}, ValueError, "as many targets"),
    ],
)
def test_bad_settings_are_refused_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        HessianNormCallback(**{"data": data(), **arguments})


def test_another_backend_is_refused_at_construction(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="'torch'"):
        HessianNormCallback(data())


class NoStep(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise AssertionError("a training step began")


def test_bad_models_are_refused_before_the_first_step(tmp_path):
    x, y = data()
    model, _ = tanh_classifier()
    (tmp_path / "file").write_text("in the way")
    refused = HessianNormCallback((x, y), Exact(max_parameters=50))
    for callback, message in [
        (refused, "51 products"),
        (HessianNormCallback((x[:, :2], y)), "could not be called on the inputs of `data`"),
        (refused, "51 products"),  # and again
        (HessianNormCallback((x, y), log_dir=tmp_path / "file"), "`log_dir` cannot be written"),
        (HessianNormCallback((x, y), loss_fn=lambda m, x, y, w: m(x)), "must be one real number"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.fit(x, y, verbose=0, callbacks=[callback, NoStep()])


@pytest.mark.parametrize("optimizer", ["sgd", "lion", None])
def test_an_optimizer_that_divides_by_nothing_is_refused_before_the_first_step(optimizer):
    x, y = data()
    model, _ = tanh_classifier()
    model.compile(optimizer, model.loss)
    callback = HessianNormCallback((x, y), preconditioned=True)
    callback.set_model(model)
    with pytest.raises(ValueError, match=r"read off Adam, AdamW.*Use preconditioned=False"):
        callback.on_train_begin()


def test_a_model_that_is_not_built_is_refused_before_the_first_step():
    model = Subclassed()
    model.compile("sgd", "mse")
    x, y = np.ones((4, 2)), np.ones((4, 1))
    with pytest.raises(ValueError, match=r"is not built.*keras\.Input\(shape\)"):
        model.fit(x, y, verbose=0, callbacks=[HessianNormCallback((x, y)), NoStep()])


def test_a_train_step_of_its_own_warns_before_the_first_step():
    model = own_train_step()
    callback = HessianNormCallback((np.ones((4, 2)), np.ones((4, 1))))
    with pytest.warns(UserWarning, match=r"compiled loss \('mse'\).*OwnTrainStep.train_step"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[callback])


# --- while training: the run goes on -------------------------------------------------------


def test_a_loss_that_is_not_finite_logs_nan_with_one_warning(tmp_path, recwarn):
    class Diverge(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])

    callback = HessianNormCallback(data(), Hutchinson(num_probes=4), log_dir=tmp_path)
    fit(callback, epochs=4, others=[Diverge()])
    own = [str(w.message) for w in recwarn if "Hessian norm is not finite" in str(w.message)]
    assert len(own) == 1
    assert "epoch 1, step 1" in own[0]
    assert [math.isnan(v) for v in callback.history["frobenius_norm"]] == [False, True, True, True]
    written = events(tmp_path / "hessian")["hessian/frobenius_norm"]
    assert [step for step, _ in written] == [0, 1, 2, 3]
    assert [math.isnan(value) for _, value in written] == [False, True, True, True]


@dataclasses.dataclass(frozen=True)
class FailsAt(Hutchinson):
    """An estimator that fails at a step, as memory running out would."""

    num_probes: int = 2
    step: int = 0

    def __call__(self, operator, *, seed, state=None):
        if seed[1] == self.step:
            raise tf.errors.ResourceExhaustedError(None, None, "no memory left")
        return super().__call__(operator, seed=seed)


def test_a_failing_measurement_warns_once_and_is_off(tmp_path, recwarn):
    callback = HessianNormCallback(data(), FailsAt(step=2), log_dir=tmp_path)
    model = fit(callback, epochs=5)
    own = [str(w.message) for w in recwarn if "Measuring the Hessian failed" in str(w.message)]
    assert len(own) == 1
    assert "epoch 2, step 2" in own[0]
    assert "ResourceExhaustedError: no memory left" in own[0]
    assert "`batch_size`" in own[0]
    assert len(model.history.epoch) == 5
    assert callback.history["epoch"] == [0, 1]
    assert len(model.history.history[KEY]) == 2
    assert len(events(tmp_path / "hessian")["hessian/trace"]) == 2


def test_a_second_fit_from_weights_that_are_not_finite_goes_on():
    def loss(model, x, y, weight):
        return tf.reduce_mean(model(x) ** 2)

    model, _ = tanh_classifier()
    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), loss_fn=loss)
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.warns(UserWarning, match="Hessian norm is not finite"):
        fit(callback, model=model, epochs=1)
    assert math.isnan(callback.history["trace"][0])


def test_a_failing_measurement_raises_where_that_is_asked_for(tmp_path):
    callback = HessianNormCallback(data(), FailsAt(step=1), log_dir=tmp_path, on_error="raise")
    with pytest.raises(tf.errors.ResourceExhaustedError, match="no memory left"):
        fit(callback)
    assert len(events(tmp_path / "hessian")["hessian/trace"]) == 1


def test_event_files_that_fail_warn_once_and_lose_no_value(tmp_path, monkeypatch, recwarn):
    def disk_full(self, *arguments, **keywords):
        raise OSError("disk full")

    callback = HessianNormCallback(data(), Hutchinson(num_probes=2), log_dir=tmp_path)
    monkeypatch.setattr(SummaryWriter, "write", disk_full)
    model = fit(callback)
    own = [str(w.message) for w in recwarn if "could not be written" in str(w.message)]
    assert len(own) == 1
    assert "OSError: disk full" in own[0]
    assert len(model.history.history[KEY]) == len(callback.history["trace"]) == 3
    monkeypatch.undo()
    monkeypatch.setattr(SummaryWriter, "close", disk_full)
    with pytest.warns(UserWarning, match="could not be written"):
        fit(callback)
    failing = HessianNormCallback(data(), FailsAt(step=9), log_dir=tmp_path, on_error="raise")
    with pytest.raises(OSError, match="disk full"):
        fit(failing)


def test_summaries_of_the_model_are_not_written_again(tmp_path):
    class Watched(keras.layers.Layer):
        def call(self, inputs):
            tf.summary.scalar("activation", tf.reduce_mean(inputs))
            return inputs

    model = keras.Sequential([keras.Input((4,)), Watched(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    board = keras.callbacks.TensorBoard(tmp_path, update_freq=1, write_graph=False)
    fit(board, model=model, epochs=1, others=[HessianNormCallback(data())])
    read = events(tmp_path / "train")
    written = [values for tag, values in read.items() if "activation" in tag]
    assert [len(values) for values in written] == [5]


def test_the_next_fit_tries_again():
    callback = HessianNormCallback(data(), FailsAt(step=1))
    with pytest.warns(UserWarning, match="Measuring the Hessian failed"):
        model = fit(callback)
    fit(callback, model=model, epochs=5, initial_epoch=3)
    assert callback.history["epoch"] == [3, 4]


def test_steps_need_an_optimizer():
    model, (x, y) = tanh_classifier()
    model.compile(optimizer=None, loss=model.loss)
    callback = HessianNormCallback((x, y), schedule=every(steps=2))
    callback.set_model(model)
    with pytest.raises(ValueError, match=r"no optimizer\. Use every\(epochs=...\)"):
        callback.on_train_begin()


def test_what_cannot_be_taken_up_is_rebuilt(tmp_path):
    """A file that is cut off, or of a later step, starts the basis anew."""

    def run(**arguments):
        callback = HessianNormCallback(data(), Deflated(max_matvecs=10), log_dir=tmp_path)
        fit(callback, **arguments)
        return callback.report.carried

    assert run(epochs=2)
    path = tmp_path / "hessian" / "carried.npz"
    assert run(epochs=3, initial_epoch=2)
    assert not run(epochs=1)  # its probes shaped what the file holds
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert not run(epochs=3, initial_epoch=2)
    np.savez(path, step=0, of_another="version")
    assert not run(epochs=3, initial_epoch=2)
