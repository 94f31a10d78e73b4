"""Whether products of float32 may round their factors to TensorFloat-32, which torch's own setting alone decides."""

import torch
from torch import Tensor


def allows_tf32(operand: Tensor) -> bool:
    """Of an operand on a GPU: ``torch.backends.cuda.matmul.fp32_precision`` or ``torch.set_float32_matmul_precision``.

    Compiled graphs are compiled anew where it changes, which Dynamo watches; exported ones keep it.
    """
    return operand.is_cuda and operand.dtype == torch.float32 and _matmul_is_tf32()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _matmul_is_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9; asking for the older name may then be an error
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
