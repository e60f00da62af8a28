"""Checks of arguments that several families share: shapes, dtypes, and data that can be read."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

# What the five arguments of `check_pairs` are called by functions, and by losses and miners.
NAMES = ("x", "labels", "references", "reference_labels", "self_index")
MODULE_NAMES = ("embeddings", "labels", "ref_emb", "ref_labels", "self_index")
METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


class Pairs(NamedTuple):
    """Checked anchors and references of an operator.

    Attributes:
        x: (N, d) anchors.
        labels: (N,) int64.
        references: (M, d); `x` itself within a batch.
        reference_labels: (M,) int64; `labels` itself within a batch.
        self_index: (N,) int64, the reference that is the anchor itself, -1 for none; or None.
        within_batch: whether the batch is its own reference set.
    """

    x: Tensor
    labels: Tensor
    references: Tensor
    reference_labels: Tensor
    self_index: Tensor | None
    within_batch: bool = False

    def orders(self) -> tuple[Tensor, Tensor]:
        """Stable permutations that sort the labels; the same tensor twice within a batch."""
        order = torch.argsort(self.labels, stable=True)
        if self.reference_labels is self.labels:
            return order, order
        return order, torch.argsort(self.reference_labels, stable=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def allows_fast_products() -> bool:
    """Whether products may be rounded as `torch.set_float32_matmul_precision` allows.

    A compiled function takes it for a constant, and is compiled again when it changes.
    """
    return torch.get_float32_matmul_precision() != "highest"


def describe(value: object) -> str:
    """Shape, dtype and device of a tensor, or the type of anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return type(value).__name__


def check_tensor(name: str, value: object) -> Tensor:
    """Raises TypeError unless `value` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
    return value


def check_embeddings(name: str, value: object) -> Tensor:
    """Raises unless `value` is a matrix of a supported floating dtype."""
    x = check_tensor(name, value)
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:
        raise TypeError(
            f"{name}: expected a tensor without a forward-mode tangent: dmlfast's operators have "
            "derivatives in reverse mode alone"
        )
    if x.dim() != 2:
        raise ValueError(f"{name}: expected a 2-D tensor (rows, dimensions), got {describe(x)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {describe(x)}"
        )
    return x


def check_dimensions(name: str, x: Tensor, dimensions: int) -> None:
    """Raises ValueError unless the rows of `x` have so many dimensions."""
    if x.shape[1] != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimensions, got {describe(x)}")


def check_integer_dtype(name: str, value: object) -> Tensor:
    """Raises TypeError unless `value` is a dense tensor of an integer dtype."""
    integers = check_tensor(name, value)
    if integers.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name}: expected an integer dtype, got {describe(integers)}")
    return integers


def check_integers(name: str, value: object, rows: int, device: torch.device) -> Tensor:
    """Returns (rows,) integers as contiguous int64; raises if they are anything else."""
    integers = check_integer_dtype(name, value)
    if integers.dim() != 1 or integers.shape[0] != rows:
        raise ValueError(f"{name}: expected shape ({rows},), got {describe(integers)}")
    if integers.device != device:
        raise ValueError(
            f"{name}: expected the device of the embeddings, {device}, got {describe(integers)}"
        )
    return integers.to(torch.int64).contiguous()


def can_read(x: Tensor) -> bool:
    """Whether data can be looked at: on CUDA the host would wait, a traced call has none."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.device.type == "cpu"


def check_classes(name: str, labels: Tensor, count: int, *, waits: bool = False) -> None:
    """Raises ValueError unless all labels that can be read are in [0, count).

    With `waits` the host waits for those on a GPU, too.
    """
    readable = can_read(labels)
    if waits and not torch.compiler.is_compiling():
        readable = type(labels) is Tensor
    if not readable or labels.numel() == 0:
        return
    least, greatest = (int(value) for value in labels.aminmax())
    if least < 0 or greatest >= count:
        raise ValueError(
            f"{name}: expected classes in [0, {count}), got {least if least < 0 else greatest}"
        )


def check_number(name: str, value: object) -> float:
    """Raises TypeError unless `value` is a number, ValueError if it is NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number in the range of float64") from None
    if number != number:
        raise ValueError(f"{name}: expected a number, got {value!r}")
    return number


def check_finite(name: str, value: object) -> float:
    """Raises as `check_number`, and ValueError if the number is infinite."""
    number = check_number(name, value)
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def check_range(name: str, number: float, dtype: torch.dtype) -> float:
    """Raises ValueError if the number is beyond the range of a floating dtype."""
    if abs(number) > torch.finfo(dtype).max:
        raise ValueError(f"{name}: expected a number in the range of {dtype}, got {number!r}")
    return number


def check_positive(name: str, value: object) -> float:
    """Raises as `check_number`, and ValueError unless the number is greater than 0 and finite."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number greater than 0, got {value!r}")
    return number


def check_not_negative(name: str, value: object) -> float:
    """Raises as `check_number`, and ValueError unless the number is at least 0 and finite."""
    number = check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return number


def check_share(name: str, value: object) -> float:
    """Raises as `check_number`, and ValueError unless the number is 0 to 1."""
    number = check_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a number of 0 to 1, got {value!r}")
    return number


def check_count(name: str, value: object, least: int = 1, greatest: int | None = None) -> int:
    """Raises TypeError unless `value` is an integer, ValueError unless least <= it <= greatest."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least or (greatest is not None and value > greatest):
        expected = f"at least {least}" if greatest is None else f"{least} to {greatest}"
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return value  # type: ignore[return-value]  # a SymInt stands for an int


def check_flag(name: str, value: object) -> bool:
    """Raises TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_generator(value: object) -> torch.Generator | None:
    """Raises TypeError unless `value` is a generator or None."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator or None, got {describe(value)}")
    return value


def check_option(name: str, value: object, options: tuple[str, ...]) -> str:
    """Raises ValueError unless `value` is one of the options."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {options}, got {value!r}")
    return value


def check_pairs(
    x: object,
    labels: object,
    references: object = None,
    reference_labels: object = None,
    self_index: object = None,
    *,
    names: tuple[str, str, str, str, str] = NAMES,
) -> Pairs:
    """Checks the arguments that every selection and pair loss takes.

    Without `references` the batch is its own reference set, and each anchor's self is its row.
    `names` are those of the five arguments in messages.

    Raises:
        TypeError: something is not a tensor, or has a wrong dtype.
        ValueError: a wrong shape or device, or references without labels.
    """
    x_name, labels_name, references_name, reference_labels_name, self_name = names
    anchors = check_embeddings(x_name, x)
    device = anchors.device
    anchor_labels = check_integers(labels_name, labels, anchors.shape[0], device)
    if references is None:
        if reference_labels is not None:
            raise ValueError(
                f"{reference_labels_name}: expected None without {references_name}, "
                f"got {describe(reference_labels)}"
            )
        if self_index is not None:
            raise ValueError(
                f"{self_name}: expected None without {references_name}, as self is "
                f"known within a batch, got {describe(self_index)}"
            )
        own = torch.arange(anchors.shape[0], device=device)
        return Pairs(anchors, anchor_labels, anchors, anchor_labels, own, True)
    others = check_references(references_name, references, x_name, anchors)
    if reference_labels is None:
        raise ValueError(f"{reference_labels_name}: expected labels of {references_name}, got None")
    other_labels = check_integers(reference_labels_name, reference_labels, others.shape[0], device)
    own_index = (
        None
        if self_index is None
        else check_integers(self_name, self_index, anchors.shape[0], device)
    )
    return Pairs(anchors, anchor_labels, others, other_labels, own_index)


def check_references(name: str, value: object, x_name: str, x: Tensor) -> Tensor:
    """Raises unless `value` is a matrix with the dimensions, dtype and device of `x`."""
    references = check_embeddings(name, value)
    if references.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name}: expected {x.shape[1]} dimensions as in {x_name}, got {describe(references)}"
        )
    if references.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype} as {x_name}, got {describe(references)}")
    if references.device != x.device:
        raise ValueError(
            f"{name}: expected the device of {x_name}, {x.device}, got {describe(references)}"
        )
    return references
