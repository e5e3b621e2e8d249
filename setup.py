"""Translates pip into CMake and knows nothing else; what is built, and how, stands in CMakeLists.txt.

Environment:
    CMAKE_ARGS: more arguments for the configure step, split as a shell would.
    CMAKE_BUILD_PARALLEL_LEVEL: number of compile jobs; default is the number of CPUs.
    CMAKE_GENERATOR: default is Ninja when it is on PATH, else CMake's own choice.
    DCOMM_CUDA: AUTO (default), ON or OFF.
    DCOMM_CUDA_ARCHS: for example "90" or "80;90"; the last one gets PTX too.
    DEBUG: 1 gives a debug build.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA_MODULE = "_cuda.so"


class CleanBuild(build):
    """Starts from an empty staging folder, so that a deleted module cannot live on in the next wheel."""

    def run(self) -> None:
        """Stages and builds everything."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs the extension with CMake."""

    def build_extension(self, ext: Extension) -> None:
        """Puts `_core` (and `_cuda.so`, where it was built) into the package folder of the staging area."""
        try:
            import pybind11
        except ImportError as error:
            raise SystemExit("dcomm: pybind11 is missing; drop --no-build-isolation") from error
        cmake = shutil.which("cmake")
        if cmake is None:
            raise SystemExit("dcomm: cmake is missing; drop --no-build-isolation")

        config = "Debug" if self.debug or os.environ.get("DEBUG", "0") not in ("", "0") else "Release"
        ninja = shutil.which("ninja")
        generator = os.environ.get("CMAKE_GENERATOR") or ("Ninja" if ninja else "")
        # A lasting build folder, so that an editable install recompiles only what changed. The cache goes:
        # the tools of pip's isolated environment have a new path each time, and no option of an earlier build
        # may stick.
        build_dir = ROOT / "build" / f"{sys.implementation.cache_tag}-{config.lower()}"
        (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
        configure = [
            f"-DCMAKE_BUILD_TYPE={config}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDCOMM_CUDA={os.environ.get('DCOMM_CUDA', 'AUTO')}",
        ]
        if generator:
            configure += ["-G", generator]
        if generator == "Ninja" and ninja:
            configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        if archs := os.environ.get("DCOMM_CUDA_ARCHS"):
            configure += [f"-DDCOMM_CUDA_ARCHS={archs}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))

        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(self.parallel or os.cpu_count() or 1)
        package_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(build_dir), *configure],
            [cmake, "--build", str(build_dir), "--config", config, "--parallel", jobs],
            [cmake, "--install", str(build_dir), "--config", config, "--prefix", str(package_dir)],
        ):
            print("dcomm:", shlex.join(command), flush=True)
            subprocess.run(command, check=True)

    def copy_extensions_to_source(self) -> None:
        """Editable install: setuptools copies `_core` only; a CUDA module of an earlier build must go."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "dcomm" / CUDA_MODULE
        target = ROOT / "dcomm" / CUDA_MODULE
        target.unlink(missing_ok=True)
        if built.exists():
            shutil.copy2(built, target)


setup(
    ext_modules=[Extension("dcomm._core", sources=[])],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild},
)
