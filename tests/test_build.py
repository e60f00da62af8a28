"""What the compiled library is made of, read from the library itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dmlfast import _library

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")


@pytest.fixture(scope="module")
def libraries():
    return sorted(Path(_library.module.__file__).parent.glob("_C*.so"))


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def code_of_levels():
    """Disassembly by instruction set level: the functions of its namespace."""
    text = output("objdump", "-d", "--no-show-raw-insn", _library.module.__file__)
    code = dict.fromkeys(_library.module.built_cpu_isas(), "")
    for function in text.split("\n\n"):
        for level in code:
            if re.match(rf"[0-9a-f]+ <_ZN\w*7dmlfast3cpu{len(level)}{level}", function):
                code[level] += function + "\n"
    return code


@pytest.mark.parametrize(
    ("level", "uses", "avoids"),
    [
        ("baseline", "%xmm", "%[yz]mm"),
        ("avx2", "%ymm", "%zmm"),
        ("avx512", "%zmm", "no such register"),
    ],
)
def test_a_level_uses_its_own_registers_and_no_wider_ones(code_of_levels, level, uses, avoids):
    if level not in code_of_levels:
        pytest.skip("built for another processor family")
    products = [line for line in code_of_levels[level].splitlines() if "mulpd" in line]
    assert any(re.search(uses, line) for line in products)
    assert not re.search(avoids, code_of_levels[level])


def test_float64_arithmetic_does_not_fuse_multiplication_and_addition(code_of_levels):
    # Exact values are float64 and compared between levels to the bit; what is float32 is a search,
    # whose keys decide nothing, or a sum.
    for code in code_of_levels.values():
        assert "mulpd" in code
        assert not re.search(r"fn?m(add|sub)\d+[ps]d", code)


def test_the_libraries_use_only_the_stable_interface_of_torch(libraries):
    for library in libraries:
        undefined = output("nm", "-D", "--undefined-only", str(library))
        assert "aoti_torch" in undefined
        assert not re.findall(r"\b_ZNK?(?:S\w+)?(?:3c10|2at|5torch)\w+", undefined)


def test_the_libraries_hold_no_folder_of_the_machine_that_built_them(libraries):
    for library in libraries:
        content = library.read_bytes()
        assert b"site-packages/" not in content
        assert not re.search(rb"(?<![\w.-])/[\w./-]+/(?:csrc|include|build)/", content)
        assert not re.search(r"R(UN)?PATH", output("readelf", "-d", str(library)))
