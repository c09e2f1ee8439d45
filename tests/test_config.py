import time
from pathlib import Path

import pytest

from rheidae.config import Config, LossConfig, PreprocessConfig, TrainParms, check_config, read_config
from rheidae.exceptions import ConfigError
from rheidae.simulate.config import SimulateConfig

CONFIG = Path(__file__).parents[1] / "config"
SCHEMAS = {
    "pre_process.yaml": PreprocessConfig, "simulate.yaml": SimulateConfig, "model.yaml": Config,
    "train_parms.yaml": TrainParms,
}  # fmt: skip


def written(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    return path


def test_every_shipped_config_is_known_and_loads():
    assert sorted(path.name for path in CONFIG.glob("*.yaml")) == sorted(SCHEMAS)
    for name, schema in SCHEMAS.items():
        read_config(CONFIG / name, schema)


def test_shipped_configs_spell_out_every_key():
    for name in ("model.yaml", "train_parms.yaml"):
        config = read_config(CONFIG / name, SCHEMAS[name])
        for section, value in config:
            assert section in config.model_fields_set
            if hasattr(value, "model_fields_set"):
                assert value.model_fields_set == set(type(value).model_fields), section


def test_defaults_come_from_the_name():
    config = check_config({"files": [{"name": "M1NuLib_3ms_rl1.h5"}]}, PreprocessConfig)
    (file,) = config.files
    assert (file.path, file.sim_id, file.output_name) == ("M1NuLib_3ms_rl1.h5", "M1NuLib_3ms_rl1", "M1NuLib_3ms_rl1")
    assert check_config({"files": [{"name": "a", "sim_id": 7}]}, PreprocessConfig).files[0].sim_id == "7"


@pytest.mark.parametrize(
    ("schema", "data", "message"),
    [
        (PreprocessConfig, {"filez": []}, "filez: unknown key; the nearest known one is files"),
        (PreprocessConfig, {"files": [{"name": "a", "sim": 1}]}, "files.0.sim: unknown .* is sim_id"),
        (PreprocessConfig, {"files": [{"name": "a"}], "h5_paths": {"Ftrue": "x"}}, "h5_paths.Ftrue: .* is F_true"),
        (PreprocessConfig, {"files": []}, "files: .*at least 1"),
        (PreprocessConfig, {}, "files: missing"),
        (PreprocessConfig, {"files": [{"name": "a", "max_rows": "3"}]}, r"max_rows: .*integer \(found '3'\)"),
        (PreprocessConfig, {"files": [{"name": "a", "max_rows": 0}]}, "max_rows: .*greater than 0"),
        (PreprocessConfig, {"files": [{"name": "a"}], "threads": 100_000}, "threads: .*less than or equal to 1024"),
        (Config, {"model": {"hidden_layers": 10**9}}, "hidden_layers: .*less than or equal to 256"),
        (Config, {"model": {"hidden_dim": 200_000}}, "hidden_dim: .*less than or equal to 16384"),
        (PreprocessConfig, {"files": [{"name": "a"}], "lebedev_order": 14}, "no Lebedev rule of that order"),
        (PreprocessConfig, {"files": [{"name": "a"}], "box3d_mu_fraction": 1.5}, "box3d_mu_fraction: .*less than or"),
        (PreprocessConfig, {"files": [{"name": "a"}], "shuffle": "yes"}, "shuffle: .*boolean"),
        (PreprocessConfig, {"files": [{"name": "a"}, {"name": "a"}]}, "two outputs .* a_preprocessed.h5"),
        (Config, {"modle": {}}, "modle: unknown key; the nearest known one is model"),
        (Config, {"model": {"hidden_dim": 12.5}}, "hidden_dim"),
        (Config, {"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        (Config, {"data": {"val_split": 0.5, "test_split": 0.5}}, "leave no rows"),
        (Config, {"loss": {key: 0 for key in LossConfig.model_fields if key[:2] == "w_"}}, "at least one loss term"),
        (Config, {"training": {"resume_from": 3}}, "resume_from: .*string"),
        (TrainParms, {"weighting": {"scheme": "dwaa"}}, "weighting.scheme"),
        (
            TrainParms,
            {"weighting": {"scheme": "dwa", "params": {"temp": 1.0}}},
            "temp is unknown; dwa takes",
        ),
        (
            TrainParms,
            {"weighting": {"scheme": "dwa", "params": {"temperature": -1.0}}},
            "temperature: .*greater",
        ),
        (
            TrainParms,
            {"weighting": {"scheme": "kendall_gal", "params": {"initial": float("inf")}}},
            "initial: .*finite",
        ),
        (TrainParms, {"weighting": {"params": {"a": 1}}}, "takes no parameters"),
        (TrainParms, {"pcgrad": 1}, "pcgrad: .*boolean"),
        (TrainParms, {"constraints": {"enabled": True, "rho": -1.0}}, "constraints.rho"),
        (TrainParms, {"early_stop": {"patience": 1.5}}, "early_stop.patience"),
        (TrainParms, {"lr_warmup": {"enabled": True}}, "one_cycle has a rise of its own"),
        (Config, [1, 2], "expected a mapping"),
    ],
)
def test_refusals_name_the_key_and_the_remedy(schema, data, message):
    with pytest.raises(ConfigError, match=message):
        check_config(data, schema)


def test_all_findings_at_once():
    with pytest.raises(ConfigError) as error:
        check_config({"model": {"hiden_dim": 3}, "data": {"seed": -1}}, Config)
    assert "hiden_dim" in str(error.value)
    assert "data.seed" in str(error.value)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_exponents_without_a_point_are_numbers(tmp_path, number):
    config = read_config(written(tmp_path, f"optimizer: {{lr: {number}}}"), Config)
    assert config.optimizer.lr == 1e-3


def test_a_repeated_key_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="'seed' stands twice"):
        read_config(written(tmp_path, "data:\n  seed: 1\n  seed: 2\n"), Config)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "absent.yaml", Config)
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(written(tmp_path, "a: [1"), Config)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path, Config)


def test_an_empty_file_means_defaults(tmp_path):
    assert read_config(written(tmp_path, ""), Config) == Config()


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES + "data: *a11\n", r"data: "),
        (ALIASES + "data: {seed: *a11}\n", r"data\.seed: "),
        ("".join(f"key{i}: 0\n" for i in range(4000)), "and 3980 more"),
        ("[" * 3000, "nested too deeply|not valid YAML"),
        ("data: {seed: " + "9" * 5000 + "}", "not valid YAML|data.seed"),
        ("data: {seed: 2001-13-45}", "data.seed: .*integer"),
        ("data: {seed: !!int abc}", "not valid YAML"),
        ("data: {seed: !!timestamp abc}", "not valid YAML"),
        ("data: {? [a] : 1}", "not valid YAML|data"),
    ],
    ids=["aliases", "aliases in a value", "keys", "deep", "digits", "date", "int", "timestamp", "list as key"],
)
def test_small_files_neither_hang_nor_end_in_a_traceback(tmp_path, text, message):
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        read_config(written(tmp_path, text), Config)
    assert time.process_time() - started < 60  # seconds; without bounds some took minutes
    assert len(str(error.value)) < 10_000


@pytest.mark.parametrize("name", ["12:30", "007", "0x1F", "1_000", "2001-01-01", "0b11", "1:00", "1e"])
def test_a_name_keeps_its_spelling(tmp_path, name):
    text = f"files: [{{name: a, sim_id: {name}}}]"
    assert read_config(written(tmp_path, text), PreprocessConfig).files[0].sim_id == name
    for key in ("seed", "batch_size"):
        with pytest.raises(ConfigError, match=rf"data\.{key}: .*integer"):
            read_config(written(tmp_path, f"data: {{{key}: {name}}}"), Config)


@pytest.mark.parametrize(
    ("text", "value"), [("0.", 0.0), ("-0.5", -0.5), (".5", 0.5), ("5.", 5.0), ("+3.0", 3.0), ("1.5E+2", 150.0)]
)
def test_plain_numbers_are_numbers(tmp_path, text, value):
    parms = f"weighting: {{scheme: kendall_gal, params: {{initial: {text}}}}}"
    assert read_config(written(tmp_path, parms), TrainParms).weighting.params["initial"] == value
