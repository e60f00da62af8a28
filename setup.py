"""Drives CMake; CMakeLists.txt says how sources compile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def cmake_arguments(version: str) -> list[str]:
    """Options that carry what only Python knows: where torch and pybind11 are."""
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            f"dmlfast's build cannot import what it needs ({error}): run `pip install "
            "'torch>=2.10' pybind11 cmake ninja` first, or install without --no-build-isolation."
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise SystemExit(
            f"dmlfast's build needs torch 2.10 or newer, found {torch.__version__}: run `pip "
            "install 'torch>=2.10'` first, or install without --no-build-isolation."
        )
    return [
        f"-DDMLFAST_VERSION={version}",
        f"-DDMLFAST_CUDA={os.environ.get('DMLFAST_CUDA') or 'AUTO'}",
        f"-DDMLFAST_CUDA_ARCH_LIST={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}",
        f"-DDMLFAST_TORCH_INCLUDE={';'.join(cpp_extension.include_paths())}",
        f"-DDMLFAST_TORCH_LIBRARIES={';'.join(cpp_extension.library_paths())}",
        f"-DDMLFAST_TORCH_VERSION={torch.__version__}",
        f"-DDMLFAST_TORCH_CUDA={torch.version.cuda or ''}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package folder."""

    def run(self) -> None:
        if self.editable_mode or self.inplace:
            package = ROOT / "dmlfast"
        else:
            package = Path(self.build_lib).resolve() / "dmlfast"
        package.mkdir(parents=True, exist_ok=True)
        build = ROOT / "build" / "cmake"
        arguments = cmake_arguments(self.distribution.get_version())
        self.forget_other_environment(build, arguments)
        self.step("configure", ["-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments])
        self.step("compile", ["--build", str(build)])
        # Not before: a build that fails leaves the library that works.
        for stale in package.glob("_C*.so"):
            stale.unlink()
        self.step("install", ["--install", str(build), "--prefix", str(package)])

    def forget_other_environment(self, build: Path, arguments: list[str]) -> None:
        """Removes a build tree of another environment: an isolated one is gone by now."""
        stamp = build / "arguments.json"
        if not stamp.is_file() or json.loads(stamp.read_text()) != arguments:
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(arguments))

    def step(self, name: str, arguments: list[str]) -> None:
        try:
            subprocess.run(["cmake", *arguments], check=True)
        except FileNotFoundError:
            raise SystemExit(
                "dmlfast's build needs CMake: run `pip install cmake ninja` first, or install "
                "without --no-build-isolation."
            ) from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"dmlfast's build failed in its {name} step (exit status {error.returncode}): the "
                "compiler's own message is above; where it concerns CUDA, DMLFAST_CUDA=0 builds "
                "for the CPU alone."
            ) from None


setup(
    ext_modules=[Extension("dmlfast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
