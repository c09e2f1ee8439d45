"""Families of random initial states: what they promise, held to Box3D's integrals and to the files that ship."""

from importlib import resources

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheidae import box3d
from rheidae.config import check_config
from rheidae.exceptions import ConfigError
from rheidae.mixing.asymptotic import crossings
from rheidae.simulate.archive import read_states, simulate_archive
from rheidae.simulate.config import SimulateConfig
from rheidae.simulate.families import DENSITY, FAMILIES, draw

OF_A_KIND = ([0], [3], [1, 2, 4, 5])


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_what_their_family_says(name):
    rows = range(40)
    for F, row in zip(draw(name, rows), rows, strict=True):
        family = FAMILIES[name][row % len(FAMILIES[name])]
        length = np.linalg.norm(F[:, :3], axis=1)
        for species, density, factor in zip(OF_A_KIND, family.densities, family.flux_factors, strict=True):
            assert np.all(np.abs(F[species, 3] / DENSITY - np.mean(density)) <= np.ptp(density) / 2 + 1e-12)
            found = length[species] / F[species, 3]
            assert np.all(np.abs(found - np.mean(factor)) <= np.ptp(factor) / 2 + 1e-12)
        direction = F[:, :3] / length[:, None]
        widest = np.degrees(np.arccos((direction @ direction.T).clip(-1, 1))).max()
        assert widest <= min(2 * family.cone, 180) + 1e-5
        assert np.array_equal(F[1], F[2]) == np.array_equal(F[4], F[5]) == (family.heavy != "unlike")
        assert np.array_equal(F[1], F[4]) == (family.heavy == "alike")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_state_has_a_crossing_as_deep_as_its_family_says(name):
    F = draw(name, range(40))
    assert crossings(F).any(axis=1).all()
    if name == "mutau":
        return
    answer = box3d(F)
    depth = np.minimum(answer.I_plus, answer.I_minus) / np.maximum(answer.I_plus, answer.I_minus)
    low, high = FAMILIES[name][0].depth
    assert np.all((depth > 0.95 * low) & (depth < 1.05 * high))


@settings(max_examples=20)
@given(name=st.sampled_from(list(FAMILIES)), rows=st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
def test_a_row_does_not_depend_on_the_others(name, rows):
    together = draw(name, rows, seed=3)
    assert together.shape == (len(rows), 6, 4)
    assert np.array_equal(together[-1], draw(name, rows[-1:], seed=3)[0])
    assert not np.array_equal(together, draw(name, rows, seed=4))


def test_directions_of_a_family_have_no_preferred_axis():
    F = draw("supernova", range(300))
    along = F[:, :, :3].sum(axis=1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    assert np.abs(along.mean(axis=0)).max() < 0.12  # isotropic: 0 to 0.033, standard deviation
    assert np.abs((along**2).mean(axis=0) - 1 / 3).max() < 0.08


@pytest.mark.parametrize("name", ["weak", "supernova", "wide"])
def test_the_shipped_states_are_those_of_the_family(name):
    with resources.as_file(resources.files("rheidae.datasets") / f"data/asymptotic_{name}.h5") as path:
        shipped = read_states(path)
        with h5py.File(path) as file:
            rows = [int(one.decode().rsplit("row", 1)[1]) for one in file["directorynames"]]
    assert np.allclose(shipped, draw(name, rows), rtol=0, atol=1e-12 * DENSITY)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({}, "name either a file, `path`, or a `family`"),
        ({"path": "x.h5", "family": "weak", "max_rows": 2}, "name either a file, `path`, or a `family`"),
        ({"family": "weak"}, "a family has no end"),
        ({"family": "week", "max_rows": 2}, "weak"),
    ],
)
def test_states_come_from_one_source_and_end(states, message):
    with pytest.raises(ConfigError, match=message):
        check_config({"states": states}, SimulateConfig)


def test_an_unknown_family_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="no family of states 'week'; known: random, wide"):
        draw("week", [0])


def test_an_archive_of_a_family(tmp_path):
    options = {"dimensions": 1, "cells": 64, "wavelengths": 10.0, "saturation_times": 1.0}
    config = {
        "states": {"family": "supernova", "rows": [4, 2, 9], "max_rows": 2, "seed": 5},
        "output_root": str(tmp_path),
        "options": options,
    }
    written = simulate_archive(check_config(config, SimulateConfig))
    assert np.allclose(read_states(written.path), draw("supernova", [4, 2], seed=5), rtol=1e-12)
    with h5py.File(written.path) as file:
        assert [one.decode() for one in file["directorynames"]] == ["supernova/1D/row4", "supernova/1D/row2"]
        for group in file["angular"].values():
            assert np.isfinite(group["probability"][:, :, 0]).all()
