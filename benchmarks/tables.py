"""Rows to train on and to predict."""

import numpy as np

from rheidae import box3d_flux
from tests.states import random_states


def make_table(rows):
    initial = random_states(rows, alike=True)
    box = box3d_flux(initial)
    final = box + 0.1 * (box - initial)
    X = np.concatenate([initial.reshape(rows, 24), box.reshape(rows, 24)], axis=1).astype(np.float32)
    return X, final.reshape(rows, 24).astype(np.float32)
