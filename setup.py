"""Builds the one extension, fastboot._core. Everything static is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("FASTBOOT_DEBUG") == "1"
core = Extension(
    "fastboot._core",
    ["fastboot/_core.pyx"],
    depends=[str(part) for part in sorted(Path("fastboot/_native").glob("*.px[di]"))],
    extra_compile_args=["-std=gnu11", "-O0" if debug else "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    define_macros=[("CYTHON_TRACE_NOGIL", "1")] if debug else [],
)
setup(
    ext_modules=cythonize(
        [core], annotate=debug, show_all_warnings=True, compiler_directives={"cdivision": True, "linetrace": debug}
    )
)
