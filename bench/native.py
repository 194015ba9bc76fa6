"""Compiles a .pyx of this directory when it is wanted, and keeps what came of it in .cache."""

from __future__ import annotations

import hashlib
import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

from Cython.Build import cythonize
from setuptools import Distribution, Extension

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """Return the module made of bench/NAME.pyx, which may cimport the core's header-only parts."""
    source, root = HERE / f"{name}.pyx", HERE.parent
    sources = [source, *sorted((root / "fastboot" / "_native").glob("*.pxd"))]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    out = root / ".cache" / f"bench-{name}-{digest}"
    module = out / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        extension = Extension(name, [str(source)], extra_compile_args=["-O2", "-std=gnu11"])
        modules = cythonize([extension], build_dir=str(out), include_path=[str(root)], quiet=True)
        build = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(out), str(out / "temp")
        build.ensure_finalized()
        build.run()
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
