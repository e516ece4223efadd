"""Denoisers whose arithmetic another engine does: OpenVINO, on the CPU, from graphs that are traced off the network.

A graph is made for each form of what the network is told (shapes and wishes) and kept in a folder, so that tracing is
done once. The network stays what it is: it says what is computed, the engine computes it. It is traced without its
numbers, and its weights go into the graph as they lie in their file. In 8 bits the graph is told how large the numbers
are that its layers read, which a walk beforehand has shown.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from limner.nn.forms import Formed, Told, is_large
from limner.nn.graph import Reach, Seen, in_8_bits, in_parts, reach_of
from limner.nn.streamed import copied
from limner.nn.upsample import FoldedUpsample, folding
from limner.place import Work

FORMAT = 8  # of the graphs in the folder; what a network computes is part of it


def wide(value: Any) -> Any:
    """A tensor in fp32 where it is of narrower floats; anything else as it is."""
    narrow = isinstance(value, Tensor) and value.is_floating_point() and value.itemsize < torch.float32.itemsize
    return value.float() if narrow else value


class Widening(TorchFunctionMode):
    """Operations read narrow floats in fp32: a network computes with weights in whatever type they lie in."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # a shape or a type is no operation
            return func(*args, **(kwargs or {}))
        return func(*map(wide, args), **{name: wide(value) for name, value in (kwargs or {}).items()})


class Tracing(Widening):
    """The same for tracing on the meta device.

    While it is traced, a convolution there is told its sizes as tensors and refuses them; one that is scripted is not.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(_scripted_conv2d() if func is F.conv2d else func, types, args, kwargs)


@cache
def _scripted_conv2d() -> Any:
    return torch.jit.CompilationUnit("""
        def conv2d(
            x: Tensor, w: Tensor, b: Optional[Tensor], step: List[int], edge: List[int], apart: List[int], groups: int
        ):
            return torch.conv2d(x, w, b, step, edge, apart, groups)
    """).conv2d


class Driven(Formed):
    """A denoiser that is asked as the network inside is, and answers the same but for rounding.

    digest: says which weights these are. folder: where graphs are kept; None keeps none. int8: whether it multiplies
    in 8 bits; then it is given a `rehearsal` before it is asked: who has the network walk once, and a word for his way,
    since another way shows other numbers. lay: makes a copy of the network ready for that walk; without it the walk
    computes in fp32 with the weights as they lie.
    """

    rehearsal: tuple[Callable[[nn.Module], object], str] | None = None

    def __init__(
        self,
        net: nn.Module,
        dtype: torch.dtype,
        digest: Callable[[], str],
        folder: Path | None = None,
        int8: bool = False,
        lay: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        super().__init__(net)
        self._int8, self._lay = int8, lay
        self._bare = [net]  # in a list: its modules are none of ours
        self._dtype, self._digest, self._folder = dtype, cache(digest), folder  # files are large

    def way(self, key: str, told: Callable[[nn.Module], Told], tensors: list[Tensor]) -> Work:
        graph = self._compiled(key, told, [_plain(value) for value in tensors])

        def ask(tensors: list[Tensor]) -> list[Tensor]:
            answers = graph([_plain(value).numpy() for value in tensors], share_inputs=True)
            return [torch.from_numpy(answer) for answer in answers.values()]

        return ask

    def _compiled(self, key: str, told: Callable[[nn.Module], nn.Module], tensors: list[Tensor]) -> Any:
        core = _core()
        kept = self._kept_at(key, str(self._dtype), self._way if self._int8 else "")
        file = kept / "graph.xml" if kept else None
        if file is None or not file.exists():
            net = self._read()
            if is_large(net):
                warnings.warn("a graph is made of the network, for pictures of this form; it is kept", stacklevel=2)
            graph = _graph(told(net), tensors)
            graph = in_parts(in_8_bits(graph, net, self._reach) if self._int8 else graph)
            if kept:
                _keep(kept, lambda folder: _openvino().save_model(graph, folder / "graph.xml", compress_to_fp16=False))
        if file and file.exists():
            graph = core.read_model(file)  # mapped, before the engine lays out its own
        how = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # else two programs would share the first cores while others idle
        }
        return core.compile_model(graph, "CPU", how)

    def _read(self) -> nn.Module:
        """The network around the values of its file."""
        net = folding(copied(self._bare[0]), fill=True, release=lambda _: None)
        for layer in list(net.modules()):
            if isinstance(layer, FoldedUpsample):
                layer.reveal()
        return net

    @cached_property
    def _reach(self) -> Reach:
        """How large the numbers are that layers read: from the folder, or from a rehearsal."""
        kept = self._kept_at("reach", self._way)
        if kept and (kept / "reach.json").exists():
            found = json.loads((kept / "reach.json").read_text(encoding="utf-8"))
            return {name: Seen(*each) for name, each in found.items()}
        assert self.rehearsal is not None
        with contextlib.nullcontext() if self._lay else Widening():
            reach = reach_of(self._read(), self.rehearsal[0], self._lay)
        if kept:
            _keep(kept, lambda folder: (folder / "reach.json").write_text(json.dumps(reach), encoding="utf-8"))
        return reach

    @property
    def _way(self) -> str:
        if self.rehearsal is None:
            raise ValueError("a network that is to compute in 8 bits must be rehearsed")
        return self.rehearsal[1]

    def _kept_at(self, *what: object) -> Path | None:
        """The folder of what is kept for these weights, this network and these versions; None: nothing is."""
        if self._folder is None:
            return None
        made = [FORMAT, self._digest(), type(self._bare[0]).__name__, repr(self.config), *what]
        made += [_openvino().__version__, torch.__version__]
        return self._folder / hashlib.sha256(json.dumps(made).encode()).hexdigest()[:32]


def _plain(value: Tensor) -> Tensor:
    """As the engine reads it."""
    return wide(value).contiguous()


def _graph(told: nn.Module, tensors: list[Tensor]) -> Any:
    """The network as OpenVINO sees it, for these shapes alone.

    It is traced on the meta device, in a moment whatever its size; what was traced is given the values then.
    """
    _openvino()
    from openvino.frontend import FrontEndManager  # type: ignore[import-untyped]
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # type: ignore[import-untyped]

    plain = torch.autocast("cpu", enabled=False)  # the engine rounds where it is told to, and nobody before it
    with torch.inference_mode(False), torch.no_grad(), plain, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, that shapes become constants: that is meant
        hollow = copied(told).to("meta").eval()
        with Tracing():
            shapes = tuple(torch.empty_like(value, device="meta") for value in tensors)
            traced = torch.jit.trace(hollow, shapes, check_trace=False, strict=False)
        for name, value in (*told.named_parameters(), *told.named_buffers()):
            layer, _, last = name.rpartition(".")
            setattr(functools.reduce(getattr, layer.split("."), traced), last, value)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(traced, example_input=tuple(tensors))  # what was loaded does not keep it
        graph = frontend.convert(frontend.load(decoder))
    graph.reshape({i: list(value.shape) for i, value in enumerate(tensors)})
    return graph


def _keep(there: Path, write: Callable[[Path], object]) -> None:
    """Write a folder whole or not at all; what cannot be kept is made again next time."""
    with contextlib.suppress(OSError, RuntimeError):
        there.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=there.parent, prefix=".") as part:
            (Path(part) / "new").mkdir()
            write(Path(part) / "new")
            (Path(part) / "new").rename(there)


def _openvino() -> Any:
    """The package without its reporting: merely to be imported it would tell a server, and so would its converter."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it looks for it, and goes without
    return importlib.import_module("openvino")


@cache
def _core() -> Any:
    """The engine, one for the process: with AMX each has the system handle signals on a stack of its own, and when
    several go, on one that has gone before: then the next Ctrl-C crashes."""
    return _openvino().Core()
