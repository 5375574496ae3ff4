import dataclasses
import math
import os

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from keras_hessian_callback import CurvatureReport, Estimate
from keras_hessian_callback.summaries import SummaryWriter


def report(value: float) -> CurvatureReport:
    norm = Estimate(value, 0.1, value - 0.2, value + 0.2, 32)
    trace = Estimate(-value, math.nan, math.nan, math.nan, 32)
    return CurvatureReport({"frobenius_norm": norm, "trace": trace}, 5, 8, 32, 0.1, "method")


def events(directory) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: steps and values of scalars by tag."""
    accumulator = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
        if tag in accumulator.PluginTagToContent("scalars")
    }


def test_every_estimate_is_written_with_its_band(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(1.0), step=3)
    writer.write(report(2.0), step=7)
    read = events(tmp_path / "hessian")
    assert set(read) == {
        f"hessian/{name}{end}"
        for name in ("frobenius_norm", "trace")
        for end in ("", "/lower", "/upper")
    }
    assert read["hessian/frobenius_norm"] == [(3, 1.0), (7, 2.0)]
    assert read["hessian/frobenius_norm/lower"] == [
        (3, pytest.approx(0.8)),
        (7, pytest.approx(1.8)),
    ]
    assert read["hessian/frobenius_norm/upper"] == [
        (3, pytest.approx(1.2)),
        (7, pytest.approx(2.2)),
    ]
    assert read["hessian/trace"] == [(3, -1.0), (7, -2.0)]
    assert all(math.isnan(value) for _, value in read["hessian/trace/lower"])
    writer.close()


def test_the_share_of_the_time_is_a_scalar_of_its_own(tmp_path):
    SummaryWriter(tmp_path).write_overhead(0.25, step=4)
    assert events(tmp_path / "hessian") == {"hessian/overhead": [(4, 0.25)]}


def test_a_group_has_its_own_directory_and_tags(tmp_path):
    SummaryWriter(tmp_path, "other").write(report(1.0), step=0)
    assert all(tag.startswith("other/") for tag in events(tmp_path / "other"))
    assert os.listdir(tmp_path) == ["other"]


def test_the_threshold_is_written_where_there_is_one(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(1.0), step=0)
    writer.write(dataclasses.replace(report(2.0), stability_threshold=6.5), step=1)
    assert events(tmp_path / "hessian")["hessian/stability_threshold"] == [(1, 6.5)]


def test_nothing_is_written_before_the_first_measurement(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.close()
    assert os.listdir(tmp_path / "hessian") == []


def test_values_are_on_disk_at_once(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(1.0), step=0)
    assert "hessian/trace" in events(tmp_path / "hessian")  # not closed yet


def test_a_closed_writer_opens_another_file(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.write(report(1.0), step=0)
    writer.close()
    writer.write(report(2.0), step=1)
    writer.close()
    assert events(tmp_path / "hessian")["hessian/frobenius_norm"] == [(0, 1.0), (1, 2.0)]


def test_a_record_if_of_others_does_not_silence_it(tmp_path):
    with tf.summary.record_if(False):
        SummaryWriter(tmp_path).write(report(1.0), step=0)
    assert "hessian/frobenius_norm" in events(tmp_path / "hessian")


def test_the_step_of_others_is_left_alone(tmp_path):
    tf.summary.experimental.set_step(12)
    SummaryWriter(tmp_path).write(report(1.0), step=0)
    assert tf.summary.experimental.get_step() == 12
    tf.summary.experimental.set_step(None)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"`log_dir` cannot be written to.*log_dir=None"):
        SummaryWriter(tmp_path / "file")


def test_bad_steps_and_axes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`x_name` must be 'epoch' or 'step'; got 'batch'"):
        SummaryWriter(tmp_path, x_name="batch")
    with pytest.raises(TypeError, match=r"`step` must be an integer; got 2\.5"):
        SummaryWriter(tmp_path).write(None, 2.5)
