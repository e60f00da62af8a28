"""The compiled libraries: loading them, and saying in a sentence why one is not there."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

MINIMUM_TORCH = (2, 10)


@dataclass(frozen=True)
class LibraryStatus:
    """Whether a compiled library is loaded; if not, why, and what to do about it."""

    loaded: bool
    reason: str = ""


def version() -> str:
    """Version of the installed package; "not installed" for a source folder."""
    try:
        return metadata.version("dmlfast")
    except metadata.PackageNotFoundError:
        return "not installed"


def _load_cpu() -> tuple[ModuleType | None, LibraryStatus]:
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if installed < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        return None, LibraryStatus(
            False,
            f"torch {torch.__version__} is older than {needed}, whose stable interface the "
            f"compiled library uses; run `pip install 'torch>={needed}'`",
        )
    folder = Path(__file__).parent
    try:
        return importlib.import_module("dmlfast._C"), LibraryStatus(True)
    except ImportError as error:
        if any(folder.glob("_C.*")):
            return None, LibraryStatus(
                False,
                f"the compiled library in {folder} does not load under Python "
                f"{platform.python_version()} and torch {torch.__version__} ({error}); reinstall "
                "dmlfast in this environment",
            )
        return None, LibraryStatus(
            False,
            f"{folder} holds no compiled library: it is a source folder; install it with "
            "`pip install .`, and import dmlfast from outside that folder",
        )


def _load_cuda(module: ModuleType | None) -> LibraryStatus:
    if module is None:
        return LibraryStatus(False, "the CPU library, which it needs, is not loaded")
    if torch.version.cuda is None:
        return LibraryStatus(False, f"torch {torch.__version__} is a build without CUDA")
    path = Path(__file__).parent / "_C_cuda.so"
    if not path.is_file():
        return LibraryStatus(
            False,
            f"CUDA build: {module.cuda_status}; with a CUDA build of torch and nvcc on PATH, "
            "reinstall dmlfast with DMLFAST_CUDA=1",
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return LibraryStatus(
            False,
            f"{path.name} does not load under torch {torch.__version__} ({error}); reinstall "
            "dmlfast in this environment",
        )
    return LibraryStatus(True)


module, cpu_status = _load_cpu()
cuda_status = _load_cuda(module)


def build_information() -> dict[str, str]:
    """What was built and what of it is in use, a line of text each, in order of reading."""
    information = {
        "dmlfast": version(),
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "CPU library": "loaded" if cpu_status.loaded else f"not loaded: {cpu_status.reason}",
    }
    if module is not None:
        usable = module.usable_cpu_isas()
        levels = [
            level if level in usable else f"{level} (this processor cannot run it)"
            for level in module.built_cpu_isas()
        ]
        information["built with"] = f"{module.compiler}, torch {module.torch_version}"
        information["CPU instruction sets built"] = ", ".join(levels)
        information["CPU instruction set in use"] = module.cpu_isa()
    information["CUDA library"] = (
        "loaded" if cuda_status.loaded else f"not loaded: {cuda_status.reason}"
    )
    if module is not None:
        information["CUDA build"] = module.cuda_status
    information["CUDA device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    )
    return information


def info_text() -> str:
    """`build_information` as aligned lines."""
    information = build_information()
    width = max(map(len, information))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in information.items())
