"""Denoisers whose work is recorded once for each form of what they are told, and played again with other numbers.

A small network on a large card waits for Python between its kernels; a recording does not. Its blocks may be compiled
first, so that what stands between products is one kernel and not many.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from limner.nn.forms import Formed, Told, is_large
from limner.place import Place, Work

FORMS = 2**16  # in which one kind of block is compiled at the most: widths, sizes of pictures and batches, wishes
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # where torch's compiler keeps what it made, over processes


class Recorded(Formed):
    """A denoiser that is asked as the network inside is, and answers the same.

    place: where the network is; it records where it can, and else works each time. folder: where compiled blocks are
    kept, so that the next process finds them, unless the environment says where; None compiles nothing.
    """

    def __init__(self, net: nn.Module, place: Place, folder: Path | None = None) -> None:
        super().__init__(net)
        self.net, self._place, self._blocks = net, place, list(blocks(net)) if folder else []
        if folder:
            os.environ.setdefault(CACHE, str(folder))
        self._fused = [torch.compile(block.forward, fullgraph=True, dynamic=False) for block in self._blocks]

    def way(self, _: str, told: Callable[[nn.Module], Told], tensors: list[Tensor]) -> Work:
        whole = told(self.net)
        if self._blocks and is_large(self.net):
            warnings.warn("blocks are compiled, for pictures of this form; the next process finds them", stacklevel=2)

        def work(tensors: list[Tensor]) -> tuple[Tensor, ...]:
            with self._compiled():
                answer = whole(*tensors)
            return answer if isinstance(answer, tuple) else (answer,)

        return self._place.recorded(work, tensors, list(self._ways.values()))

    @contextlib.contextmanager
    def _compiled(self) -> Iterator[None]:
        """Blocks compute as they were compiled, in here alone: who has the network otherwise has it as it is."""
        if not self._blocks:
            yield
            return
        import torch._dynamo.config as compiler

        try:
            for block, fused in zip(self._blocks, self._fused, strict=True):
                vars(block)["forward"] = fused
            with compiler.patch(recompile_limit=FORMS, accumulated_recompile_limit=FORMS):
                yield
        finally:
            for block in self._blocks:
                vars(block).pop("forward", None)


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """What a network repeats: the entries of its innermost lists that have layers of their own."""
    for listed in net.modules():
        if isinstance(listed, nn.ModuleList):
            yield from (each for each in listed if list(each.children()) and not _has_lists(each))


def _has_lists(block: nn.Module) -> bool:
    return any(isinstance(each, nn.ModuleList) for each in block.modules())
