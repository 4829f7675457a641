"""Building the compiled kernels: `python -m cluster.kernels.build`, once per installation.

Owns the compiler's call. Refuses to build at import or at run time: a server that starts must not
wait for a compiler. Without a compiler, or on another architecture, it says so and leaves the torch
kernels to serve; that is no error.
"""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "csrc"
FLAGS = [
    "-O3",
    "-fopenmp",
    "-std=c++20",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-Wall",
]


def obstacle() -> str | None:
    """Why the kernels cannot be built here; None: they can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"they are written for x86-64, this is {platform.machine()}"
    if shutil.which("g++") is None:
        return "there is no C++ compiler (install g++ and run python -m cluster.kernels.build)"
    return None


def build() -> Path:
    """Compile the extension into this package; returns its file.

    Raises:
        RuntimeError, SystemExit: the compiler failed; its messages are on standard error.
    """
    from setuptools import Distribution
    from torch.utils import cpp_extension

    tools: Any = cpp_extension
    root = Path(__file__).parents[2]
    sources = sorted(str(path.relative_to(root)) for path in SOURCES.glob("*.cpp"))
    extension = tools.CppExtension("cluster.kernels._native", sources, extra_compile_args=FLAGS)
    os.chdir(root)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja is here
    command = tools.BuildExtension.with_options(use_ninja=shutil.which("ninja") is not None)
    distribution = Distribution({"name": "deeprequest-kernels", "ext_modules": [extension]})
    builder = command(distribution)
    builder.inplace = True
    builder.build_temp = str(root / "build" / "kernels")
    builder.parallel = len(os.sched_getaffinity(0))
    builder.ensure_finalized()
    builder.run()
    return Path(root / builder.get_ext_filename("cluster.kernels._native"))


def main() -> int:
    """Build, or say why not."""
    reason = obstacle()
    if reason is not None:
        print(f"compiled kernels are left out: {reason}; plain torch serves instead")
        return 0
    print("compiling the CPU kernels (a few minutes) ...", flush=True)
    print(f"built {build()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
