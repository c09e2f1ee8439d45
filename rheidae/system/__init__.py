"""What every stage needs of the machine: files, outputs, signals, threads, progress, commands, Numba."""
