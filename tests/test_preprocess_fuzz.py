"""Malformed raw files of every kind: each is refused with file and dataset, or processed correctly."""

import itertools
import json
import random
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from rheidae import fourflux
from rheidae.exceptions import DataError, OutputError
from rheidae.preprocess import pipeline
from rheidae.preprocess.rawfile import AXIS_NAMES, possible_axes
from rheidae.system import outputs
from tests.rawfiles import INIT, NAMES, TRUE, config_for, read_all
from tests.states import random_states

pytestmark = pytest.mark.slow

STDDEV, GROWTH = "F4_final_stddev(1|ccm)", "growthRate(1|s)"
COUNT = {"files": 0, "processed": 0, "refused": 0}


def emu(F, axes):
    """`F` (n, 6, 4) with the given axes."""
    layout = AXIS_NAMES[len(axes) == 3]
    raw = fourflux.to_emu(F).reshape((len(F), 4, 2, 3) if len(axes) == 4 else (len(F), 4, 6))
    return raw.transpose([layout.index(axis) for axis in axes])


# What can be in the place of a dataset. Each takes (file, name, array); the ones below cannot be processed.


def external_storage(file, name, values):
    file.create_dataset(name, shape=values.shape, dtype="f8", external=[("absent.bin", 0, h5py.h5f.UNLIMITED)])


def virtual(file, name, values):
    layout = h5py.VirtualLayout(shape=values.shape, dtype="f8")
    layout[...] = h5py.VirtualSource("absent.h5", "x", shape=values.shape)
    file.create_virtual_dataset(name, layout, fillvalue=np.nan)


def corrupt_chunk(file, name, values):
    made = file.create_dataset(name, shape=values.shape, dtype="f8", chunks=values.shape, compression="gzip")
    made.id.write_direct_chunk((0,) * values.ndim, b"this is not what zlib writes")


def checksum_fails(file, name, values):
    made = file.create_dataset(name, shape=values.shape, dtype="f8", chunks=values.shape, fletcher32=True)
    made.id.write_direct_chunk((0,) * values.ndim, np.ascontiguousarray(values, "f8").tobytes() + b"1234")


def store(**options):
    return lambda file, name, values: file.create_dataset(name, data=values, **options)


def replaced(change):
    return lambda file, name, values: file.create_dataset(name, data=change(values))


def unwritten(**options):
    return lambda file, name, values: file.create_dataset(name, shape=values.shape, **options)


def endless(file, name, values):
    file.create_dataset(name, shape=(10**13, 4, 2, 3), dtype="f8", chunks=(16, 4, 2, 3))


BROKEN = {
    "missing": lambda file, name, values: None,
    "group": lambda file, name, values: file.create_group(name),
    "dangling link": lambda file, name, values: file.__setitem__(name, h5py.SoftLink("/absent")),
    "loop": lambda file, name, values: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
    "dangling external link": lambda file, name, values: file.__setitem__(name, h5py.ExternalLink("absent.h5", "/x")),
    "named type": lambda file, name, values: file.__setitem__(name, np.dtype("f8")),
    "scalar": lambda file, name, values: file.__setitem__(name, 1.0),
    "null": lambda file, name, values: file.__setitem__(name, h5py.Empty("f8")),
    "complex": replaced(lambda values: values.astype(complex)),
    "bool": replaced(lambda values: values > 0),
    "strings": replaced(lambda values: values.astype("S8")),
    "variable strings": unwritten(dtype=h5py.string_dtype()),
    "compound": replaced(lambda values: np.zeros(values.shape, dtype=[("a", "f8"), ("b", "i4")])),
    "opaque": replaced(lambda values: np.zeros(values.shape, dtype="V8")),
    "ragged": unwritten(dtype=h5py.vlen_dtype("f8")),
    "references": unwritten(dtype=h5py.ref_dtype),
    "flat": replaced(lambda values: values.reshape(len(values), -1)),
    "one axis more": replaced(lambda values: values[None]),
    "component missing": replaced(lambda values: values[:, :3] if values.ndim > 1 else values[:0]),
    "no rows": replaced(lambda values: values[:0]),
    "one row less": replaced(lambda values: values[:-1]),
    "external storage": external_storage,
    "virtual": virtual,
    "never written": unwritten(dtype="f8", chunks=True),
    "filled with NaN": unwritten(dtype="f8", fillvalue=np.nan),
    "corrupt chunk": corrupt_chunk,
    "checksum": checksum_fails,
    "endless": endless,
}  # fmt: skip
SOUND = {
    "contiguous": store(),
    "chunked": store(chunks=True),
    "gzip": store(compression="gzip", shuffle=True),
    "lzf": store(compression="lzf"),
    "checksummed": store(fletcher32=True),
    "big endian": store(dtype=">f8"),
    "single": store(dtype="f4"),
    "big endian single": store(dtype=">f4"),
    "extended": store(dtype=np.longdouble),
    "resizable": lambda file, name, values: file.create_dataset(name, data=values, maxshape=(None,) * values.ndim),
}


def spoil(F, kind, row):
    F = F.copy()
    species = row % 6
    if kind == "not finite":
        F[row, species, row % 4] = (np.nan, np.inf, -np.inf)[row % 3]
    elif kind == "negative density":
        F[row, species] = (0, 0, 0, -1e32)
    elif kind == "|F| > N":
        F[row, species, :3] = F[row, species, 3]
    elif kind == "all zero":
        F[row] = 0
    elif kind == "out of range":
        F[row] = 0
        F[row, species, 3] = (1e300, 1e39, 1e-35)[row % 3]
    elif kind == "totals differ":
        F[row, species, 3] *= 1.5
    return F


KINDS = ("not finite", "negative density", "|F| > N", "all zero", "out of range", "totals differ")


@st.composite
def raw_files(draw):
    n = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 12, 24]))
    layout = AXIS_NAMES[draw(st.integers(0, 1))]
    axes = draw(st.sampled_from([layout, layout, layout[::-1], *itertools.permutations(layout)]))
    broken = draw(st.sampled_from([None, None, INIT, TRUE, STDDEV, GROWTH, NAMES]))
    structure = draw(st.sampled_from(sorted(BROKEN))) if broken else None
    faults = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, n - 1), st.booleans()), max_size=2))
    return {
        "n": n,
        "axes": axes,
        "say": draw(st.sampled_from(["yes", "no", "wrong"])),
        "broken": broken,
        "structure": structure,
        "faults": faults if draw(st.booleans()) else [],
        "how": {name: draw(st.sampled_from(sorted(SOUND))) for name in (INIT, TRUE, STDDEV)},
        "extras": draw(st.booleans()),
        "names": draw(st.sampled_from(["fixed", "variable", "numbers", "missing", "short", "not utf-8"])),
        "on_bad_rows": draw(st.sampled_from(["error", "drop", "clip"])),
        "diagnostics": draw(st.sampled_from(["full", "minimal"])),
        "shuffle": draw(st.booleans()),
        "chunk_rows": draw(st.sampled_from([None, 1, 5])),
        "garbage": draw(st.sampled_from([None] * 20 + ["text", "cut", "empty", "superblock"])),
    }


STATES = random_states(24) * 1e33


def build(path, case):
    n, axes = case["n"], case["axes"]
    init, true = STATES[:n].copy(), STATES[:n].copy()
    for kind, row, final in case["faults"]:
        if final or kind == "totals differ":
            true = spoil(true, kind, row)
        else:
            init = spoil(init, kind, row)
    content = {INIT: emu(init, axes), TRUE: emu(true, axes)}
    if case["extras"] or case["broken"] in (STDDEV, GROWTH):
        content |= {STDDEV: emu(STATES[:n] * 0.01, axes), GROWTH: np.linspace(0, 1e10, n)}
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if case["broken"] == name:
                # The broken forms are written for Emu's own axes.
                plain = values if name == GROWTH else fourflux.to_emu(STATES[:n])
                BROKEN[case["structure"]](file, name, plain)
            else:
                with np.errstate(over="ignore"):
                    SOUND[case["how"].get(name, "contiguous")](file, name, values)
        names = [f"run{i}" for i in range(n)]
        if case["broken"] == NAMES:
            BROKEN[case["structure"]](file, NAMES, np.arange(24.0 * n).reshape(n, 4, 2, 3))
        elif case["names"] == "fixed":
            file[NAMES] = np.array(names, dtype="S")
        elif case["names"] == "variable":
            file[NAMES] = names
        elif case["names"] == "numbers":
            file[NAMES] = np.arange(n)
        elif case["names"] == "short":
            file[NAMES] = [*names, "more"]
        elif case["names"] == "not utf-8":
            file.create_dataset(NAMES, data=[b"\xff\xfe"] * n, dtype=h5py.string_dtype())
    if case["garbage"]:
        whole = path.read_bytes()
        damaged = {
            "text": b"not HDF5", "cut": whole[: len(whole) // 2], "empty": b"", "superblock": b"\x00" * 64 + whole[64:],
        }  # fmt: skip
        path.write_bytes(damaged[case["garbage"]])
    return init, true


def test_fuzz(tmp_path, monkeypatch):
    # What is tested is what is read; a sync takes longer than the rest.
    monkeypatch.setattr(outputs.os, "fsync", lambda _: None)
    # One run of hypothesis is not meant for so many examples.
    for number in range(2):

        @seed(number)
        @settings(max_examples=650, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=raw_files())
        def check(case):
            one_file(tmp_path / "files", case)

        check()
    print(COUNT)
    assert COUNT["refused"] >= 1000
    assert COUNT["processed"] >= 150


def one_file(folder, case):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "a.h5"
    init, true = build(path, case)
    axes = list(case["axes"])
    if case["say"] == "wrong":
        axes = axes[::-1]
    options = {key: case[key] for key in ("on_bad_rows", "diagnostics", "shuffle", "chunk_rows")}
    config = config_for(folder, "a", axes=None if case["say"] == "no" else axes, **options)
    COUNT["files"] += 1
    try:
        pipeline.preprocess(config)
    except DataError as error:
        COUNT["refused"] += 1
        message = str(error)
        assert str(path) in message
        assert list((folder / "out").iterdir()) == []
        if case["garbage"] is None:
            assert any(name in message for name in (INIT, TRUE, STDDEV, GROWTH, NAMES)) or "all" in message, message
        sound = case["broken"] is None and case["garbage"] is None and case["names"] != "short" and not case["faults"]
        if sound and case["say"] == "yes":
            raise AssertionError(f"a sound file was refused: {message}") from error
        if sound and case["say"] == "no":
            assert "axes: [" in message
            assert len(possible_axes(emu(init, case["axes"]).shape)) > 1
        return
    except OutputError as error:
        # A few kilobytes of file may claim rows for more than the disk holds.
        COUNT["refused"] += 1
        if case["structure"] != "endless" or "disk full: needs" not in str(error):
            raise
        return
    COUNT["processed"] += 1
    assert case["garbage"] is None
    if case["say"] == "wrong" and axes != list(case["axes"]):
        return  # the sizes allow what was said, and what was said is what was read
    processed_correctly(folder / "out", case, init, true)


def processed_correctly(out, case, init, true):
    if case["broken"] is not None:
        minimal = case["diagnostics"] == "minimal"
        assert case["broken"] in (STDDEV, GROWTH, NAMES)
        assert case["structure"] in (HARMLESS | UNREAD if minimal and case["broken"] != NAMES else HARMLESS)
    values, attributes = read_all(out / "a_preprocessed.h5")
    values.pop("dropped_rows", None)
    bad = json.loads(attributes["bad_rows"])
    kept = np.arange(case["n"])
    faulty = sorted({row for _, row, _ in case["faults"]})
    if case["on_bad_rows"] == "drop":
        with h5py.File(out / "a_preprocessed.h5") as file:
            dropped = file["dropped_rows/a"][()]
        # A row may be spoiled twice so that it is sound again, never the other way round.
        assert set(dropped) <= set(faulty)
        assert sum(bad.values()) == len(dropped)
        kept = np.setdiff1d(kept, dropped)
    elif case["on_bad_rows"] == "error":
        assert not bad
    expected_init, expected_true = init[kept].astype(np.float32), true[kept].astype(np.float32)
    clipped = case["on_bad_rows"] == "clip" and bad
    good = np.setdiff1d(kept, faulty) if clipped else np.arange(len(kept))
    got_init = values["input"][:, :24].reshape(-1, 6, 4)
    got_true = values["target"].reshape(-1, 6, 4)
    np.testing.assert_allclose(got_init[good], expected_init[good], rtol=2e-7)
    np.testing.assert_allclose(got_true[good], expected_true[good], rtol=2e-7)
    assert np.isfinite(values["input"]).all()
    assert np.isfinite(values["target"]).all()
    for states in (got_init, got_true):
        assert fourflux.first_unphysical(np.ascontiguousarray(states)) is None
    combined, _ = read_all(out / "preprocessed_all.h5")
    np.testing.assert_array_equal(
        np.sort(combined["target"].view("V96").ravel()), np.sort(values["target"].view("V96").ravel())
    )


# In the place of what is only carried along: as good as missing, numbers after all, or not asked for in a minimal file.
HARMLESS = {"missing", "dangling link", "dangling external link", "loop", "never written", "filled with NaN"}
HARMLESS |= {"flat", "one axis more"}
UNREAD = {"external storage", "virtual", "corrupt chunk", "checksum"}


def test_flipped_bytes(tmp_path, monkeypatch):
    """Bytes anywhere in a sound file are changed: it is refused, or gives what h5py reads."""
    monkeypatch.setattr(outputs.os, "fsync", lambda _: None)
    sound = []
    for options in ({}, {"chunks": (2, 4, 2, 3)}, {"chunks": (3, 4, 2, 3), "compression": "gzip", "shuffle": True}):
        for version in ("earliest", "latest"):
            path = tmp_path / f"{len(sound)}.h5"
            with h5py.File(path, "w", libver=version) as file:
                for name in (INIT, TRUE):
                    file.create_dataset(name, data=fourflux.to_emu(STATES[:6]), **options)
                # Strings of fixed length: on damaged ones of variable length HDF5 2.0 may run for ever.
                file[NAMES] = np.array([b"run"] * 6)
                file[GROWTH] = np.arange(6.0)
            sound.append(path.read_bytes())
    choose = random.Random(0)
    outcomes = {"processed": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(choose.choice(sound))
        for _ in range(choose.choice([1, 2, 5])):
            place = choose.randrange(len(damaged))
            damaged[place] = choose.choice([0, 255, damaged[place] ^ 1 << choose.randrange(8), choose.randrange(256)])
        path = tmp_path / "a.h5"
        path.write_bytes(damaged)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        try:
            pipeline.preprocess(config_for(tmp_path, "a"))
        except (DataError, OutputError) as error:
            outcomes["refused"] += 1
            message = str(error)
            assert str(path) in message or "disk full: needs" in message
            assert list((tmp_path / "out").iterdir()) == []
            continue
        outcomes["processed"] += 1
        values, _ = read_all(tmp_path / "out" / "a_preprocessed.h5")
        with h5py.File(path) as file:
            for name, key in ((INIT, "F_init"), (TRUE, "F_true")):
                np.testing.assert_array_equal(values[key], fourflux.from_emu(file[name][()]).astype(np.float32))
    assert min(outcomes.values()) >= 30
