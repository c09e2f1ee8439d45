"""Settings of small training runs."""

from rheidae.config import Config, TrainParms, check_config

PARMS = check_config({"predict_residual": True}, TrainParms)


def config_for(processed, folder, **sections):
    """A `Config` of a few epochs; its results go into `folder`. Sections are put over it."""
    base = {
        "data": {"processed_path": str(processed / "preprocessed_all.h5"), "holdout_groups": ["nsm_b", "three_d"]},
        "model": {"hidden_dim": 16, "hidden_layers": 1},
        "training": {"epochs": 4, "checkpoint_dir": str(folder / "runs"), "results_dir": str(folder / "results")},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return check_config(base, Config)
