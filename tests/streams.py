"""Standard outputs that do not take what a command prints, and the status that it ends with."""

import io
import os
from contextlib import nullcontext


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


STREAMS = {
    "ascii": (lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"), 0),
    "closed": (closed_pipe, 0),
    "full": (lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", encoding="utf-8"), 2),
    "none": (nullcontext, 0),
}
