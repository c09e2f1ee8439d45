"""What the Numba kernels compute, as operations on tensors alone: for graphs that leave Python."""
