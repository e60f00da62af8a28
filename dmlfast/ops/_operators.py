"""What the operators of all families share: their two namespaces, fakes and autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dmlfast import _library
from dmlfast._backend import uses_kernel

_KERNELS = "dmlfast"
_REFERENCE = "dmlfast_reference"


def operators(name: str, device: torch.device) -> Any:
    """The namespace of kernels or of plain torch, whichever serves a name on a device.

    The name is a family's, or that of an operator that has fewer kernels than its family.

    Raises:
        RuntimeError: as `dmlfast._backend.uses_kernel`.
    """
    return getattr(torch.ops, _KERNELS if uses_kernel(name, device) else _REFERENCE)


def reference_operators() -> Any:
    """The namespace of plain torch, for what no kernel serves on any device."""
    return getattr(torch.ops, _REFERENCE)


def register(
    name: str,
    *,
    reference: Callable[..., Tensor | tuple[Tensor, ...]],
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    save_for_backward: Callable[..., None],
    backward: Callable[..., tuple[Tensor | None, ...]],
    reference_backward: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
    fake_backward: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
    has_kernel: bool = True,
    has_backward_kernel: bool = True,
) -> None:
    """Registers an operator and its backward operator, `<name>_backward`, where it has its own.

    The compiled library defines them in one namespace; here the reference defines them with the
    same arguments in another. Both get the same fakes and the same autograd, so that they behave
    alike under `torch.compile` and refuse a second backward alike.

    Args:
        name: of the operator.
        reference: the operator in plain torch, annotated, as `torch.library.custom_op` needs.
        fake: shapes and dtypes of the operator's results.
        save_for_backward: the `setup_context` of autograd.
        backward: called as `backward(operators, ctx, *grads)`, with the namespace whose backward
            operator it is to use.
        reference_backward: the gradient in plain torch, annotated; None where `backward` uses the
            backward operator of another.
        fake_backward: shapes and dtypes of the gradient, where `reference_backward` is given.
        has_kernel: whether the compiled library defines the operator, too.
        has_backward_kernel: False where the backward operator is plain torch alone, and `backward`
            uses it by `reference_operators`.

    Raises:
        ImportError: the compiled library lacks the operator.
    """
    torch.library.custom_op(f"{_REFERENCE}::{name}", _contiguous(reference), mutates_args=())
    if reference_backward is not None:
        backward_name = f"{_REFERENCE}::{name}_backward"
        torch.library.custom_op(backward_name, _contiguous(reference_backward), mutates_args=())
    compiled = has_kernel and _library.cpu_status.loaded
    if compiled and not hasattr(getattr(torch.ops, _KERNELS), name):
        raise ImportError(
            f"dmlfast: the compiled library has no operator {name!r}: it was built from other "
            "sources than these; build it again with `pip install .`"
        )
    for namespace in [_REFERENCE] + [_KERNELS] * compiled:
        _register_in(namespace, name, fake, save_for_backward, backward)
        if fake_backward is not None and (has_backward_kernel or namespace == _REFERENCE):
            _register_backward_in(namespace, name, fake_backward)


def _contiguous(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """The function with contiguous results, as its fake promises: torch keeps strides of inputs."""

    @functools.wraps(function)
    def contiguous(*inputs: Any) -> Tensor | tuple[Tensor, ...]:
        found = function(*inputs)
        if isinstance(found, Tensor):
            return found.contiguous()
        return tuple(tensor.contiguous() for tensor in found)

    return contiguous


def _register_in(
    namespace: str,
    name: str,
    fake: Callable[..., Tensor | tuple[Tensor, ...]],
    save_for_backward: Callable[..., None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> None:
    own_operators = getattr(torch.ops, namespace)

    def own_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return backward(own_operators, ctx, *grads)

    operator = f"{namespace}::{name}"
    torch.library.register_fake(operator, fake)
    torch.library.register_autograd(operator, own_backward, setup_context=save_for_backward)


def _register_backward_in(
    namespace: str, name: str, fake: Callable[..., Tensor | tuple[Tensor, ...]]
) -> None:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            f"{name}: dmlfast's operators can be differentiated once; their gradient has no "
            "gradient (was create_graph=True needed?)"
        )

    def save_nothing(ctx: SimpleNamespace, inputs: tuple[Any, ...], output: object) -> None:
        pass

    operator = f"{namespace}::{name}_backward"
    torch.library.register_fake(operator, fake)
    torch.library.register_autograd(operator, refuse, setup_context=save_nothing)
