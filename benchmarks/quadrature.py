"""How right the analytic schemes are for every kind of state, and where they jump.

python -m benchmarks.quadrature errors --states 20000     # of the asymptotic scheme against `converged`; --unlike
python -m benchmarks.quadrature errors --states 1000000 --screen  # the same where many more nodes say otherwise
python -m benchmarks.quadrature box3d --states 1000000    # unphysical answers, and what turns with the frame
python -m benchmarks.quadrature paths --paths 200         # largest jumps along paths between states; models too; and
                                                          # --narrowest 1e-6, with flux factors up to 1 - 1e-6
python -m benchmarks.quadrature exports --states 100000   # files of the model that ships; --unlike, --format object
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

import rheidae
from benchmarks import converged
from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.export import export_regressor, load_exported
from rheidae.mixing._asymptotic_kernels import asymptotic_rows
from rheidae.mixing.asymptotic import tables_of
from rheidae.system.threads import share_rows
from tests.states import conservation_error, random_rotation, turn

SCHEMES = {
    "asymptotic": lambda F: mix(F, "asymptotic"),
    "power": lambda F: mix(F, "power"),
    "Box3D shared": box3d_flux,
}


def distance(A, B):
    """Largest four-flux distance of a species for each row; total densities are 1."""
    return np.linalg.norm(A - B, axis=2).max(axis=1)


def outside(F):
    """How far each row is from ``N >= 0`` and ``|F| <= N``."""
    return np.maximum(-F[..., 3], np.linalg.norm(F[..., :3], axis=2) - F[..., 3]).max(axis=1)


def many_nodes(F):
    """The asymptotic scheme by 5,810 nodes and 2,560 for each beam, whatever its doubt: in a tenth of the time."""
    spheres, narrow = zip(*[tables_of(131, 640)] * 5, strict=True)
    out = np.empty(F.shape)
    share_rows(lambda start, stop: asymptotic_rows(F, spheres, narrow, 1, True, out, start, stop), len(F), None)
    return out


def errors(count, alike=True, seed=0, screen=False):
    """Print p95 and maximum of the error by kind of state; the worst are compared with four times the points."""
    each = count // len(converged.KINDS)
    for kind in converged.KINDS:
        F = converged.states(kind, each, seed=seed, alike=alike)
        after = mix(F, "asymptotic")
        error = distance(after, (many_nodes if screen else converged.answer)(F))
        doubtful = error > 3e-4
        error[doubtful] = distance(after[doubtful], converged.answer(F[doubtful], points=6000))
        print(
            f"{kind:14s} p95 {np.percentile(error, 95):.1e}  largest {error.max():.1e}  above 1e-3: "
            f"{(error > 1e-3).sum()} of {each}  outside {outside(after).max():.0e}  not conserved "
            f"{conservation_error(F, after):.0e}",
            flush=True,
        )


def box3d(count):
    """Print how often and how far Box3D is unphysical, and how much it turns with its frame."""
    each = count // len(converged.KINDS)
    for alike in (True, False):
        for crossing in ("shared", "sharp"):
            shares, furthest, turns = [], 0.0, 0.0
            for kind in converged.KINDS:
                F, rotation = converged.states(kind, each, alike=alike), random_rotation(0)
                after = box3d_flux(F, crossing=crossing)
                shares.append((outside(after) > 1e-7).mean())
                furthest = max(furthest, outside(after).max())
                if kind == "ordinary":
                    turns = distance(turn(after, rotation), box3d_flux(turn(F, rotation), crossing=crossing)).max()
            print(
                f"{crossing}, mu and tau {'alike' if alike else 'unlike'}: outside {np.mean(shares):.2%} (beams "
                f"{shares[2]:.2%}), by up to {furthest:.1e}; turned (ordinary states) {turns:.1e}",
                flush=True,
            )


def exports(count, alike=True, format="onnx"):
    """Print how far a file of the model that ships is from the estimator, by kind of state."""
    model, each = rheidae.pretrained(), count // len(converged.KINDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.o" if format == "object" else "model.onnx")
        export_regressor(model, path, format)
        file = load_exported(path)
    for kind in converged.KINDS:
        F = converged.states(kind, each, seed=1, alike=alike)
        found = np.concatenate([file.predict(rows) for rows in np.array_split(F, max(1, each // 64))])
        error = np.abs(found - model.predict(F)).max(axis=(1, 2))
        print(
            f"{kind:14s} p99 {np.percentile(error, 99):.1e}  largest {error.max():.1e}  above 1e-6: "
            f"{(error > 1e-6).sum()} of {each}  outside {outside(found).max():.0e}",
            flush=True,
        )


def paths(count, narrowest=0.0):
    """Print the largest jump along paths from one random state to another, refined 32-fold nine times."""
    narrow = np.array([1 - narrowest] * 3 + [1.0])
    for name, scheme in (
        SCHEMES | {"default model": rheidae.pretrained().predict, "residual model": residual()}
    ).items():
        jumps = []
        for i in range(count):
            kind, alike = converged.KINDS[i % len(converged.KINDS)], i % 2 == 0
            start, end = narrow * converged.states(kind, 2, seed=i, alike=alike)
            jumps.append(jump(scheme, start, end))
        print(f"{name}: largest {max(jumps):.1e}; above 1e-6: {(np.array(jumps) > 1e-6).sum()} of {count};", end=" ")
        step = len(converged.KINDS)
        print(", ".join(f"{kind} {max(jumps[k::step]):.0e}" for k, kind in enumerate(converged.KINDS)), flush=True)


def residual():
    """Return a residual model that has learned asymptotic mixing of 400 states."""

    def columns(F):
        return np.concatenate([F.reshape(-1, 24), box3d_flux(F).reshape(-1, 24)], axis=1)

    F = converged.states("ordinary", 400, seed=9)
    model = FluxRegressor(ResidualFFIModel, random_state=0, max_epochs=30)
    model.fit(columns(F), mix(F, "asymptotic").reshape(-1, 24))
    return lambda F: model.predict(columns(F)).reshape(F.shape)


def jump(scheme, start, end):
    """The largest second difference of the change that refining to the largest step leaves.

    A steep slope, as of beams that are narrower than a step, leaves steps that are alike, and no second difference.
    """
    low, high = 0.0, 1.0
    for _ in range(9):
        t = np.linspace(low, high, 33)
        F = (1 - t)[:, None, None] * start + t[:, None, None] * end
        change = scheme(F) - F
        steps = change[1:] - change[:-1]
        largest = distance(change[1:], change[:-1]).argmax()
        low, high = t[largest], t[largest + 1]
    return distance(steps[1:], steps[:-1]).max()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["errors", "box3d", "paths", "exports"])
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--paths", type=int, default=200)
    parser.add_argument("--narrowest", type=float, default=0.0, help="of paths: 1 less the largest flux factor")
    parser.add_argument("--unlike", action="store_true", help="of errors and exports: mu and tau differ")
    parser.add_argument("--format", choices=["onnx", "object"], default="onnx", help="of exports")
    parser.add_argument("--seed", type=int, default=0, help="of errors")
    parser.add_argument("--screen", action="store_true", help="of errors: the converged answer only where it matters")
    options = parser.parse_args()
    alike = not options.unlike
    {
        "errors": partial(errors, options.states, alike=alike, seed=options.seed, screen=options.screen),
        "box3d": partial(box3d, options.states),
        "exports": partial(exports, options.states, alike=alike, format=options.format),
        "paths": partial(paths, options.paths, options.narrowest),
    }[options.what]()
