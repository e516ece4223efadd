"""Denoisers whose arithmetic another engine does: OpenVINO, on the CPU, from graphs that are traced off the network.

A graph is made for each form of what the network is told (shapes and wishes) and kept in a folder, so that tracing is
done once. The network stays what it is: it says what is computed, the engine computes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import sys
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.types import Cond, Deep

Part = Literal["whole", "both", "outer"]  # the answer; with what deep layers give; or from what they gave
FORMAT = 1  # of the graphs in the folder
MOST = 8  # graphs that a network holds; the one that was asked longest ago goes
WORDS = 16  # maskable tokens are filled to a multiple of so many, so that prompts of most lengths share a graph
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
    if cond.mask is None:
        return cond
    more = -cond.tokens.shape[1] % WORDS
    tokens = F.pad(cond.tokens, (0, 0, 0, more))
    return replace(cond, tokens=tokens, mask=F.pad(cond.mask, (0, more), value=False))


def wide(value: Tensor) -> Tensor:
    """In fp32 where it is a narrower float."""
    return value.float() if value.is_floating_point() else value


class _Told(nn.Module):
    """A network as a function of tensors alone, which is what can be traced."""

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


class Driven(nn.Module):
    """A denoiser that is asked as the network inside is, and answers the same but for rounding.

    digest: says which weights these are. folder: where graphs are kept; None keeps none.
    """

    def __init__(
        self, net: nn.Module, dtype: torch.dtype, digest: Callable[[], str], folder: Path | None = None
    ) -> None:
        super().__init__()
        self.net, self.config = net, getattr(net, "config", None)
        self._dtype, self._digest, self._folder = dtype, digest, folder
        self._graphs: OrderedDict[str, Any] = OrderedDict()

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
    ) -> list[Tensor]:
        told, form = flattened(cond)
        tensors = [wide(value).contiguous() for value in (x, t, *told, *more)]
        key = json.dumps([part, sorted(wishes.items()), form, flattened((x, t, *more))[1]], default=str)
        if key not in self._graphs:
            while len(self._graphs) >= MOST:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._compiled(key, _Told(self.net, form, wishes, part), tensors)
        self._graphs.move_to_end(key)
        answers = self._graphs[key]([value.numpy() for value in tensors], share_inputs=True)
        return [torch.from_numpy(answer) for answer in answers.values()]

    def _compiled(self, key: str, told: nn.Module, tensors: list[Tensor]) -> Any:
        openvino = _openvino()
        core = openvino.Core()
        made = [FORMAT, self._digest(), type(self.net).__name__, repr(self.config), key, str(self._dtype)]
        made += [openvino.__version__, torch.__version__]
        kept = self._folder and self._folder / hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]
        if kept and (kept / "graph.xml").exists():
            graph = core.read_model(kept / "graph.xml")
        else:
            graph = _graph(told, tensors)
            if kept:
                _keep(graph, kept)
        how = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # else two programs would share the first cores while others idle
        }
        return core.compile_model(graph, "CPU", how)


def _graph(told: nn.Module, tensors: list[Tensor]) -> Any:
    """The network as OpenVINO sees it, for these shapes alone."""
    _openvino()
    from openvino.frontend import FrontEndManager  # type: ignore[import-untyped]
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # type: ignore[import-untyped]

    plain = torch.autocast("cpu", enabled=False)  # the engine rounds where it is told to, and nobody before it
    with torch.inference_mode(False), torch.no_grad(), plain, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, that shapes become constants: that is meant
        example = tuple(value.clone() for value in tensors)
        traced = torch.jit.trace(told.eval(), example, check_trace=False, strict=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=example)  # what was loaded does not keep it
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape({i: list(value.shape) for i, value in enumerate(example)})
    return graph


def _keep(graph: Any, there: Path) -> None:
    """Write a graph whole or not at all; where it cannot be kept, it is made again next time."""
    with contextlib.suppress(OSError, RuntimeError):
        there.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=there.parent, prefix=".") as part:
            (Path(part) / "new").mkdir()
            _openvino().save_model(graph, Path(part) / "new" / "graph.xml", compress_to_fp16=False)
            (Path(part) / "new").rename(there)


def _openvino() -> Any:
    """The package without its reporting: merely to be imported it would tell a server, and so would its converter."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it looks for it, and goes without
    return importlib.import_module("openvino")


def undriven(net: nn.Module) -> nn.Module:
    """The network itself, whoever does its arithmetic."""
    return net.net if isinstance(net, Driven) else net
