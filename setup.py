"""Builds the native core, fastboot._core, and the simulated machines of the lab. All that is static is in
pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

debug = os.environ.get("FASTBOOT_DEBUG") == "1"
extensions = [
    Extension(
        name,
        [f"{name.replace('.', '/')}.pyx"],
        depends=[str(part) for room in rooms for part in sorted(Path("fastboot", room).glob("*.px[di]"))],
        extra_compile_args=["-std=gnu11", "-O0" if debug else "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if debug else [],
    )
    for name, rooms in (
        ("fastboot._core", ("_native",)),
        ("fastboot.lab._fleet", ("_native", "lab")),
        ("fastboot.lab._machines", ("_native", "lab")),
        ("fastboot.lab._sinks", ("_native", "lab")),
    )
]
setup(
    ext_modules=cythonize(
        extensions,
        annotate=debug,
        show_all_warnings=True,
        compiler_directives={"cdivision": True, "linetrace": debug},
    )
)
