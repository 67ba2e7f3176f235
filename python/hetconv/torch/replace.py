"""Putting other modules in the place of some."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["replace_modules"]


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Asks for the replacement of every module below `model`, once each, and puts it wherever that module is used. What was
    added to a module, as a `Network` adds a batch-norm to the convolution before it, is added to its replacement."""
    replaced = {}
    for name, module in model.named_modules():
        other = None if module is model else replacement(name, module)
        if other is not None:
            replaced[module] = other
    for module, other in replaced.items():
        for name, child in module._modules.items():
            other.add_module(name, child)
    for module in list(model.modules()) + list(replaced.values()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
