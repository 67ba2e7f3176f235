"""Putting other modules in the place of some."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["replace_modules"]

# Where a module has its hooks on results and gradients, and what is to be known of them.
_HOOKS = [name for name in vars(nn.Module()) if "forward" in name or "backward" in name]


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Asks for the replacement of every module of a model, once each, and puts it wherever that module is used. The result is
    the model, or what replaces the whole of it.

    What was added to a module, as a `Network` adds a batch-norm to the convolution before it, is added to its replacement,
    whose are its hooks on results and gradients, too. Hooks on its state are left out: they know tensors by their names.

    Raises `ValueError`, before anything is changed, if the replacement has something else under that name."""
    replaced = {}
    for name, module in model.named_modules():
        other = replacement(name, module)
        if other is None:
            continue
        replaced[module] = other
        for own, child in module._modules.items():
            if hasattr(other, own):
                place = f"{name}.{own}".removeprefix(".")
                raise ValueError(f"{place} is in the way: a {type(other).__name__} has a `{own}` of its own")
            other.add_module(own, child)
        for hooks in _HOOKS:
            # The very same ones, so that the handles that remove them still do.
            setattr(other, hooks, getattr(module, hooks))
    for module in list(model.modules()) + list(replaced.values()):
        for name, child in module._modules.items():
            if child in replaced:
                module._modules[name] = replaced[child]
    return replaced.get(model, model)
