"""What the CUDA sources are compiled to, read from the object files of the build; needs no GPU."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from cuda_code import (
    Expectation,
    find_tools,
    local_memory,
    missing_architectures,
    read,
    unmet,
)

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cmake"

# Kernels that may use local memory, as a regular expression of their demangled name, and why.
LOCAL_MEMORY_ALLOWED: dict[str, str] = {}

EXPECTATIONS = [
    # Gradients are float64 sums without contraction. (A division or a square root, of which these
    # kernels have none, is made of fused instructions.)
    Expectation(
        r"(anchor|reference)_gradient_kernel<",
        requires=("DADD", "DMUL"),
        forbids=("DFMA",),
    ),
    # Selections compare float64 values.
    Expectation(r"(exact_walk|class_select|choose)_kernel<", requires=("DADD", "DMUL", "DSETP")),
    # So are the means of clusters, but for the division.
    Expectation(r"\bsection_sums_kernel\b", requires=("DADD",), forbids=("DFMA",)),
    # The weights of k-means++ are those of the CPU bit by bit.
    Expectation(r"\bapproach_kernel\b", requires=("DADD", "DMUL"), forbids=("DFMA",)),
    # Ranking losses are float64 sums; synthesised rows are summed by fused float32 instructions.
    Expectation(r"\branking_(loss|gradient)_kernel\b", requires=("DADD", "DMUL")),
    Expectation(r"\bsynthesis_(measure|gradient)_kernel\b", requires=("FFMA",)),
    # Walks multiply on the tensor cores, on Hopper by group products.
    Expectation(r"\b(gradient_)?walk_kernel<", requires=("HGMMA",), architectures="sm_90a"),
    Expectation(r"\b(gradient_)?walk_kernel<", requires=("HMMA",), architectures=r"sm_(?!90a).*"),
]

# The first architecture of dmlfast's list, the one with wgmma, the last, and portable code.
SAMPLE_ARCHITECTURES = ("sm_75", "sm_90a", "sm_120", "sm_120.ptx")


@pytest.fixture(scope="session")
def tools():
    found = find_tools()
    if found is None:
        pytest.skip("needs cuobjdump and nvdisasm, which dmlfast[test] installs on Linux")
    return found


@pytest.fixture(scope="session")
def build():
    """The build's note of what it compiled and how."""
    path = BUILD / "cuda_code.json"
    if not path.is_file():
        pytest.skip(f"{BUILD} holds no CUDA code: no nvcc was found, or the build was elsewhere")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def codes(tools, build, tmp_path_factory):
    return read(tools, map(Path, build["objects"]), tmp_path_factory.mktemp("cuda_code"))


@pytest.fixture(scope="session")
def kernels(codes):
    return [kernel for code in codes for kernel in code.kernels]


@pytest.fixture(scope="session")
def sample(tools, build, tmp_path_factory):
    known = subprocess.run(
        [build["compiler"], "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout.split()
    if not {"sm_75", "sm_120"} <= set(known):
        pytest.skip(f"{build['compiler']} does not know every architecture of the sample")
    folder = tmp_path_factory.mktemp("cuda_code_sample")
    command = [build["compiler"], "-c", str(ROOT / "tests" / "cuda_code_sample.cu")]
    command += ["-std=c++17", "--threads=0", "-o", str(folder / "cuda_code_sample.cu.o")]
    for name in SAMPLE_ARCHITECTURES:
        virtual = name.removesuffix(".ptx").replace("sm_", "compute_")
        code = virtual if name.endswith(".ptx") else name
        command.append(f"--generate-code=arch={virtual},code={code}")
    subprocess.run(command, check=True)
    (folder / "parts").mkdir()
    (code,) = read(tools, [folder / "cuda_code_sample.cu.o"], folder / "parts")
    return code


def test_every_cuda_source_is_compiled(build):
    compiled = {re.sub(r".*_C_cuda\.dir/(\./)?", "", each) for each in build["objects"]}
    sources = {f"{path.relative_to(ROOT)}.o" for path in (ROOT / "csrc").rglob("*.cu")}
    assert {each for each in compiled if each.endswith(".cu.o")} == sources


def test_every_source_has_kernels_for_every_architecture(codes, build):
    assert codes
    assert missing_architectures(codes, build["code"]) == []


def test_no_kernel_spills_or_has_a_stack(kernels):
    assert local_memory(kernels, LOCAL_MEMORY_ALLOWED) == []


@pytest.mark.parametrize(
    "expectation", EXPECTATIONS, ids=lambda each: f"{each.kernel} {each.architectures}"
)
def test_kernels_have_the_instructions_they_are_written_for(kernels, expectation):
    built = {kernel.architecture for kernel in kernels}
    assert unmet(kernels, expectation, built) == []


# --- The rules themselves, on a sample of right and wrong kernels --------------------------------


def test_an_architecture_that_is_missing_is_found(sample):
    assert missing_architectures([sample], SAMPLE_ARCHITECTURES) == []
    assert missing_architectures([sample], ["sm_90a", "sm_90", "sm_75", "sm_75.ptx"]) == [
        "cuda_code_sample.cu: nothing for sm_75.ptx",
        "cuda_code_sample.cu: nothing for sm_90",
    ]


@pytest.mark.parametrize("name", ["array_kernel", "calling_kernel", "spilling_kernel"])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90a", "sm_120"])
def test_local_memory_is_found_by_size_and_by_instruction(sample, name, architecture):
    (kernel,) = (
        each
        for each in sample.kernels
        if each.name.startswith(f"{name}(") and each.architecture == architecture
    )
    assert kernel.stack_bytes > 0
    assert kernel.has("LDL")
    assert kernel.has("STL")
    assert len(local_memory([kernel], {})) == 1


def test_an_exception_from_the_rule_of_local_memory_holds_for_its_kernel_alone(sample):
    complaints = local_memory(sample.kernels, {"array_kernel": "a sample"})
    assert complaints
    assert all(re.search("calling_kernel|spilling_kernel", each) for each in complaints)


def test_an_exception_that_nothing_needs_is_found(sample):
    products = [each for each in sample.kernels if "product_kernel" in each.name]
    assert local_memory(products, {}) == []
    assert local_memory(products, {"product_kernel": "none"}) == [
        "no kernel needs the exception product_kernel"
    ]


@pytest.mark.parametrize(
    ("expectation", "complaints"),
    [
        (Expectation("product_kernel<Mma>", requires=("HMMA",), forbids=("HGMMA",)), 0),
        (Expectation("product_kernel<Wgmma>", ("HGMMA",), architectures="sm_90a"), 0),
        (Expectation("product_kernel<Wgmma>", requires=("HGMMA",)), 2),
        (Expectation("product_kernel<Mma>", requires=(r"HMMA\.16816\b",)), 3),
        (Expectation("product_kernel<Mma>", forbids=("HMMA",)), 3),
        (Expectation("array_kernel", requires=("HMMA",)), 3),
        (Expectation("no_such_kernel"), 3),
    ],
)
def test_an_expectation_is_held_against_each_architecture(sample, expectation, complaints):
    built = {each.architecture for each in sample.kernels}
    assert len(unmet(sample.kernels, expectation, built)) == complaints
