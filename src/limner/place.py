"""What runs where. This file alone names devices, and casts happen here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limner.errors import BadInput

Device = Literal["auto", "cpu", "cuda", "mps"]
Keep = Literal["all", "one", "layer"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8"]
Engine = Literal["torch", "recorded", "compiled", "openvino"]
NEEDED = {"openvino": "limner[openvino]", "compiled": "triton"}  # packages that engines want
Work = Callable[[list[Tensor]], Sequence[Tensor]]  # on the device, the same for every number
WARM = 2  # times that work is done before it is recorded: what is made once, handles and compiled code, cannot be
FP8 = (8, 9)  # the least CUDA capability with products of fp8: Ada's
WORDS: dict[torch.dtype, Precision] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Place:
    device: torch.device
    dtype: torch.dtype  # of the products inside networks; states between them stay fp32
    why: str  # the reason for the dtype, in words
    keep: Keep = "all"  # what stays in memory: every network, one large one at a time, or one layer at a time
    small: Literal["", "int8", "fp8"] = ""  # how denoisers multiply in 8 bits; all else is in `dtype` there too
    engine: Engine = "torch"  # that does the denoisers' arithmetic

    @property
    def precision(self) -> Precision:
        """The word for how denoisers multiply."""
        return self.small or WORDS[self.dtype]

    @property
    def numbers(self) -> str:
        """The types that it computes in, for people: float32, or int8 with float32."""
        wide = str(self.dtype).removeprefix("torch.")
        return f"{self.small} with {wide}" if self.small else wide

    def precisely(self, precision: Precision | Literal[""]) -> Place:
        """This place computing otherwise; "" leaves it as it is.

        Raises BadInput for what the device cannot do, with what it can.
        """
        if not precision or precision == self.precision:
            return self
        if precision not in (able := precisions(self.device.type)):
            raise BadInput(f"{self.device.type} cannot compute in {precision} here; it can in {' and '.join(able)}")
        if precision in ("int8", "fp8"):
            return replace(find_place(self.device.type, keep=self.keep), small=precision)  # type: ignore[arg-type]
        wide = next(dtype for dtype, word in WORDS.items() if word == precision)
        return replace(self, dtype=wide, why="asked for", small="")

    def driven(self, engine: Engine | Literal[""]) -> Place:
        """This place with another engine for denoisers; "" leaves it as it is.

        Raises BadInput for what is not installed, or does not serve this device, these numbers or so little memory.
        """
        if not engine or engine == self.engine:
            return self
        if engine == "torch":
            return replace(self, engine=engine)
        if engine != "openvino" and self.device.type != "cuda":
            there = " and ".join(engines(self.device.type))
            raise BadInput(f"{engine} computes on cuda, not on {self.device.type}; here it is {there}")
        if engine == "openvino" and (self.device.type != "cpu" or self.dtype == torch.float16):
            raise BadInput(
                f"{engine} computes on the cpu in fp32, bf16 or int8 here, "
                f"not on {self.device.type} in {self.precision}"
            )
        if engine not in engines(self.device.type):
            lacks = "needs triton and a C compiler" if engine == "compiled" else "is not installed"
            raise BadInput(f"{engine} {lacks}: pip install '{NEEDED[engine]}'")
        if self.keep != "all":
            raise BadInput(f"{engine} holds whole networks in memory; it does not keep {self.keep} at a time")
        return replace(self, engine=engine)

    @property
    def records(self) -> bool:
        """Whether denoisers' work is recorded, and played again by the device itself."""
        return self.engine in ("recorded", "compiled")

    @property
    def one_by_one(self) -> bool:
        """Whether the rows of a batch are computed alone: in bf16 the CPU rounds products of other sizes otherwise.

        Ancestral samplers make a visible difference of that; alone, a picture is the same in every batch.
        """
        return self.device.type == "cpu" and self.dtype != torch.float32

    @property
    def pairs(self) -> bool:
        """Whether what is wanted and what is not are asked at once, in one batch: that pays for a single row, whose
        products are small, and on a card, which else waits for Python twice."""
        return self.one_by_one or self.device.type == "cuda"

    @property
    def narrows(self) -> bool:
        """Whether autocast would widen norms and what follows them here."""
        return self.device.type == "cuda" and self.dtype != torch.float32

    @property
    def folds(self) -> bool:
        """Whether doubling the sides and a convolution are to be one: measured on the CPU alone."""
        return self.device.type == "cpu"

    @property
    def looks_up(self) -> bool:
        """Whether large embeddings are looked up where they lie in their file, and not brought here."""
        return self.device.type == "cpu"

    @property
    def fuses(self) -> bool:
        """Whether linear layers are to do themselves what is done with their answers; those of 8 bits cannot."""
        able = self.device.type == "cpu" and self.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
        return able and not self.small

    @property
    def packs(self) -> bool:
        """Whether weights are to lie as oneDNN wants them: in bf16 that pays."""
        whole = self.device.type == "cpu" and self.engine == "torch" and self.keep != "layer"
        return whole and self.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()

    @property
    def memory(self) -> int:
        """Bytes of a device that has its own; 0: it computes in the machine's."""
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else 0

    @property
    def memory_left(self) -> int:
        """Bytes that are free on a device that has its own, or held and not in use; 0: it computes in the machine's."""
        if self.device.type != "cuda":
            return 0
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def settle(self, net: nn.Module) -> nn.Module:
        """On the device, the weights of linear and convolutional layers in `dtype` for good, all others in fp32.

        Autocast would cast them to the same bits at every call, which takes as long as the products of one picture.
        """
        for layer in net.modules():
            own = self.dtype if isinstance(layer, (nn.Linear, nn.Conv2d)) else torch.float32
            for value in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if value.is_floating_point() and value.dtype != own:
                    value.data = value.data.to(own)
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def fetches(self) -> bool:
        """Whether weights can be brought here while it computes."""
        return self.device.type == "cuda"

    def told(self) -> torch.cuda.Event:
        """A mark of what a card was told to compute until now."""
        return torch.cuda.current_stream().record_event()

    def fetch(self, values: Sequence[Tensor], after: torch.cuda.Event) -> Callable[[], list[Tensor]]:
        """Begins to bring weights of products to a card, beside what it computes behind a mark.

        What is returned has the card wait for them. So Python is never far ahead, and few layers are there at once.
        """
        after.synchronize()
        with torch.cuda.stream(_aside()):
            pinned = [value.pin_memory() for value in values]  # so the card reads them by itself
            there = [self._settled(value.to(self.device, non_blocking=True)) for value in pinned]
            brought = torch.cuda.current_stream().record_event()

        def wait() -> list[Tensor]:
            here = torch.cuda.current_stream()
            here.wait_event(brought)
            for value in there:
                value.record_stream(here)  # else its memory would be taken again before it was read
            return there

        return wait

    def _settled(self, value: Tensor) -> Tensor:
        layout = torch.channels_last if value.ndim == 4 else torch.preserve_format
        return value.to(self.dtype, memory_format=layout)

    def recorded(self, work: Work, told: list[Tensor], others: Sequence[Any] = ()) -> Work:
        """The same work, recorded where the device can play it again by itself; elsewhere as it is.

        told: tensors like those that it will be told. others: recordings that are there already and lend their memory.
        """
        return Recording(work, told, others) if self.device.type == "cuda" else work

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Matrix products and convolutions in `dtype`, the rest in fp32; fp32 itself is not rounded to TF32."""
        if self.dtype == torch.float32:
            exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if self.device.type == "cuda" else None
            with exact or contextlib.nullcontext():
                yield
        else:
            with torch.autocast(self.device.type, self.dtype):
                yield


@cache
def _aside() -> torch.cuda.Stream:
    """Where weights are brought, and work is tried, beside what is computed."""
    return torch.cuda.Stream()


class Recording:
    """Work that was done once on a card, as a CUDA graph: done again with other numbers, without waiting for Python.

    Recordings that share memory are played one after another: what one gives is copied before the next is asked.
    """

    def __init__(self, work: Work, told: list[Tensor], others: Sequence[Recording] = ()) -> None:
        self._told = [value.clone() for value in told]  # where it reads
        self._graph, here, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), _aside()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                work(self._told)
        here.wait_stream(aside)
        pool = others[0]._graph.pool() if others else None
        torch._C._cuda_clearCublasWorkspaces()  # one that was made in here belongs to this recording alone
        try:
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self._gave = work(self._told)
        finally:
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.set_stream(here)  # also where it failed

    def __call__(self, told: list[Tensor]) -> list[Tensor]:
        for mine, value in zip(self._told, told, strict=True):
            mine.copy_(value)
        self._graph.replay()
        return [value.clone() for value in self._gave]


def computes_int8() -> bool:
    """Whether oneDNN has fast products of 8 bits here: on x86 it has."""
    return torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64")


def computes_fp8() -> bool:
    """Whether the card has products of 8 bits in floats."""
    return torch.cuda.get_device_capability() >= FP8


def has_vnni() -> bool:
    """Whether the processor adds four products of 8 bits at once in 32; else it adds pairs of them in 16."""
    return torch.cpu._is_vnni_supported()  # no public name for this yet


@cache
def fuses_attention(dtype: torch.dtype) -> bool:
    """Whether PyTorch's fused attention is faster on this processor than plain products.

    In fp32 it is everywhere; in bf16 where there are AMX tiles.
    """
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported())


def precisions(device: str) -> tuple[Precision, ...]:
    """What a device of this machine computes in, the fast type of numbers first."""
    fast = WORDS[_best_dtype(device)[0]]
    also: dict[str, tuple[Precision, ...]] = {
        "cuda": ("fp32", "fp16", *(("fp8",) if device == "cuda" and computes_fp8() else ())),
        "cpu": ("fp32", "bf16", *(("int8",) if computes_int8() else ())),
    }
    return (fast, *(word for word in also.get(device, ()) if word != fast))


def engines(device: str) -> tuple[Engine, ...]:
    """What can do the denoisers' arithmetic on a device of this machine."""
    if device == "cuda":
        c = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # where triton looks
        compiler = importlib.util.find_spec("triton") and c
        return ("torch", "recorded", "compiled") if compiler else ("torch", "recorded")
    there = device == "cpu" and importlib.util.find_spec("openvino") is not None
    return ("torch", "openvino") if there else ("torch",)


def find_place(device: Device = "auto", dtype: torch.dtype | None = None, keep: Keep = "all") -> Place:
    """The place that a name means on this machine; `auto` takes the fastest there is."""
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = "cuda" if have["cuda"] else "mps" if have["mps"] else "cpu"
    if not have.get(device):
        there = " and ".join(name for name, yes in have.items() if yes)
        raise BadInput(f"this machine has no {device} device; it has {there}")
    best, why = _best_dtype(device)
    if dtype is not None:
        best, why = dtype, "asked for"
    return Place(torch.device(device), best, why, keep)


def _best_dtype(device: str) -> tuple[torch.dtype, str]:
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the card computes bf16 natively"
        return torch.float16, "the card has no bf16; fp16 is its fast type"
    if device == "mps":
        return torch.float32, "bf16 on Metal is not proved here yet"
    if torch.cpu._is_amx_tile_supported():  # no public name for this yet
        return torch.bfloat16, "the processor has AMX tiles: products are about eight times faster than in fp32"
    if torch.cpu._is_avx512_bf16_supported():  # no public name for this yet
        return torch.bfloat16, "the processor has AVX-512 bf16: products are about four times faster than in fp32"
    return torch.float32, f"the processor ({platform.machine()}) has no AVX-512 bf16; there fp32 is the fast type"
