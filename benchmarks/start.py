"""What commands take on the sample, in fresh processes: ``python -m benchmarks.start``.

CPU time of the first run ever, which compiles kernels, and of a later one, with how many kernels are in Numba's cache.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

RUN, SAMPLE = "checkpoints/start", ".pdata/preprocessed_all.h5"

COMMANDS = {
    "import rheidae": ["-c", "import rheidae"],
    "rheidae preprocess": ["-m", "rheidae", "preprocess", "--force"],
    "rheidae train": ["-m", "rheidae", "train", "--run-id", "start"],
    "rheidae evaluate --run": ["-m", "rheidae", "evaluate", "--run", RUN, "--data", SAMPLE],
    "rheidae predict --model asymptotic": [
        "-m", "rheidae", "predict", "--model", "asymptotic", "--data", SAMPLE, "--out", "a.h5",
    ],
    "rheidae predict --model pretrained": [
        "-m", "rheidae", "predict", "--model", "pretrained", "--data", SAMPLE, "--out", "p.h5",
    ],
}  # fmt: skip


def processor() -> str:
    """What /proc/cpuinfo says, and whether it has AVX-512."""
    lines = dict(line.split("\t: ", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if "\t: " in line)
    found = {name.strip(): value for name, value in lines.items()}
    vectors = "AVX-512" if "avx512f" in found.get("flags", "") else "AVX2"
    return f"{found.get('model name')}, family {found.get('cpu family')}, model {found.get('model')}, {vectors}"


def seconds(arguments: list[str], folder: str, cache: Path) -> float:
    """CPU time of a process and its threads."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process compiles what it imports
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table."""
    print(processor())
    print("| command | first ever, CPU s | kernels | warm, CPU s |\n| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "rheidae", "init"], cwd=folder, check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "rheidae.datasets", ".data"], cwd=folder, check=True, capture_output=True)
        for number, (name, arguments) in enumerate(COMMANDS.items()):
            cache = Path(folder, f"cache{number}")
            first = seconds(arguments, folder, cache)
            warm = min(seconds(arguments, folder, cache) for _ in range(3))
            print(f"| `{name}` | {first:.2f} | {len(list(cache.rglob('*.nbi')))} | {warm:.2f} |", flush=True)


if __name__ == "__main__":
    main()
