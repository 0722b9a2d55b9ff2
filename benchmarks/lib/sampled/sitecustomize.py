"""Has every Python process below ``bench step`` sampled: the benchmark puts this directory on their PYTHONPATH."""

import os
from pathlib import Path

from benchmarks.lib.cpu_sampler import DIRECTORY, CpuSampler

if os.environ.get(DIRECTORY):
    CpuSampler(Path(os.environ[DIRECTORY])).start()
