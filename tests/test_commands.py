import os
import re
import subprocess
import sys
from importlib import import_module, resources
from pathlib import Path

import pytest
import yaml

import rheidae
from rheidae import __main__ as command
from rheidae import init
from rheidae.config import Config, PreprocessConfig, TrainParms, read_config
from rheidae.export.formats import FORMATS
from rheidae.mixing.schemes import STORED
from rheidae.scoring.splits import CROSS_VALIDATIONS
from rheidae.simulate.config import SimulateConfig
from rheidae.system import commands, memory, threads

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_needs_nothing_heavy(name):
    """Torch takes seconds to import, Numba and SciPy half of one each."""
    code = (
        "import sys\nfrom rheidae.__main__ import main\n"
        f"try:\n    main([{name!r}, '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(*[name for name in ('torch', 'numba', 'scipy', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert done.startswith(f"usage: rheidae {name}")
    assert done.splitlines()[-1] == ""


def test_every_module_with_a_command_line_is_a_command():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "rheidae").rglob("*.py")
        if 'prog="rheidae ' in path.read_text()
    }
    assert modules == {module for module, _ in command.COMMANDS.values()}
    table = re.findall(r"^\| `python -m rheidae\.(\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(table) <= set(command.COMMANDS)


def test_commands_hand_on_arguments_and_status(capsys, tmp_path):
    assert command.main(["preprocess", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["fit"])
    assert "choose from 'init'" in capsys.readouterr().err.replace("choose from init", "choose from 'init'")


def test_choices_are_those_that_there_are():
    """Parsers spell them out, since the modules that know them take seconds to import."""
    for name, option, known in (("export", "--format", FORMATS), ("evaluate", "--cv", CROSS_VALIDATIONS)):
        text = Path(import_module(command.COMMANDS[name][0]).__file__).read_text()
        assert f"choices=({', '.join(f'{choice!r}' for choice in known)})".replace("'", '"') in text, option


# Of the sample, which the files are made for: other data have other families.
OF_THE_SAMPLE = {"files", "data.holdout_groups"}


@pytest.mark.parametrize(
    ("name", "schema"), [("pre_process", PreprocessConfig), ("model", Config), ("train_parms", TrainParms)]
)
def test_shipped_files_are_the_defaults(name, schema):
    with resources.as_file(resources.files("rheidae") / f"defaults/{name}.yaml") as path:
        shipped, given = read_config(path, schema).model_dump(), yaml.safe_load(path.read_text())
    plain = schema(files=read_config(path, schema).files) if schema is PreprocessConfig else schema()
    defaults = plain.model_dump()

    def differences(mine, theirs, prefix=""):
        for key, value in theirs.items():
            if isinstance(value, dict):
                yield from differences(mine[key], value, f"{prefix}{key}.")
            elif mine[key] != value and prefix + key not in OF_THE_SAMPLE:
                yield prefix + key

    assert list(differences(shipped, defaults)) == []
    # Each key stands there, so that its comment can be read.
    known = {key for key in defaults if key != "axes"}
    assert known <= set(given)
    # A link; in an unpacked sdist, a copy.
    assert (ROOT / "config" / f"{name}.yaml").read_bytes() == path.read_bytes()


def test_init_writes_what_the_commands_read(tmp_path, capsys):
    assert command.main(["init", str(tmp_path / "config")]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(path).name for path in written] == list(init.FILES)
    for path, schema in zip(written, (PreprocessConfig, SimulateConfig, Config, TrainParms), strict=True):
        read_config(path, schema)
    Path(written[0]).unlink()
    Path(written[1]).write_text("mine\n")
    assert command.main(["init", str(tmp_path / "config")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert Path(written[1]).read_text() == "mine\n"
    assert not Path(written[0]).exists()


def test_sample_without_a_path():
    data = rheidae.load_dataset()
    assert {"F_" + scheme for scheme in STORED if scheme != "box3d"} <= set(data)
    assert data.filename is None
    assert "three_d" in data.groups
    assert data.data.shape == (len(data.target), 48)
    X, y = rheidae.load_dataset(return_X_y=True)
    assert (data.data == X).all()
    assert (y == data.target).all()


@pytest.mark.parametrize("command_name", [["train"], ["predict", "--model", "m", "--data", "d", "--out", "o"]])
@pytest.mark.parametrize("count", ["0", "-1", "100000", "9" * 30, "x"])
def test_threads_are_bounded(command_name, count, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*command_name, "--threads", count])
    assert "is not a number from 1 to 1024" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 100_000])
def test_threads_of_functions_are_bounded(count):
    with pytest.raises(ValueError, match="at most 1024"), threads.limited(count):
        pass
    with pytest.raises(ValueError, match="at most 1024"):
        threads.share_rows(lambda start, stop: None, 3000, count)


def test_outputs_of_predict_and_simulate_are_no_inputs(tmp_path, capsys):
    data = tmp_path / "data.h5"
    data.write_text("rows")
    (tmp_path / "run").mkdir()
    weights = tmp_path / "run" / "weights.safetensors"
    weights.write_text("weights")
    config = tmp_path / "simulate.yaml"
    config.write_text(f"states: {{path: {data}}}\noutput_root: {tmp_path}\noutput_filename: data.h5\n")
    predict = ["predict", "--data", str(data), "--model"]
    for arguments in (
        [*predict, "asymptotic", "--out", str(data)],
        [*predict, str(tmp_path / "run"), "--out", str(weights)],
        [*predict, "asymptotic", "--layout", str(config), "--out", str(config)],
        ["simulate", "--config", str(config)],
    ):
        assert command.main(arguments) == 2
        assert "is an input" in capsys.readouterr().err
    assert (data.read_text(), weights.read_text()) == ("rows", "weights")


def test_a_number_of_threads_that_numba_fails_with(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "0")
    assert command.main(["predict", "--model", "box3d", "--data", "d", "--out", "o"]) == 2
    assert (
        capsys.readouterr().err
        == "error: NUMBA_NUM_THREADS=0 in the environment: must be 1 or more; mend or unset it\n"
    )


def test_too_little_address_space_is_said(monkeypatch, capsys):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (400 << 20, -1))
    assert commands.run(lambda: pytest.fail("begun")) == 2
    assert "ulimit -v leaves 419 MB of address space, and 629 MB are the least" in capsys.readouterr().err


def test_a_name_that_the_locale_lacks_is_one_message(monkeypatch, capsys):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert commands.run(lambda: "p\xfc".encode("ascii")) == 2
    assert "this locale has no such file names (ascii); set PYTHONUTF8=1" in capsys.readouterr().err


def test_no_backend_of_the_users_is_asked_for():
    code = "from rheidae.system import commands\ncommands.run(lambda: None)\nimport matplotlib\n"
    environment = {**os.environ, "MPLBACKEND": "nonsense"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), ImportError("x.so: failed to map segment from shared object")]
)
def test_a_system_without_memory_or_threads_is_one_message(error, capsys):
    def fails():
        raise error

    assert commands.run(fails) == 2
    assert capsys.readouterr().err.startswith("error: out of memory or threads")
