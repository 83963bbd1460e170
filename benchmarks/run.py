"""Run every benchmark, each in a process of its own, so that none warms up another."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

from harness import console

BENCHMARKS = (
    "bench_im2col",
    "bench_fit",
    "bench_product_form",
    "bench_torch",
    "bench_tools",
    "bench_keras",
    "bench_matrix",
    "bench_operator",
    "bench_spectrum",
    "bench_uncertainty",
    "bench_explorer",
)


def main() -> int:
    """Run all; return how many failed."""
    failed = 0
    began = time.perf_counter()
    for name in BENCHMARKS:
        script = pathlib.Path(__file__).with_name(f"{name}.py")
        failed += subprocess.run([sys.executable, str(script)], check=False).returncode != 0  # noqa: S603
    minutes = (time.perf_counter() - began) / 60
    console.rule(
        f"{len(BENCHMARKS) - failed} of {len(BENCHMARKS)} benchmarks, {minutes:.1f} minutes"
    )
    return failed


if __name__ == "__main__":
    sys.exit(main())
