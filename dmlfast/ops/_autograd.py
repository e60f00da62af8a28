"""What the operators of all families share in autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_second_backward(backward_operator: str) -> None:
    """Registers that the gradient an operator computes has no gradient itself."""

    def refuse(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            f"{backward_operator}: dmlfast's operators can be differentiated once; their gradient "
            "has no gradient (was create_graph=True needed?)"
        )

    def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        pass

    torch.library.register_autograd(backward_operator, refuse, setup_context=save_nothing)
