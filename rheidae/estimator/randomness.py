"""Random numbers of an estimator's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from rheidae.estimator.processes import Alone


def get_rng(device: Any) -> dict[str, Tensor]:
    """Return the states of torch's global generators."""
    states = {"cpu": torch.get_rng_state()}
    if str(device).startswith("cuda"):
        states["cuda"] = torch.cuda.get_rng_state(torch.device(device))
    elif str(device).startswith("mps"):
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng(states: dict[str, Tensor], device: Any) -> None:
    """Put back what `get_rng` returned."""
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), torch.device(device))
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"].cpu())


class OwnRandomness:
    """Mixin: the estimator draws from torch's global generator as if it were its own, seeded by `random_state`."""

    random_state: Any
    device: Any
    rng_state_: Tensor

    @property
    def _device(self) -> torch.device:
        """Where the network works."""
        return torch.device("cpu" if self.device is None else self.device)

    @property
    def _processes(self) -> Alone:
        """Who works on the batches."""
        return Alone()

    def _first_seed(self) -> int | None:
        """Seed of a fresh start; None leaves the global generator to go on."""
        seed = None
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self._processes.seed(seed)

    @contextmanager
    def _random(self, fresh: bool) -> Iterator[None]:
        """Run with the estimator's own random numbers, and give the global generator back as it was."""
        if getattr(self, "seeded_", False):
            yield
            return
        goes_on = not fresh and hasattr(self, "rng_state_")
        seed = None if goes_on else self._first_seed()
        if seed is None and not goes_on:
            self.__dict__.pop("rng_state_", None)
            yield
            return
        self.seeded_ = True
        devices = [self._device] if self._device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                if seed is not None:
                    torch.manual_seed(seed)
                else:
                    torch.set_rng_state(self.rng_state_)
                yield
                self.rng_state_ = torch.get_rng_state()
        finally:
            self.seeded_ = False
