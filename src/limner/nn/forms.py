"""Denoisers that are asked by forms: what a network is told, apart from its numbers.

A form is shapes, types and wishes. For each a way to answer is made once and kept, be it another engine's graph
(`driven.py`) or work that is recorded (`recorded.py`).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from torch import Tensor, nn

from limner.place import Work
from limner.types import Cond, Deep

Part = Literal["whole", "both", "outer"]  # the answer; with what deep layers give; or from what they gave
MOST = 8  # ways to answer that a network holds; the one that was asked longest ago goes
WORDS = 16  # maskable tokens are filled to a multiple of so many, so that prompts of most lengths share a form
LARGE = 2**25  # weights from which on a network has people wait while a way to answer is made
Form = Any  # nested: None, (shape, type), or a tuple of these


def flattened(value: Any) -> tuple[list[Tensor], Form]:
    """The tensors of a Cond, a tuple or a tensor, in order, and the form that `rebuilt` needs to lay them together."""
    match value:
        case None:
            return [], None
        case Tensor():
            return [value], (tuple(value.shape), str(value.dtype))
        case tuple():
            parts = [flattened(each) for each in value]
        case Cond():
            parts = [flattened(getattr(value, field.name)) for field in fields(Cond)]
        case _:
            raise TypeError(f"a {type(value).__name__} holds no tensors")
    return [tensor for tensors, _ in parts for tensor in tensors], tuple(form for _, form in parts)


def rebuilt(form: Form, tensors: Iterator[Tensor]) -> Any:
    """What was flattened, around other tensors; a Cond as the tuple of its fields."""
    if form is None:
        return None
    if len(form) == 2 and isinstance(form[1], str):
        return next(tensors)
    return tuple(rebuilt(each, tensors) for each in form)


def filled(cond: Cond) -> Cond:
    """Tokens that a mask can hide filled to a multiple of WORDS with hidden ones, which change nothing."""
    return cond.filled(-(-cond.tokens.shape[1] // WORDS) * WORDS)


def is_large(net: nn.Module) -> bool:
    return sum(value.numel() for value in net.parameters()) >= LARGE


class Told(nn.Module):
    """A network as a function of tensors alone: what can be traced or recorded."""

    def __init__(self, net: nn.Module, form: Form, wishes: Mapping[str, Any], part: Part) -> None:
        super().__init__()
        self.net, self.form, self.wishes, self.part = net, form, dict(wishes), part

    def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Any:
        tensors = iter(rest)
        cond = Cond(*rebuilt(self.form, tensors))
        if self.part == "whole":
            return self.net(x, t, cond, **self.wishes)
        if self.part == "outer":
            value = next(tensors)
            return self.net(x, t, cond, deep=lambda _: value, **self.wishes)
        gave: list[Tensor] = []

        def deep(inner: Callable[[], Tensor]) -> Tensor:
            gave.append(inner())
            return gave[0]

        return self.net(x, t, cond, deep=deep, **self.wishes), gave[0]


class Formed(nn.Module):
    """A denoiser that is asked as its network is, and answers in a way that was made for the form of what is told."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.config = getattr(net, "config", None)
        self._ways: OrderedDict[str, Work] = OrderedDict()

    def way(self, key: str, told: Callable[[nn.Module], Told], tensors: list[Tensor]) -> Work:
        """A way to answer for a form. told: makes a network a function of tensors like these."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, cond: Cond, deep: Deep | None = None, **wishes: Any) -> Tensor:
        cond = filled(cond)
        if deep is None:
            return self._ask("whole", x, t, cond, wishes)[0]
        answers: list[Tensor] = []

        def inner() -> Tensor:
            answer, value = self._ask("both", x, t, cond, wishes)
            answers.append(answer)
            return value

        value = deep(inner)  # asks `inner`, or gives what it gave before
        return answers[0] if answers else self._ask("outer", x, t, cond, wishes, value)[0]

    def _ask(
        self, part: Part, x: Tensor, t: Tensor, cond: Cond, wishes: Mapping[str, Any], *more: Tensor
    ) -> Sequence[Tensor]:
        told, form = flattened(cond)
        tensors = [x, t, *told, *more]
        key = json.dumps([part, sorted(wishes.items()), form, flattened((x, t, *more))[1]], default=str)
        if key not in self._ways:
            while len(self._ways) >= MOST:
                self._ways.popitem(last=False)
            self._ways[key] = self.way(key, lambda net: Told(net, form, wishes, part), tensors)
        self._ways.move_to_end(key)
        return self._ways[key](tensors)
