"""ONNX files of PyTorch models."""

from __future__ import annotations

import inspect
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from .. import _native
from .decompose import decompose
from .network import Network

__all__ = ["export_onnx"]


def export_onnx(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    keep_batch_norm: bool = False,
    **options: Any,
) -> None:
    """Writes a model with one input of images as an ONNX file that any runtime reads.

    HetConv layers are written as grouped plus 1×1 convolutions (see `decompose`); `hetconv` recognises them when it reads the
    file, so that its runtime computes each in one pass. The model is exported as it is in evaluation, in PyTorch's usual
    memory format whatever its own is; the batch size stays open. Batch-norms right behind PyTorch's own convolutions are
    folded into them, unless `keep_batch_norm` says that training is to go on from the file. The file also has the class names
    and the normalisation that a `Network` states. `options` go to `torch.onnx.export`.

    Needs the packages `onnx` and `onnxscript`.
    """
    # Channels-last tensors would leave traces of their strides in the file.
    plain = decompose(model).eval().to(memory_format=torch.contiguous_format)
    # A batch of one would be taken for the only one there is.
    example = (example if example.shape[0] > 1 else torch.cat([example, example])).contiguous()
    if keep_batch_norm:
        options.setdefault("optimize", False)
    options = {"input_names": ["images"], "output_names": ["output"], "verbose": False, **options}
    batch = {0: torch.export.Dim("batch")}
    first = next(iter(inspect.signature(plain.forward).parameters.values()))
    options.setdefault("dynamic_shapes", ((batch,),) if first.kind is first.VAR_POSITIONAL else (batch,))
    options.setdefault("external_data", False)
    torch.onnx.export(plain, (example,), os.fspath(path), dynamo=True, **options)
    if isinstance(model, Network):
        _native.state_in_onnx(os.fspath(path), json.dumps(model.description))
