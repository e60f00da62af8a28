"""Who computes: the choice of backend and instruction set, and a library that is not there."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from operator_cases import NAMESPACE, each_backend
from torch import Tensor

import dmlfast
import dmlfast.functional as F
from dmlfast import _backend, _library, build_information, use_backend
from dmlfast.ops import _operators
from dmlfast.reference import neighbors as reference

X, LABELS = torch.eye(4), torch.tensor([0, 0, 1, 1])

USE_BOTH_FAMILIES = """
import torch, dmlfast.functional as F
x, labels = torch.eye(4, requires_grad=True), torch.tensor([0, 0, 1, 1])
print(F.nearest_positive(x, labels).index.tolist())
loss = F.triplet_margin_loss(x, labels, margin=0.25)
loss.backward()
print(loss.item())
"""
ANSWER = "[1, 0, 3, 2]\n0.25\n"


@pytest.fixture
def served(monkeypatch):
    """A function that says who serves a call now."""
    calls = []
    select = reference.select
    monkeypatch.setattr(reference, "select", lambda *a, **k: calls.append(1) or select(*a, **k))

    def by() -> str:
        calls.clear()
        F.nearest_positive(X, LABELS)
        return "reference" if calls else "kernel"

    return by


# --- use_backend ----------------------------------------------------------------------------------


def test_kernels_serve_by_default(served):
    assert served() == "kernel"


def test_use_backend_holds_within_its_block_alone(served):
    with use_backend("reference"):
        assert served() == "reference"
    assert served() == "kernel"


def test_use_backend_decorates_a_function(served):
    @use_backend("reference")
    def function() -> str:
        """Says who serves."""
        return served()

    assert [function(), served(), function()] == ["reference", "kernel", "reference"]
    assert function.__name__ == "function"
    assert function.__doc__ == "Says who serves."


def test_use_backend_nests(served):
    with use_backend("reference"):
        with use_backend("kernel"):
            assert served() == "kernel"
            with use_backend("reference"):
                assert served() == "reference"
            assert served() == "kernel"
        assert served() == "reference"
    assert served() == "kernel"


def test_one_use_backend_may_be_entered_again_within_itself(served):
    reference_backend = use_backend("reference")
    with reference_backend, use_backend("kernel"), reference_backend:
        assert served() == "reference"
    assert served() == "kernel"


def test_an_exception_leaves_the_backend_as_it_was(served):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert served() == "kernel"


def test_use_backend_holds_in_its_thread_alone(served):
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(served()))
        thread.start()
        thread.join()
    assert seen == ["kernel"]


def test_a_decorated_function_may_run_in_two_threads_at_once():
    first_entered, second_entered, first_left = (threading.Event() for _ in range(3))
    after = {}

    @use_backend("reference")
    def function(entered: threading.Event, leave: threading.Event) -> None:
        entered.set()
        leave.wait(10)

    def first() -> None:
        with use_backend("kernel"):
            function(first_entered, second_entered)
            after["first"] = _backend.backend_name()
        first_left.set()

    def second() -> None:
        first_entered.wait(10)
        with use_backend("reference"):
            function(second_entered, first_left)
            after["second"] = _backend.backend_name()

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert after == {"first": "kernel", "second": "reference"}


@pytest.mark.parametrize("name", ["cuda", "Kernel", "", None])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(ValueError, match=r"use_backend: expected one of .*kernel.*reference.*got"):
        use_backend(name)


def test_the_backward_pass_is_that_of_the_forward_passs_backend():
    gradients = []
    for forward, backward in (("kernel", "reference"), ("reference", "kernel")):
        x = X.clone().requires_grad_()
        with use_backend(forward):
            distance = F.nearest_positive(x, LABELS).distance
        with use_backend(backward):
            distance.sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernel", "reference", ""])
def test_dmlfast_backend_sets_the_default(run_python, name):
    done = run_python(
        USE_BOTH_FAMILIES + "from dmlfast._backend import backend_name; print(backend_name())",
        DMLFAST_BACKEND=name,
    )
    assert done.stdout == f"{ANSWER}{name or 'kernel'}\n", done.stderr


def test_a_wrong_dmlfast_backend_is_named(run_python):
    done = run_python(USE_BOTH_FAMILIES, DMLFAST_BACKEND="fast")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ValueError: DMLFAST_BACKEND: expected one of ('kernel', 'reference'), got 'fast'"
    )


@pytest.mark.parametrize("isa", _library.module.usable_cpu_isas())
def test_dmlfast_cpu_isa_sets_the_instruction_set(run_python, isa):
    done = run_python(
        USE_BOTH_FAMILIES
        + "import dmlfast; print(dmlfast.build_information()['CPU instruction set in use'])",
        DMLFAST_CPU_ISA=isa,
    )
    assert done.stdout == f"{ANSWER}{isa}\n", done.stderr


@pytest.mark.parametrize("code", [USE_BOTH_FAMILIES, "import dmlfast; dmlfast.build_information()"])
def test_a_wrong_dmlfast_cpu_isa_is_named(run_python, code):
    done = run_python(code, DMLFAST_CPU_ISA="mmx")
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ValueError: ")
    for part in ("DMLFAST_CPU_ISA", "expected one of baseline", "got 'mmx'"):
        assert part in message


def test_an_unknown_instruction_set_is_refused_and_the_one_in_use_stays():
    before = _library.module.cpu_isa()
    with pytest.raises(ValueError, match=r"expected one of baseline.*got 'mmx'"):
        _library.module.select_cpu_isa("mmx")
    assert _library.module.cpu_isa() == before


def test_the_highest_usable_instruction_set_is_the_default(run_python):
    done = run_python("from dmlfast import _library as l; print(l.module.cpu_isa())")
    assert done.stdout.strip() == _library.module.usable_cpu_isas()[-1]


# --- what was built -------------------------------------------------------------------------------


def test_build_information_says_what_was_built_and_what_is_in_use(select_isa):
    select_isa("baseline")
    information = build_information()
    assert information["dmlfast"] == dmlfast.__version__
    assert torch.__version__ in information["torch"]
    assert information["CPU library"] == "loaded"
    assert "torch 2." in information["built with"]
    assert information["CPU instruction sets built"].startswith("baseline")
    assert information["CPU instruction set in use"] == "baseline"
    assert information["CUDA library"] == "loaded" or information["CUDA library"].startswith(
        "not loaded: "
    )
    assert "CUDA build" in information
    assert "CUDA device" in information
    assert all(isinstance(text, str) and "\n" not in text for text in information.values())


# --- without the compiled library -----------------------------------------------------------------

# An editable installation would find its own compiled library for any folder named dmlfast.
FORGET_INSTALLATION = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f)]
"""


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory) -> Path:
    """A folder to import dmlfast from as it is in the repository: not compiled."""
    folder = tmp_path_factory.mktemp("source")
    package = Path(dmlfast.__file__).parent
    ignored = shutil.ignore_patterns("_C*", "__pycache__")
    shutil.copytree(package, folder / "dmlfast", ignore=ignored)
    return folder


@pytest.fixture
def run_in(run_python):
    """A function that runs code in a folder and with the dmlfast that is there."""
    return lambda folder, code, **environment: run_python(
        FORGET_INSTALLATION + code, folder, **environment
    )


def test_a_missing_library_is_explained_in_one_sentence(run_in, source_folder):
    done = run_in(source_folder, USE_BOTH_FAMILIES)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"RuntimeError: dmlfast: {source_folder / 'dmlfast'} holds no")
    assert "pip install ." in message
    assert "DMLFAST_BACKEND=reference" in message


def test_dmlfast_backend_reference_works_without_the_library(run_in, source_folder):
    done = run_in(source_folder, USE_BOTH_FAMILIES, DMLFAST_BACKEND="reference")
    assert done.stdout == ANSWER, done.stderr


def test_use_backend_reference_works_without_the_library(run_in, source_folder):
    body = USE_BOTH_FAMILIES.replace("\n", "\n    ")
    done = run_in(source_folder, f"import dmlfast\nwith dmlfast.use_backend('reference'):{body}")
    assert done.stdout == ANSWER, done.stderr


def test_build_information_works_without_the_library(run_in, source_folder):
    done = run_in(source_folder, "import dmlfast; print(dmlfast.build_information())")
    assert "'CPU library': 'not loaded: " in done.stdout, done.stderr


def test_a_library_that_does_not_load_is_explained(run_in, source_folder, tmp_path):
    shutil.copytree(source_folder / "dmlfast", tmp_path / "dmlfast")
    suffix = Path(_library.module.__file__).name.removeprefix("_C")
    (tmp_path / "dmlfast" / f"_C{suffix}").write_bytes(b"not a library")
    message = run_in(tmp_path, USE_BOTH_FAMILIES).stderr.splitlines()[-1]
    assert message.startswith("RuntimeError: dmlfast: the compiled library in ")
    assert "does not load under Python" in message
    assert "reinstall dmlfast" in message


def test_a_library_of_other_sources_is_explained():
    def reference(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    with pytest.raises(ImportError, match=r"no operator 'absent'.*build it again"):
        _operators.register(
            "absent", reference=reference, fake=reference, save_for_backward=print, backward=print
        )


def transposed(*shape: int) -> Tensor:
    """A leaf whose columns are contiguous in memory."""
    return torch.rand(*shape[::-1]).T.requires_grad_()


@each_backend
@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pairwise_distance(x, transposed(5, 3)).sum(),
        lambda x: F.distance_statistics(x).deviation,
        lambda x: F.info_nce_loss(x, torch.arange(8) % 3),
        lambda x: F.triplet_margin_loss(x, torch.arange(8) % 3),
        lambda x: F.nearest_positive(x, torch.arange(8) % 3).distance.sum(),
        lambda x: F.adaptive_distance(x, transposed(8, 3)).sum(),
        lambda x: F.multi_cluster_loss(x, transposed(8, 3)),
        lambda x: F.ranking_loss(x, margin=0.1, scale=2.0),
        lambda x: F.cluster_means(x, torch.arange(8) % 3, 3).mean.sum(),
        lambda x: F.assign_clusters(x, transposed(4, 3), temperature=0.5).mean.sum(),
    ],
)
def test_operators_return_what_their_fakes_promise_for_transposed_rows(
    function, backend, operator_calls
):
    x = transposed(8, 3)
    with use_backend(backend):
        calls = operator_calls(lambda: function(x).backward(), NAMESPACE[backend])
    assert calls
    for operator, arguments in calls:
        # Compiled code relies on the strides; opcheck compares them, of a gradient's operator, too.
        detached = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
        torch.library.opcheck(operator, detached, test_utils="test_faketensor")
