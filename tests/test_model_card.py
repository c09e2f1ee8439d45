"""The model card that training leaves behind, and the citation file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tomllib
import yaml

from rheidae import fourflux
from rheidae.config import TrainParms, check_config
from rheidae.runs import folder as runs
from rheidae.runs import report, score, train
from rheidae.scoring.metrics import flux_error
from tests.runs import PARMS, config_for

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(processed, tmp_path_factory):
    folder = train.train(config_for(processed, tmp_path_factory.mktemp("card")), PARMS, "card")
    return folder, (folder / "MODEL_CARD.md").read_text()


def cells(card, first):
    """The other cells of the table row that begins with a text."""
    (row,) = (line for line in card.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.removeprefix(f"| {first} |").split("|")[:-1]]


def unseen(run, data):
    keys = runs.row_keys(data.data, data.target)
    return ~np.isin(keys, np.concatenate([run.rows["train"], run.rows["valid"]]))


def test_results_are_those_of_unseen_rows(trained, data):
    folder, card = trained
    run = runs.load_run(folder)
    for group, role in (("nsm_b", "unseen family"), ("random", "held out")):
        rows = unseen(run, data) & (data.groups == group)
        init, target = data.data[rows, :24], data.target[rows]
        model = flux_error(target, run.regressor.predict(data.data[rows]), init).mean()
        box = flux_error(target, data.data[rows, 24:], init).mean()
        count, error, skill, *_ = cells(card, f"{group} | {role} | model")
        assert (count, error[:7], skill[:5]) == (str(rows.sum()), f"{model:.5f}", f"{1 - model / box:.3f}")
        assert cells(card, f"{group} | {role} | Box3D")[1][:7] == f"{box:.5f}"
    assert "rows that took no part in training" in card


def test_evaluation_says_the_same_of_the_same_rows(trained, processed):
    folder, card = trained
    source = processed / "preprocessed_all.h5"
    tallies, _, about = score.score_folder(folder, source)
    lines = report.entries(report.report_on(tallies, source, about))
    for table in (report.score_table(lines), report.coverage_table(lines)):
        assert table in card


def test_ranges_of_the_training_rows(trained, data):
    folder, card = trained
    run = runs.load_run(folder)
    rows = np.isin(runs.row_keys(data.data, data.target), run.rows["train"])
    F = data.data[rows, :24].reshape(-1, 6, 4).astype(np.float64)
    known = json.loads((folder / "run.json").read_text())["training_range"]
    assert known["groups"] == {group: (data.groups[rows] == group).sum() for group in ("nsm_a", "random")}
    factor = np.linalg.norm(F[:, 3, :3], axis=1) / F[:, 3, 3]
    assert known["flux_factor"]["nubar_e"] == pytest.approx([factor.min(), factor.max()])
    assert cells(card, "flux factor, nubar_e") == [f"{factor.min():.3g}", f"{factor.max():.3g}"]
    total = F[:, :, 3].sum(axis=1) * 1e33
    assert known["unit"] == "1/cm^3"
    assert known["total_density"] == pytest.approx([total.min(), total.max()])
    assert known["with_crossing"] == 1.0
    part = F[:, 0, 3] * 1e33 / total
    assert known["density_fraction"]["nu_e"] == pytest.approx([part.min(), part.max()])


def test_coverage_of_the_standard_deviations(trained, data):
    folder, card = trained
    run = runs.load_run(folder)
    rows = unseen(run, data) & (data.groups == "nsm_b")
    prediction, std = run.regressor.predict(data.data[rows], return_std=True)
    total = fourflux.total_density(data.data[rows, :24])
    within = np.abs(prediction - data.target[rows]) < 1.6448536 * std  # mu and tau as they are
    stated = card[card.index("within the 90 % interval") :]
    by_species = within.reshape(-1, 6, 4).mean(axis=(0, 2))
    width = (
        1.6448536 * np.median(std / total[:, None]) / np.median(np.abs(prediction - data.target[rows]) / total[:, None])
    )
    expected = [f"{within.mean():.3f}", *(f"{value:.2f}" for value in by_species), f"{width:.1f}"]
    first, *others = cells(stated, "nsm_b | unseen family")
    assert [first.split(" [")[0], *others] == expected


SYMMETRIES = (
    "flavor sums of every component, lepton number of every flavor", "a rotated state gives a rotated answer",
    "a mirrored state gives a mirrored answer", "mu and tau exchanged", "another unit (1e10)",
    "a state without a crossing stays as it is",
)  # fmt: skip


def test_symmetries_that_a_network_breaks_are_seen(trained, processed, tmp_path):
    _, card = trained
    assert all(float(cells(card, name)[0]) < 1e-6 for name in SYMMETRIES)
    model = {"architecture": "residual", "frame": "lab", "conserve": False}
    parms = check_config({"predict_residual": False}, TrainParms)
    broken = train.train(config_for(processed, tmp_path, model=model), parms, "lab") / "MODEL_CARD.md"
    deviations = [float(cells(broken.read_text(), name)[0]) for name in SYMMETRIES]
    conservation, rotation, reflection, _, unit, stable = deviations
    assert min(conservation, rotation, reflection, stable) > 1e-4
    assert unit < 1e-6


def test_names_what_shapes_the_gradients(trained, dozens, tmp_path):
    assert "- gradients:" not in trained[1]
    weighting = {"scheme": "dwa", "params": {"temperature": 3.0}}
    parms = check_config({"weighting": weighting, "pcgrad": True, "constraints": {"enabled": True}}, TrainParms)
    card = (train.train(config_for(dozens, tmp_path, training={"epochs": 1}), parms, "x") / "MODEL_CARD.md").read_text()
    line = "- gradients: weighting dwa (temperature = 3.0), PCGrad, constraints (lr_lambda = 0.01, rho = 1.0)"
    assert line in card.splitlines()


def test_says_so_where_no_unseen_rows_are_left(dozens, tmp_path):
    everything = {"test_split": 0.0, "holdout_groups": []}
    config = config_for(dozens, tmp_path, data=everything, training={"epochs": 1})
    card = (train.train(config, PARMS, "valid") / "MODEL_CARD.md").read_text()
    assert "the validation rows, **which chose the best epoch**" in card
    assert cells(card, "all | validation | model")[0] == "5"
    config = config_for(dozens, tmp_path, data=everything | {"val_split": 0.0}, training={"epochs": 1})
    card = (train.train(config, PARMS, "train") / "MODEL_CARD.md").read_text()
    assert "**the training rows**" in card
    assert cells(card, "all | training | model")[0] == "48"


def test_names_versions_limits_and_how_to_cite(trained):
    folder, card = trained
    about = json.loads((folder / "run.json").read_text())
    assert card.count(about["data_fingerprint"]) == 2
    for name in ("torch", "numpy", "rheidae"):
        assert f"{name} {about['versions'][name]}" in card
    assert "Trained on 2 families: nsm_a, random." in card
    assert "Held out as whole groups: nsm_b, three_d." in card
    assert "arXiv:2409.04405" in card
    assert "Every training state has a crossing" in card


GROUPS = (("nsm_a", "held out"), ("random", "held out"), ("nsm_b", "unseen family"), ("three_d", "unseen family"))


def test_limits_name_where_the_model_is_worst_and_too_sure_of_itself(trained):
    _, card = trained
    limits = card[card.index("## Limits") : card.index("## Versions")]
    groups = [f"{group} | {role}" for group, role in GROUPS]
    skills = {group: cells(card, f"{group} | model")[2] for group in groups}
    worst = min(skills, key=lambda group: float(skills[group].split()[0]))
    assert f"worst on {worst.replace(' | ', ' (')}): skill {skills[worst]}, " in limits
    stated = card[card.index("within the 90 % interval") :]
    covered = {group: float(cells(stated, group)[0].split()[0]) for group in groups}
    assert covered["three_d | unseen family"] < 0.8  # where this was written: 0.4
    for group, part in covered.items():
        name = re.escape(group.replace(" | ", " (") + ")")
        named = re.search(rf"of {name} (\d+) %", limits.split("too small")[1])
        assert (named is not None) == (part < 0.8)
        assert named is None or abs(int(named[1]) - 100 * part) < 0.6  # both are rounded


def test_a_run_that_starts_anew_has_no_card_of_the_old_one(processed, tmp_path):
    folder = tmp_path / "runs" / "card"
    folder.mkdir(parents=True)
    (folder / "MODEL_CARD.md").write_text("of the run before")
    runs.clear_run(folder)
    assert list(folder.iterdir()) == []


def test_citation_file_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What the schema of version 1.2.0 requires.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": author["name"]} for author in project["authors"]]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
