"""Windows over a plane or a torus: how large pictures are cut, and how the pieces are joined again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from limner.errors import BadInput


class Window(NamedTuple):
    """A piece of a plane, in cells. On a torus it may cross the border, and even be wider than the torus itself."""

    top: int
    left: int
    h: int
    w: int

    def cut(self, x: Tensor) -> Tensor:
        """This part of x (... h w), going around where it reaches beyond."""
        top, left, h, w = self
        if 0 <= top <= x.shape[-2] - h and 0 <= left <= x.shape[-1] - w:
            return x[..., top : top + h, left : left + w]
        rows = torch.arange(top, top + h, device=x.device) % x.shape[-2]
        columns = torch.arange(left, left + w, device=x.device) % x.shape[-1]
        return x[..., rows[:, None], columns]

    def add(self, part: Tensor, whole: Tensor) -> None:
        """Add a part of this size to its place in the whole (... h w), going around where it reaches beyond."""
        for down, row, h in _runs(self.top, self.h, whole.shape[-2]):
            for across, column, w in _runs(self.left, self.w, whole.shape[-1]):
                whole[..., down : down + h, across : across + w] += part[..., row : row + h, column : column + w]

    def times(self, factor: int) -> Window:
        return Window(*(factor * cells for cells in self))


def windows(h: int, w: int, side: int, overlap: int, wrap_x: bool = False, wrap_y: bool = False) -> list[Window]:
    """Windows of one size, evenly spread over h x w, neighbours sharing at least `overlap` cells.

    The last one is flush with the border; where the plane wraps, it overlaps the first. A single window that wraps
    reaches `overlap` cells beyond the torus and overlaps itself.
    """
    if not 0 <= overlap < side:
        raise BadInput(f"windows of {side} cells cannot overlap by {overlap}; the overlap is from 0 to {side - 1}")
    rows, columns = _spread(h, side, overlap, wrap_y), _spread(w, side, overlap, wrap_x)
    return [Window(top, left, tall, wide) for top, tall in rows for left, wide in columns]


def rise(length: int, over: float, margin: float = 0.0) -> Tensor:
    """Weights from a window's first cell on: a raised cosine from almost 0 to 1 over so many cells, after a margin."""
    cells = torch.arange(length, dtype=torch.float64) + 0.5 - margin
    return torch.sin(math.pi / 2 * (cells / max(over, 1)).clamp(0, 1)).clamp(min=1e-6) ** 2


def in_tiles(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    factor: float = 1.0,
    wrap: tuple[bool, bool] = (False, False),
) -> Tensor:
    """A function from B C h w to B C' h*factor w*factor, applied to overlapping tiles that are joined smoothly.

    tile and overlap are in cells of x, factor is a whole number or one over it, wrap is (x, y). Held at once are the
    output and one tile. With an overlap of three times what the function sees to one side the result is that of the
    whole; with less it differs within the overlaps. An x no larger than a tile is taken whole, if it does not wrap.
    """
    h, w = x.shape[-2:]
    if max(h, w) <= tile and not any(wrap):
        return function(x)
    grid, up = max(1, round(1 / factor)), max(1, round(factor))  # cells of x for one of the output; the other way
    if h % grid or w % grid:
        raise BadInput(f"{w} x {h} cells cannot become fewer by {grid}; sides must be its multiples")
    h, w, side, overlap = h // grid, w // grid, tile // grid, overlap // grid
    places = windows(h, w, side, overlap, *wrap)
    rows = _shares({(place.top, place.h) for place in places}, h, overlap, up, wrap[1])
    columns = _shares({(place.left, place.w) for place in places}, w, overlap, up, wrap[0])
    out = None
    for place in places:
        part = function(place.times(grid).cut(x))  # B C' h' w'
        if out is None:
            out = part.new_zeros(*part.shape[:2], h * up, w * up)
        share = rows[place.top].to(part)[:, None] * columns[place.left].to(part)  # h' w'
        place.times(up).add(part * share, out)
    assert out is not None
    return out


def _spread(length: int, side: int, overlap: int, wrap: bool) -> list[tuple[int, int]]:
    """(start, side) of each window along one axis."""
    if wrap:
        count = math.ceil(length / (side - overlap))
        return [(0, length + overlap)] if count == 1 else [(i * length // count, side) for i in range(count)]
    if side >= length:
        return [(0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    return [(i * (length - side) // (count - 1), side) for i in range(count)]


def _runs(start: int, length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """start .. start + length on a ring of `size`, run by run: (where on the ring, where in the window, how long)."""
    done = 0
    while done < length:
        there = (start + done) % size
        run = min(size - there, length - done)
        yield there, done, run
        done += run


def _shares(places: set[tuple[int, int]], size: int, overlap: int, up: int, wrap: bool) -> dict[int, Tensor]:
    """Of each window of one axis, by its start, the weights along it, `up` to a cell; everywhere they sum to one.

    What a tile makes near its own ends is the worst, so the weights change in the middle quarter of the overlap. An
    end that is the border of the plane is no end.
    """
    total, weights = torch.zeros(1, size * up, dtype=torch.float64), {}
    for start, side in places:
        ramp = rise(side * up, overlap * up / 4, overlap * up * 3 / 8)
        low = torch.ones_like(ramp) if start == 0 and not wrap else ramp
        high = torch.ones_like(ramp) if start + side == size and not wrap else ramp.flip(0)
        weights[start] = low * high
        Window(0, start * up, 1, side * up).add(weights[start][None], total)
    return {start: weights[start] / Window(0, start * up, 1, side * up).cut(total)[0] for start, side in places}
