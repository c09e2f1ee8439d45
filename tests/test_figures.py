"""Each figure can be read alone, by any eyes, and whatever the user's settings of matplotlib are."""

import logging
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.utils import Bunch

from rheidae.runs import train as training
from rheidae.runs.report import report_on
from rheidae.scoring import figures, plots, scores
from rheidae.scoring.tally import Tallies
from tests.runs import PARMS, config_for

# Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, blindness):
    """CIE L*a*b* of a colour as seen by some eyes."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    t = TO_XYZ @ seen / (TO_XYZ @ np.ones(3))
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_schemes_are_told_apart_by_any_eyes(blindness):
    for first, second in combinations(figures.COLORS, 2):
        distance = np.linalg.norm(lab(figures.COLORS[first], blindness) - lab(figures.COLORS[second], blindness))
        assert distance > 25, (first, second, distance)


@pytest.fixture(scope="module")
def scored(data):
    rows = np.flatnonzero(data.groups == "nsm_a")[:40]
    part = Bunch(**{name: data[name][rows] for name in ("data", "target", "groups", "dirname")}, filename="x")
    prediction = 0.3 * part.data[None, :, 24:] + 0.7 * part.target[None]
    role = np.array(["held out"] * 30 + ["unseen family"] * 10)
    one = scores.score(part, np.arange(40), role, np.arange(40), prediction)
    return one, report_on(Tallies().add(one), "x", {"model": "m", "seeds": [0]}, resamples=20)


@pytest.fixture
def kept(monkeypatch):
    """The figures that are saved, in their order."""
    figures_of = {}

    def savefig(figure, file, **_):
        figure.canvas.draw()
        figures_of[len(figures_of)] = figure
        file.write(b"\x89PNG")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures_of


def test_every_figure_of_an_evaluation_explains_itself(scored, kept, tmp_path):
    written = figures.write_figures(*scored, tmp_path)
    assert len(written) == 6
    shown = list(kept.values())
    captions = [" ".join(figure._supxlabel.get_text().split()) for figure in shown]
    errors, species, parity, depth, skill, sphere = captions
    assert "four-flux distance over the row's total density" in errors
    assert "mean over the scored rows" in species
    assert "the 40 scored rows (30 held out, 10 unseen family)" in parity
    assert "prediction and simulation agree" in parity
    assert "the 40 scored rows (30 held out, 10 unseen family)" in depth
    assert "Lines: medians" in depth
    assert "1 - mean error / mean error of Box3D; 0 is Box3D" in skill
    assert "White line: the crossing" in sphere
    for figure, caption in zip(shown, captions, strict=True):
        assert all(axes.get_legend() is None for axes in figure.axes), caption  # none over a point
        assert figure.bbox.x1 >= figure._supxlabel.get_window_extent().x1, caption
    for axes in shown[2].axes:
        points, line = axes.lines
        assert line.get_zorder() < points.get_zorder()
    (axes,) = shown[4].axes
    low, high = axes.get_ylim()
    assert min(0 - low, high - 0) > 0.02 * (high - low)


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_show_the_best_epoch_and_no_empty_panel(weighted, kept, tmp_path):
    extra = {"weight_density": 2.0} if weighted else {}
    history = [
        {"epoch": e, "train_loss": 1.0 / e, "valid_loss": loss, "train_density": 0.5, "lr": 0.1, **extra}
        for e, loss in enumerate([2.0, 1.0, 1.5], start=1)
    ]
    plots.loss_curve(history, tmp_path / "loss.png")
    (figure,) = kept.values()
    assert len(figure.axes) == (4 if weighted else 3)
    for axes in figure.axes:
        assert "lowest validation loss, epoch 2" in [line.get_label() for line in axes.lines]
        assert axes.get_xlabel() == "epoch"
    assert "fixed weights" in figure._supxlabel.get_text()


def test_settings_of_the_user_stay_outside(tmp_path):
    history = [{"epoch": e, "train_loss": 1.0 / e, "lr": 0.1} for e in (1, 2)]
    plots.loss_curve(history, tmp_path / "ours.png")
    strange = {
        "text.usetex": True, "savefig.format": "pdf", "savefig.bbox": "tight", "figure.facecolor": "black",
        "font.family": "No Such Font", "axes.formatter.use_locale": True, "lines.linewidth": 9.0,
        "path.effects": [],
    }  # fmt: skip
    with mpl.rc_context(strange):
        plots.loss_curve(history, tmp_path / "theirs.png")
        assert mpl.rcParams["lines.linewidth"] == 9.0
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "ours.png").read_bytes()


def test_a_figure_that_fails_is_a_warning(scored, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(figures, "parity", fail)
    written = figures.write_figures(*scored, tmp_path)
    assert [path.stem for path in written] == ["errors", "species", "depth", "skill", "sphere"]
    assert "parity.png is not drawn (RuntimeError: no ink)" in caplog.text


def test_training_survives_its_figure(processed, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr(plots, "loss_curve", fail)
    with caplog.at_level(logging.WARNING):
        folder = training.train(config_for(processed, tmp_path), PARMS, "run")
    assert (folder / "MODEL_CARD.md").is_file()
    assert "loss.png is not drawn (RuntimeError: no ink)" in caplog.text
