"""Configuration files: YAML, checked key by key before anything runs."""

from __future__ import annotations

import difflib
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rheidae.exceptions import ConfigError
from rheidae.mixing.quadrature import LEBEDEV_ORDERS
from rheidae.mixing.schemes import STORED
from rheidae.system.yamlfile import Loader

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping in a configuration file: every key is known, every value has the stated type, NumPy's scalars too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in data.items()}


def _known_order(order: object) -> object:
    if isinstance(order, int) and order not in LEBEDEV_ORDERS:
        raise ValueError(f"no Lebedev rule of that order; known: {', '.join(map(str, LEBEDEV_ORDERS))}")
    return order


class H5Paths(Section):
    """Names of the datasets in a raw file; all but the first two may be missing there."""

    F_init: str = "F4_initial(1|ccm)"
    F_true: str = "F4_final(1|ccm)"
    dirnames: str = "directorynames"
    growth_rate: str = "growthRate(1|s)"
    F_true_stddev: str = "F4_final_stddev(1|ccm)"
    stable: str = "stable"


def _known_axes(axes: object) -> object:
    known = (["component", "flavor", "nu_nubar", "row"], ["component", "row", "species"])
    if isinstance(axes, list) and sorted(map(str, axes)) not in known:
        raise ValueError(
            "must name each axis once: row, component, nu_nubar and flavor, or row, component and species, "
            "in the order of the file"
        )
    return axes


Axes = Annotated[list[str], BeforeValidator(_known_axes)]


class Tolerances(Section):
    """How far a row may be off.

    `totals`: the number of neutrinos, and that of antineutrinos, may change by this part of the row's total density;
    `clip_negative`: ``on_bad_rows: clip`` sets a negative density to zero down to minus this part of it.
    """

    totals: Positive = 1e-3
    clip_negative: NonNegative = 1e-6


_LONGEST_NAME = 150
"""Bytes of a file name; temporary names are longer, and many file systems end at 255."""


def _file_name(name: object) -> object:
    if isinstance(name, str):
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise ValueError("must be the name of a file, without folders: those go into output_root")
        if len(_encoded(name)) > _LONGEST_NAME:
            raise ValueError(f"must be at most {_LONGEST_NAME} bytes long")
    return name


def _label(text: object) -> object:
    if isinstance(text, str) and b"\0" in _encoded(text):
        raise ValueError("must not hold a zero byte, which ends strings in HDF5")
    return text


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a character that is none") from None


FileName = Annotated[str, BeforeValidator(_file_name)]
Label = Annotated[str, BeforeValidator(_label)]


class RawFile(Section):
    """One raw simulation file.

    `path` is relative to `data_root`; `sim_id` labels its rows in the training set and is what
    ``groups`` holds; `max_rows` keeps the first rows only; `axes` overrides that of the whole configuration.
    """

    name: str
    path: str = ""
    sim_id: Label = ""
    enabled: bool = True
    max_rows: Annotated[int, Field(gt=0)] | None = None
    output_name: FileName = ""
    axes: Axes | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_from_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            return data
        # Of a label such as 3.5ms, no part is an extension.
        stem = re.sub(r"\.(h5|hdf5)$", "", Path(data["name"]).name)
        defaults = {"path": data["name"], "sim_id": stem, "output_name": stem}
        data = {**defaults, **data}
        if type(data["sim_id"]) is int:
            data["sim_id"] = str(data["sim_id"])
        return data


def _known_schemes(schemes: object) -> object:
    if isinstance(schemes, list) and not set(map(str, schemes)) <= set(STORED):
        raise ValueError(f"must be some of {', '.join(STORED)}")
    if isinstance(schemes, list) and ("box3d" not in schemes or len(set(map(str, schemes))) < len(schemes)):
        raise ValueError("must name box3d, which the inputs of a model hold, and each scheme once")
    return schemes


class PreprocessConfig(Section):
    """``config/pre_process.yaml``."""

    data_root: str = ".data"
    allow_external: bool = False
    output_root: str = ".pdata"
    h5_paths: H5Paths = H5Paths()
    axes: Axes | None = None
    on_bad_rows: Literal["error", "drop", "clip"] = "error"
    tolerances: Tolerances = Tolerances()
    files: Annotated[list[RawFile], Field(min_length=1)]
    box3d_crossing: Literal["shared", "sharp"] = "shared"
    box3d_order: Annotated[int | None, BeforeValidator(_known_order)] = None
    lebedev_order: Annotated[int, BeforeValidator(_known_order)] = 31
    box3d_mu_fraction: Fraction | None = None
    schemes: Annotated[list[str], BeforeValidator(_known_schemes)] = ["box3d"]
    output_filename: FileName = "preprocessed_all.h5"
    shuffle: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    diagnostics: Literal["full", "minimal"] = "full"
    compression: Literal["none", "gzip"] = "none"
    compression_level: Annotated[int, Field(ge=1, le=9)] = 1
    h5_chunk_rows: Annotated[int, Field(gt=0)] | None = None
    chunk_rows: Annotated[int, Field(gt=0)] | None = None
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None

    @model_validator(mode="after")
    def _outputs_differ(self) -> PreprocessConfig:
        names = [f"{file.output_name}_preprocessed.h5" for file in self.files if file.enabled]
        names.append(self.output_filename)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two outputs would be called {twice[0]}; set another output_name")
        return self


class DataConfig(Section):
    """What to train on, and which rows to keep out of it."""

    processed_path: str = ".pdata/preprocessed_all.h5"
    batch_size: Annotated[int, Field(gt=0)] = 64
    val_split: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test_split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    target_scale: Positive = 1e-33
    holdout_groups: list[str] = []

    @model_validator(mode="after")
    def _something_left(self) -> DataConfig:
        if self.val_split + self.test_split >= 1:
            raise ValueError("val_split and test_split together leave no rows to train on")
        return self


class ModelConfig(Section):
    """`rheidae.estimator.networks.MixingModel` or `ResidualFFIModel`; None: as the architecture has it by default."""

    architecture: Literal["mixing", "residual"] = "mixing"
    hidden_dim: Annotated[int, Field(gt=0, le=16384)] | None = None
    hidden_layers: Annotated[int, Field(ge=0, le=256)] | None = None
    activation: Literal["relu", "gelu", "silu", "tanh", "elu"] = "silu"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    use_batch_norm: bool | None = None
    frame: Literal["invariant", "lab"] | None = None
    conserve: bool | None = None
    members: Annotated[int, Field(gt=0, le=64)] | None = None

    @model_validator(mode="after")
    def _applies(self) -> ModelConfig:
        foreign = {"mixing": ("dropout", "use_batch_norm", "frame", "conserve"), "residual": ("members",)}
        given = [name for name in foreign.pop(self.architecture) if getattr(self, name) is not None]
        if given:
            other = next(iter(foreign))
            raise ValueError(f"{', '.join(given)}: for architecture {other} only; set to null, or choose that")
        return self

    def options(self) -> dict[str, Any]:
        """Arguments of the module: what is not None."""
        return self.model_dump(exclude={"architecture"}, exclude_none=True)


class OptimizerConfig(Section):
    """AdamW."""

    lr: Positive = 1e-2
    weight_decay: NonNegative = 1e-2
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.99], min_length=2, max_length=2)
    eps: Positive = 1e-8


class TrainingConfig(Section):
    """How long to train, where, and where the results go."""

    epochs: Annotated[int, Field(gt=0)] = 300
    grad_clip: Positive | None = 1.0
    checkpoint_dir: str = "checkpoints"
    results_dir: str = "results"
    resume_from: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    mixed_precision: bool = False


class LossConfig(Section):
    """`rheidae.estimator.losses.FourFluxLoss`."""

    w_density: NonNegative = 1.0
    w_magnitude: NonNegative = 1.0
    w_direction: NonNegative = 0.01
    w_unphysical: NonNegative = 1.0
    w_residual_l1: NonNegative = 1.0
    w_distance: NonNegative = 100.0
    density_floor: Positive = 1e-3
    speed_of_light: Positive = 1.0
    eps: Positive = 1e-12

    @model_validator(mode="after")
    def _some_loss(self) -> LossConfig:
        if not any(value for name, value in self if name.startswith("w_")):
            raise ValueError("every weight is zero: at least one loss term is needed")
        return self


class Config(Section):
    """``config/model.yaml``."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    loss: LossConfig = LossConfig()


class KendallGalParams(Section):
    """`rheidae.estimator.callbacks.KendallGal`."""

    initial: Annotated[float, Field(allow_inf_nan=False)] | Literal["first_batch"] = "first_batch"
    lr: Positive | None = None
    floor: Positive = 1e-8


class DWAParams(Section):
    """`rheidae.estimator.callbacks.DynamicWeightAverage`."""

    temperature: Positive = 2.0


class GradNormParams(Section):
    """`rheidae.estimator.callbacks.GradNorm`."""

    alpha: NonNegative = 1.5
    lr: Positive | None = 0.025


WEIGHTING_PARAMS: dict[str, type[Section]] = {
    "none": Section,
    "kendall_gal": KendallGalParams,
    "dwa": DWAParams,
    "gradnorm": GradNormParams,
}


class WeightingConfig(Section):
    """How the loss terms are weighed against each other; `params` are those of the scheme's callback."""

    scheme: Literal["kendall_gal", "dwa", "gradnorm", "none"] = "none"
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_params(self) -> WeightingConfig:
        schema = WEIGHTING_PARAMS[self.scheme]
        known = list(schema.model_fields)
        if self.params and not known:
            raise ValueError(f"params: the scheme {self.scheme} takes no parameters; set it to {{}}")
        for name in self.params:
            if name not in known:
                raise ValueError(f"params: {name} is unknown; {self.scheme} takes {', '.join(known)}")
        try:
            schema.model_validate(self.params)
        except ValidationError as error:
            finding = error.errors()[0]
            raise ValueError(f"params.{finding['loc'][0]}: {finding['msg']} (found {finding['input']!r})") from None
        return self


class ConstraintsConfig(Section):
    """Augmented Lagrangian for physical outputs."""

    enabled: bool = False
    lr_lambda: NonNegative = 1e-2
    rho: NonNegative = 1.0


class EarlyStopConfig(Section):
    """Stop when the validation loss no longer improves, and return to its best epoch."""

    enabled: bool = False
    patience: Annotated[int, Field(gt=0)] = 60
    min_delta: NonNegative = 0.0


class LRSchedulerConfig(Section):
    """Learning-rate schedule: up and down again over all epochs, only down, or in steps where the loss stalls.

    All but `type` are of ``reduce_on_plateau``.
    """

    type: Literal["one_cycle", "cosine", "reduce_on_plateau", "none"] = "one_cycle"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0)] = 12
    min_lr: NonNegative = 1e-5
    threshold: NonNegative = 1e-3


class LRWarmupConfig(Section):
    """Linear warm-up of the learning rate."""

    enabled: bool = False
    warmup_epochs: Annotated[int, Field(gt=0)] = 5
    start_factor: Annotated[float, Field(gt=0, le=1)] = 0.1


class BNRecalibrateConfig(Section):
    """Recompute the batch norms' running statistics with the final weights.

    `warmup_epochs`: the first epochs in which it is not done; `max_batches`: null for all of them.
    """

    enabled: bool = True
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    max_batches: Annotated[int, Field(gt=0)] | None = None


class LoggingConfig(Section):
    """`save_every`: epochs between two checkpoints; `tensorboard`: write the history for TensorBoard too."""

    save_every: Annotated[int, Field(gt=0)] = 25
    tensorboard: bool = False


class TrainParms(Section):
    """``config/train_parms.yaml``."""

    weighting: WeightingConfig = WeightingConfig()
    pcgrad: bool = False
    predict_residual: bool = False
    constraints: ConstraintsConfig = ConstraintsConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    lr_scheduler: LRSchedulerConfig = LRSchedulerConfig()
    lr_warmup: LRWarmupConfig = LRWarmupConfig()
    bn_recalibrate: BNRecalibrateConfig = BNRecalibrateConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _one_rise(self) -> TrainParms:
        if self.lr_warmup.enabled and self.lr_scheduler.type == "one_cycle":
            raise ValueError("lr_warmup: lr_scheduler.type one_cycle has a rise of its own; disable either")
        return self


Model = TypeVar("Model", bound=Section)

MOST_FINDINGS = 20
"""So many are reported at once."""

_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxlevel, _REPR.maxlist = 200, 2, 10


def read_config(path: str | Path, schema: type[Model]) -> Model:
    """Read a YAML file and check it against its schema.

    Parameters
    ----------
    path : path
        The file. Keys that it does not give take their defaults.
    schema : type
        `PreprocessConfig`, `Config` or `TrainParms`.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, a key is unknown (the message names the nearest known one), a
        value has the wrong type or range, or it asks for something that is not built yet. All findings are
        reported at once.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give an existing one with its option") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply for a configuration") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # PyYAML lets through what Python's own constructors raise, as of a number of 5000 digits.
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    return check_config({} if data is None else data, schema, str(path))


def check_config(data: Any, schema: type[Model], source: str = "configuration") -> Model:
    """Check a mapping against `schema`; raise `ConfigError` as `read_config` does."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: expected a mapping of keys to values, found {type(data).__name__}")
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        findings = [f"  {_explain(finding, schema)}" for finding in errors[:MOST_FINDINGS]]
        if len(errors) > MOST_FINDINGS:
            findings.append(f"  and {len(errors) - MOST_FINDINGS} more")
        raise ConfigError("\n".join([f"{source}:", *findings])) from None


def _explain(finding: Any, schema: type[BaseModel]) -> str:
    location = finding["loc"]
    where = ".".join(str(part) for part in location) or "file"
    if finding["type"] == "extra_forbidden":
        known = _keys_at(schema, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"{where}: unknown key; the nearest known one is {near[0] if near else '(none)'}"
    if finding["type"] == "missing":
        return f"{where}: missing, and it has no default"
    message = finding["msg"].removeprefix("Value error, ")
    if finding["type"] == "value_error" and isinstance(finding["input"], dict):
        return f"{where}: {message}"
    # A few aliases may stand for gigabytes.
    return f"{where}: {message} (found {_REPR.repr(finding['input'])})"


def _keys_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Known keys of the section that `location` leads to."""
    section: Any = schema
    for part in location:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
            for argument in getattr(section, "__args__", ()):
                section = argument
    return list(section.model_fields)
