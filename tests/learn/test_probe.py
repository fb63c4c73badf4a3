import json

import numpy as np
import pytest

from bocage.embeddings import open_embeddings
from bocage.errors import InputError, StoreError
from bocage.learn.classes import make_classes
from bocage.learn.fit import METHODS, Training, fit
from bocage.learn.probe import FittedOn, Probe, load_probe

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 8)).astype(np.float32)
TARGETS = {
    "classification": rng.integers(0, 3, 90),
    "multilabel": rng.random((90, 3)) > 0.5,
    "regression": rng.normal(size=90).astype(np.float32),
}
CLASSES = make_classes({10: "water", 20: "forest", 40: "field"})


def make(method, task, **embedding):
    classes = () if task == "regression" else CLASSES
    data = Training(x=X, y=TARGETS[task], task=task, n_classes=len(classes), rows=np.arange(90))
    return Probe(
        estimator=fit(method, data),
        method=method,
        setting={"c": 1.0},
        task=task,
        classes=classes,
        embedding=FittedOn(dims=8, **embedding),
        target="cover",
        n_samples=90,
        scores={"accuracy": 0.5},
    )


EVERY = [(m.name, task) for m in METHODS.values() for task in m.tasks]


@pytest.mark.parametrize(("method", "task"), EVERY)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_saved_probe_predicts_the_same(method, task, tmp_path):
    probe = make(method, task, model="m", patch_size=4, weights_id="random:0", sensors=("a", "b"))
    probe.save(tmp_path / "p")
    assert {p.name for p in (tmp_path / "p").iterdir()} == {"probe.json", "arrays.npz"}
    again = load_probe(tmp_path / "p")
    np.testing.assert_array_equal(again.predict(X), probe.predict(X))
    assert again.embedding == probe.embedding and again.classes == probe.classes
    assert again.setting == {"c": 1.0} and again.target == "cover"


def test_predictions_are_class_values_flags_and_numbers():
    assert set(make("logistic", "classification").predict(X)) <= {10, 20, 40}
    flags = make("logistic", "multilabel").predict(X)
    assert flags.dtype == bool and flags.shape == (90, 3)
    numbers = make("ridge", "regression").predict(X)
    assert numbers.dtype == np.float32 and numbers.shape == (90,)
    p = make("logistic", "classification").predict_proba(X)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", ["logistic", "knn", "forest"])
def test_rows_without_data_give_nan_and_change_no_other(method):
    probe = make(method, "classification")
    holes = X.copy()
    holes[[3, 50], [0, 7]] = np.nan
    found, clean = probe.predict_proba(holes), probe.predict_proba(X)
    assert np.isnan(found[[3, 50]]).all()
    np.testing.assert_array_equal(np.delete(found, [3, 50], 0), np.delete(clean, [3, 50], 0))
    with pytest.raises(InputError, match="2 rows without data"):
        probe.predict(holes)
    assert np.isnan(probe.predict_proba(np.full((2, 8), np.nan, np.float32))).all()


def test_a_probe_refuses_what_it_was_not_fitted_on(store):
    probe = make("logistic", "classification", model="olmoearth-v1.2-nano", weights_id="random:0")
    probe.check(open_embeddings(store))
    with pytest.raises(InputError, match=r"shape \(90, 5\).*\[n, 8\]"):
        probe.predict(X[:, :5])
    for own in ({"model": "olmoearth-v1.3-base"}, {"weights_id": "abc"}):
        with pytest.raises(InputError, match=f"{next(iter(own))} "):
            make("logistic", "classification", **own).check(open_embeddings(store))
    with pytest.raises(InputError, match="probe of numbers"):
        make("ridge", "regression").predict_proba(X)


def test_damaged_and_foreign_probes_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no readable probe"):
        load_probe(tmp_path)
    make("logistic", "classification").save(tmp_path / "p")
    text = json.loads((tmp_path / "p/probe.json").read_text())
    for change, message in (
        ({"format": "other"}, "of other 1"),
        ({"version": 9}, "bocage-probe 9"),
        ({"estimator": {"kind": "svm", "options": {}}}, "kind 'svm'"),
        ({"estimator": {"kind": "forest", "options": {}}}, "a forest probe with"),
        ({"classes": None}, "no readable probe"),
        ({"estimator": None}, "no readable probe"),
    ):
        (tmp_path / "p/probe.json").write_text(json.dumps({**text, **change}))
        with pytest.raises(StoreError, match=message):
            load_probe(tmp_path / "p")
    (tmp_path / "p/probe.json").write_text(json.dumps(text))
    data = (tmp_path / "p/arrays.npz").read_bytes()
    (tmp_path / "p/arrays.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match="no readable probe"):
        load_probe(tmp_path / "p")
    np.savez(tmp_path / "p/arrays.npz", weight=np.array([object()]))  # a pickle inside
    with pytest.raises(StoreError, match="no readable probe"):
        load_probe(tmp_path / "p")
