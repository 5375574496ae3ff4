import dataclasses
import json
import math

import numpy as np
import pytest

from keras_hessian_callback import CurvatureReport, Estimate, Spectrum

NORM = Estimate(2.0, standard_error=0.1, lower=1.8, upper=math.inf, num_matvecs=32)
REPORT = CurvatureReport(
    {"frobenius_norm": NORM},
    num_parameters=50,
    num_examples=8,
    num_matvecs=32,
    seconds=0.5,
    method="Hutchinson(num_probes=32)",
    layers={"dense": NORM},
    spectrum=Spectrum(np.array([-1.0, math.inf]), np.array([0.25, 0.75])),
)


def test_estimate_is_a_float_to_those_who_want_one():
    assert float(NORM) == 2.0


def test_report_is_a_mapping_of_its_estimates():
    assert REPORT["frobenius_norm"] is NORM
    assert dict(REPORT) == {"frobenius_norm": NORM}
    assert len(REPORT) == 1
    with pytest.raises(KeyError):
        REPORT["no such thing"]


def test_report_is_short_in_print_and_names_what_it_has():
    assert str(REPORT) == "Hutchinson(num_probes=32), 32 products\nfrobenius_norm: 2 [1.8, inf]"
    with pytest.raises(KeyError, match="'norm'; the report has frobenius_norm"):
        REPORT["norm"]


@pytest.mark.parametrize("record", [NORM, REPORT])
def test_records_are_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.num_matvecs = 0


def test_to_dict_is_strict_json():
    text = json.dumps(REPORT.to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "estimates": {
            "frobenius_norm": {
                "value": 2.0,
                "standard_error": 0.1,
                "lower": 1.8,
                "upper": None,
                "num_matvecs": 32,
            }
        },
        "num_parameters": 50,
        "num_examples": 8,
        "num_matvecs": 32,
        "seconds": 0.5,
        "method": "Hutchinson(num_probes=32)",
        "products": "autodiff",
        "num_folds": 1,
        "carried": False,
        "pool_size": None,
        "batch_size": None,
        "preconditioned": False,
        "stability_threshold": None,
        "block_size": None,
        "spectrum": {"nodes": [-1.0, None], "weights": [0.25, 0.75]},
        "layers": {
            "dense": {
                "value": 2.0,
                "standard_error": 0.1,
                "lower": 1.8,
                "upper": None,
                "num_matvecs": 32,
            }
        },
    }
