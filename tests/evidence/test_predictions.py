"""Predictions: what is not a run's own is refused, errors and calibration are counted right."""

import numpy as np
import pandas as pd
import pytest
from fabricate import record
from fabricate_predictions import predictions

from lora_study.evidence.predictions import read_predictions, reliability


def frame(labels, probabilities):
    return pd.DataFrame({"id": range(len(labels)), "label": labels, "probability": probabilities})


def test_a_run_s_own_predictions_are_read(tmp_path):
    run = record(test=0.8)
    predictions(run).to_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(read_predictions(tmp_path, run), predictions(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="label"), "column label is missing"),
        (lambda rows: rows[:-1], "counts other test reviews"),
        (lambda rows: rows.assign(id="same"), "one twice"),
        (lambda rows: rows.assign(label=rows["label"] + 1), "labels are not all 0 or 1"),
        (lambda rows: rows.assign(probability=rows["probability"].where(rows.index > 0)), "not all between 0 and 1"),
        (lambda rows: rows.assign(label=1 - rows["label"]), "makes 20.00% where the record says 80.00%"),
    ],
)
def test_predictions_that_cannot_be_the_run_s_are_refused(tmp_path, change, message):
    run = record(test=0.8)
    change(predictions(run)).to_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path, run)


def test_half_a_file_is_refused(tmp_path):
    run, path = record(test=0.8), tmp_path / "predictions.parquet"
    predictions(run).to_parquet(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="Parquet"):
        read_predictions(tmp_path, run)


def test_reliability_of_a_calibrated_and_of_an_overconfident_model():
    labels = np.tile([1, 1, 1, 0], 25)
    assert reliability([frame(labels, np.full(100, 0.75))]).error == pytest.approx(0)
    found = reliability([frame(labels, np.full(100, 0.95))])
    assert found.error == pytest.approx(0.2)
    np.testing.assert_allclose([found.predicted, found.observed, found.reviews], [[0.95], [0.75], [100]])


def test_opposite_faults_of_two_seeds_do_not_cancel():
    labels = np.tile([1, 1, 1, 0], 25)
    found = reliability([frame(labels, np.full(100, said)) for said in (0.78, 0.71)])
    assert found.error == pytest.approx((0.03 + 0.04) / 2)
    np.testing.assert_allclose([found.predicted, found.observed, found.reviews], [[0.745], [0.75], [200]])


def test_reliability_weighs_bins_by_reviews():
    """By hand: two bins, |0.2 - 0| on 3 of 4 reviews and |1 - 0| on 1 of 4."""
    found = reliability([frame([0, 0, 0, 0], [0.2, 0.2, 0.2, 1.0])])
    assert found.error == pytest.approx(0.75 * 0.2 + 0.25 * 1.0)
    assert found.reviews.tolist() == [3, 1]
