"""Putting other modules in the place of some."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["replace_modules"]


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Asks for the replacement of every module below `model`, once each, and puts it wherever that module is used. What was
    added to a module, as a `Network` adds a batch-norm to the convolution before it, is added to its replacement.

    Raises `ValueError`, before anything is changed, if the replacement has something else under that name."""
    replaced = {}
    for name, module in model.named_modules():
        other = None if module is model else replacement(name, module)
        if other is None:
            continue
        replaced[module] = other
        for own, child in module._modules.items():
            if hasattr(other, own):
                raise ValueError(f"{name}.{own} is in the way: a {type(other).__name__} has a `{own}` of its own")
            other.add_module(own, child)
    for module in list(model.modules()) + list(replaced.values()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
