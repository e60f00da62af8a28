"""Compiled CUDA code, read with NVIDIA's own tools, and what may be wrong with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][\w.]*)", re.MULTILINE)
ADDRESS = re.compile(r"^\s+/\*[0-9a-f]+\*/", re.MULTILINE)
SECTION = re.compile(r"^//-+ \.text\.(\S+) -+$", re.MULTILINE)
RESOURCES = re.compile(r"^ Function (\S+):\n.*\bSTACK:(\d+)\b.*\bLOCAL:(\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class Tools:
    cuobjdump: str
    nvdisasm: str


@dataclass(frozen=True)
class Kernel:
    """A kernel's machine code for one architecture, with all that it calls."""

    source: str
    architecture: str
    name: str
    stack_bytes: int
    local_bytes: int
    instructions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.source} {self.architecture} {self.name}"

    def has(self, instruction: str) -> bool:
        """Whether an instruction begins with this regular expression."""
        return any(re.match(instruction, each) for each in self.instructions)


@dataclass(frozen=True)
class Code:
    """What an object file holds."""

    source: str
    architectures: frozenset[str]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Expectation:
    """Instructions of every kernel whose demangled name holds a regular expression.

    Each of `requires` and `forbids` is a regular expression for the beginning of an instruction
    with its modifiers; `architectures` is one for the whole name of an architecture.
    """

    kernel: str
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    architectures: str = "sm_.*"


def find_tool(name: str) -> str | None:
    """The tool of the PyPI package, or else of a CUDA toolkit."""
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return str(file.locate())
    return shutil.which(name)


def find_tools() -> Tools | None:
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    return Tools(cuobjdump, nvdisasm) if cuobjdump and nvdisasm else None


def read(tools: Tools, objects: Iterable[Path], folder: Path) -> list[Code]:
    """The code of object files; their parts are extracted into the folder."""
    objects = list(objects)
    parts = []
    for k, path in enumerate(objects):
        (folder / str(k)).mkdir()
        for option in ("--extract-elf", "--extract-ptx"):
            _output(tools.cuobjdump, option, "all", str(path), folder=folder / str(k))
        parts.append(sorted((folder / str(k)).iterdir()))
    images = [part for each in parts for part in each if part.suffix == ".cubin"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        kernels = dict(zip(images, pool.map(partial(_kernels, tools), images), strict=True))
    return [
        Code(
            path.name.removesuffix(".o"),
            frozenset(_architecture(part) for part in each),
            tuple(kernel for part in each for kernel in kernels.get(part, [])),
        )
        for path, each in zip(objects, parts, strict=True)
    ]


def _output(*command: str, folder: Path | None = None, stdin: str | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, input=stdin
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _architecture(part: Path) -> str:
    """sm_90a of neighbors.cu.5.sm_90a.cubin, sm_120.ptx of neighbors.cu.1.sm_120.ptx."""
    return part.name.split(".")[-2] + (".ptx" if part.suffix == ".ptx" else "")


def _kernels(tools: Tools, image: Path) -> list[Kernel]:
    resources = RESOURCES.findall(_output(tools.cuobjdump, "--dump-resource-usage", str(image)))
    disassembly = _output(tools.nvdisasm, "--print-code", "--no-dataflow", str(image))
    _, *pieces = SECTION.split(disassembly)
    code = dict(zip(pieces[::2], pieces[1::2], strict=True))
    instructions = {name: INSTRUCTION.findall(text) for name, text in code.items()}
    for name, text in code.items():
        assert len(instructions[name]) == len(ADDRESS.findall(text)) > 0, f"{image.name}: {name}"
    assert set(instructions) == {name for name, _, _ in resources}, image.name
    names = _output("c++filt", stdin="\n".join(name for name, _, _ in resources)).splitlines()
    return [
        Kernel(
            source=image.name.split(".cu.")[0] + ".cu",
            architecture=_architecture(image),
            name=readable,
            stack_bytes=int(stack),
            local_bytes=int(local),
            instructions=frozenset(instructions[name]),
        )
        for readable, (name, stack, local) in zip(names, resources, strict=True)
    ]


def missing_architectures(codes: Iterable[Code], expected: Iterable[str]) -> list[str]:
    """Complaints about object files that lack an architecture, or kernels for it; sm_80.ptx is the
    portable code from 8.0 on."""
    complaints = []
    for code in codes:
        populated = {kernel.architecture for kernel in code.kernels}
        for architecture in sorted(expected):
            if architecture not in code.architectures:
                complaints.append(f"{code.source}: nothing for {architecture}")
            elif not architecture.endswith(".ptx") and architecture not in populated:
                complaints.append(f"{code.source}: no kernel for {architecture}")
    return complaints


def local_memory(kernels: Iterable[Kernel], allowed: dict[str, str]) -> list[str]:
    """Complaints about kernels that use local memory, unless a key of `allowed` is in their name.

    A key that no such kernel needs is complained about as well.
    """
    users = [
        kernel
        for kernel in kernels
        if kernel.stack_bytes or kernel.local_bytes or kernel.has(r"(LDL|STL)\b")
    ]
    complaints = [
        f"{kernel}: {kernel.stack_bytes} bytes of stack, {kernel.local_bytes} of local memory"
        for kernel in users
        if not any(re.search(pattern, kernel.name) for pattern in allowed)
    ]
    for pattern in allowed:
        if not any(re.search(pattern, kernel.name) for kernel in users):
            complaints.append(f"no kernel needs the exception {pattern}")
    return complaints


def unmet(kernels: Iterable[Kernel], expectation: Expectation, built: Iterable[str]) -> list[str]:
    """Complaints about kernels against an expectation, and that none is there to hold to it."""
    kernels = [each for each in kernels if re.search(expectation.kernel, each.name)]
    complaints = []
    for architecture in sorted(built):
        if not re.fullmatch(expectation.architectures, architecture):
            continue
        matching = [each for each in kernels if each.architecture == architecture]
        if not matching:
            complaints.append(f"no kernel {expectation.kernel} for {architecture}")
        for kernel in matching:
            complaints += [f"{kernel}: no {i}" for i in expectation.requires if not kernel.has(i)]
            complaints += [f"{kernel}: {i}" for i in expectation.forbids if kernel.has(i)]
    return complaints
