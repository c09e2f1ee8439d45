"""The model that ships: made again, opened, and its file."""

import json
import pickle
from importlib import resources

import numpy as np
import pytest

import rheidae
from rheidae import pretrained as _function
from rheidae.export import load_exported
from rheidae.export.__main__ import main as export
from rheidae.predict import predict_file
from rheidae.pretrained import HELD_OUT, card, make, pretrained, pretrained_run
from rheidae.system.h5 import create_h5
from tests.states import random_states

MODEL = resources.files("rheidae.pretrained") / "model"


def total(F):
    return F[:, :, 3].sum(axis=1)[:, None, None]


@pytest.fixture(scope="module")
def states():
    F = 1e33 * random_states(400, 3, alike=True)
    F[7] = 0.0
    return F


def test_it_comes_without_an_optimizer_until_that_is_asked_for(states):
    """The optimizer's imports take as long as those of torch."""
    model = pickle.loads(pickle.dumps(pretrained()))
    assert "optimizer_" not in vars(model)
    before = model.predict(states[:7])
    assert model.set_params(lr=0.5).optimizer_.param_groups[0]["lr"] == 0.5
    assert [group["weight_decay"] for group in model.optimizer_.param_groups] == [0.01, 0.0]
    X = states[8:40].reshape(-1, 24)
    model.partial_fit(np.concatenate([X, X], axis=1), X)
    assert (model.predict(states[:7]) != before).any()
    with pytest.raises(AttributeError, match="no attribute 'optimiser_'"):
        _ = model.optimiser_


def test_it_is_what_the_command_makes(states, tmp_path):
    """Sums differ in their last digits from one processor to the next, and so a training does a little."""
    again = make(tmp_path / "again")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in MODEL.iterdir())
    made = rheidae.load_run(again).regressor
    assert (np.abs(made.predict(states[:7]) - pretrained().predict(states[:7])) / total(states[:7])).max() < 1e-4
    shipped, new = (json.loads((folder / "run.json").read_text()) for folder in (MODEL, again))
    for key in ("groups", "seed", "feature_names", "parameters"):
        assert new[key] == shipped[key]
    assert ((again / "rows.npz").read_bytes()) == (MODEL / "rows.npz").read_bytes()
    assert not set(HELD_OUT) & set(shipped["groups"])


def test_no_times_and_places():
    text = "".join(path.read_text() for path in MODEL.iterdir() if path.suffix in (".json", ".yaml", ".md"))
    assert "/tmp" not in text
    assert "/home" not in text
    assert "seconds" not in text


def test_it_is_small_and_says_what_it_is():
    assert len((MODEL / "model.onnx").read_bytes()) < 200_000
    assert "Model card: pretrained" in card()
    assert _function is pretrained is rheidae.pretrained
    assert pretrained_run().rows["train"].size > 150


def test_its_file_answers_as_it_does(states, tmp_path, capsys):
    assert export(["--pretrained", "--out", str(tmp_path / "model.onnx")]) == 0
    assert "F_init (n, 24) -> F_final (n, 24)" in capsys.readouterr().out
    model = load_exported(tmp_path / "model.onnx")
    assert model.metadata["run"]["data_fingerprint"] == json.loads((MODEL / "run.json").read_text())["data_fingerprint"]
    filled = np.delete(states, 7, axis=0)
    assert (np.abs(model.predict(filled) - pretrained().predict(filled)) / total(filled)).max() < 1e-6
    np.testing.assert_array_equal(model.predict(states[7:8]), states[7:8])


def test_predict_knows_it_by_name(states, tmp_path):
    with create_h5(tmp_path / "in.h5") as (file, _):
        file["F_init"] = states[8:20]
    predict_file("pretrained", tmp_path / "in.h5", tmp_path / "out.h5")
    import h5py

    with h5py.File(tmp_path / "out.h5") as file:
        mixed = file["mixed/F"][()]
    np.testing.assert_allclose(mixed, pretrained().predict(states[8:20]), rtol=1e-5)


def test_names_of_files(tmp_path, capsys):
    assert export(["--pretrained", "--out", str(tmp_path / "model.bin")]) == 2
    assert "has to end in .onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(["--out", str(tmp_path / "model.onnx")])
    assert "--pretrained --scheme is required" in capsys.readouterr().err
