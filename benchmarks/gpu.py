"""The check on a GPU, within 7.5 minutes: what works, whether results repeat bit for bit, how fast, how accurate.

    python benchmarks/gpu.py --kits FOLDER --out results.json
    python benchmarks/gpu.py --only speed,accuracy --kits FOLDER
    python benchmarks/gpu.py --device cpu --tiny

Sections and their deadlines are in `gpu/sections.py`. Each runs in a process of its own and prints one JSON line;
one that fails, hangs or crashes ends alone. A table comes last. Neither an installation nor a network is needed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # torch asks the driver's library, not the driver itself: CUDA may start in a fork only if it never did before
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    from gpu.command import main

    main()
