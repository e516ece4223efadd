"""`limner doctor`: what this machine can do, and whether what is installed is whole."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from limner import __version__
from limner.cli.say import as_json, rows, size
from limner.errors import LimnerError

if TYPE_CHECKING:
    import torch

    from limner.place import Place

WIDTH = 1024  # of the layer that is tried
PAGES = {
    "always": "of 2 MiB for everybody", "madvise": "of 2 MiB for who asks, as painting and training do",
    "never": "of 4 KiB alone, in which products take longer", "": "not known",
}  # fmt: skip
APART = 0.02  # relative error that bf16's eight bits of precision stay under
FP8_APART = 0.06  # and the four of fp8: both sides round by up to a sixteenth


def doctor(*, json: Annotated[bool, Parameter(help="Print it as JSON.")] = False) -> int:
    """Say what this machine can do, which type of number it will compute in and why, and check what is installed.

    Ends with the status 1 where something is wrong.
    """
    import torch

    from limner.memory import large_pages
    from limner.pipeline import SHIPPED
    from limner.place import engines, find_place, precisions

    place = find_place()
    facts: dict[str, Any] = {
        "limner": __version__,
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        "torch": torch.__version__,
        "cores": f"{os.cpu_count()}, of which torch uses {torch.get_num_threads()}",
        "memory": _memory(),
        "its pages": PAGES.get(large_pages(), "not known"),
        "devices": ", ".join(_devices()),
        "will use": f"{place.device.type} in {_name(place.dtype)}, because {place.why}",
        "precisions": ", ".join(precisions(place.device.type)),
        "engines": ", ".join(engines(place.device.type)),
    }
    small = [word for word in ("int8", "fp8") if word in precisions(place.device.type)]
    tried = {f"layer in {word}": _try_small(place, word) for word in small}
    checks = {"layer": _try_layer(place), **tried, **{f"model {name}": _check(name) for name in SHIPPED}}
    well = all(good for good, _ in checks.values())
    if json:
        told = {name: {"good": good, "told": words} for name, (good, words) in checks.items()}
        as_json(facts | {"checks": told, "well": well})
    else:
        rows([*facts.items(), *((name, ("" if good else "WRONG: ") + words) for name, (good, words) in checks.items())])
    return 0 if well else 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory() -> str:
    try:
        return size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not every system tells
        return "not known"


def _devices() -> list[str]:
    from limner.place import Device, find_place

    found = []
    for name in get_args(Device):
        try:
            found += [] if name == "auto" else [f"{name} ({_name(find_place(name).dtype)})"]
        except LimnerError:
            continue
    return found


def _try_layer(place: Place) -> tuple[bool, str]:
    """One layer in the type that will be used against fp32: how far apart, how fast."""
    import torch

    random = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False).to(place.device)
    x = torch.randn(64, WIDTH, generator=random).to(place.device)
    with place.autocast():
        quick, seconds = _timed(lambda: layer(x))
    exact, slow = _timed(lambda: layer(x))
    apart = float((quick.float() - exact).norm() / exact.norm())
    told = f"{_name(place.dtype)} takes {seconds * 1e3:.2f} ms, float32 {slow * 1e3:.2f} ms, apart by {apart:.2%}"
    return apart < APART, told


def _try_small(place: Place, word: str) -> tuple[bool, str]:
    """One layer in 8 bits against fp32: how far apart, how fast beside the machine's own type, and in how many bits."""
    import torch

    from limner.nn.fp8 import Fp8Linear
    from limner.nn.int8 import FULL, Int8Linear, weight_reach

    random = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False).to(place.device)
    small = Int8Linear(layer, torch.float32) if word == "int8" else Fp8Linear(layer, place.dtype, place.device)
    x = torch.randn(64, WIDTH, generator=random).to(place.device)
    with torch.inference_mode():
        quick, seconds = _timed(lambda: small(x))
        exact = layer(x)
        with place.autocast():
            _, usual = _timed(lambda: layer(x))
    apart = float((quick.float() - exact).norm() / exact.norm())
    told = f"takes {seconds * 1e3:.2f} ms, {_name(place.dtype)} {usual * 1e3:.2f} ms, apart by {apart:.2%}"
    if word == "fp8":
        return apart < FP8_APART, told
    return apart < APART, f"{told}; weights of {8 if weight_reach() == FULL else 7} bits"


def _timed(work: Any) -> tuple[torch.Tensor, float]:
    """The result, and the best of five times."""
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        result = work()
        result.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return result, best


def _check(name: str) -> tuple[bool, str]:
    """Whether the files of a model are those that were shipped."""
    from limner.pipeline import find_model
    from limner.weights.io import sha256

    folder = find_model(name)
    try:
        lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        pairs = [(want, folder / file) for want, _, file in (line.partition("  ") for line in lines)]
        bad = [file.name for want, file in pairs if not file.exists() or sha256(file) != want]
    except OSError as error:
        return False, f"{error.filename} cannot be read: {error.strerror}"
    if bad:
        return False, f"{', '.join(bad)} in {folder} are not what was shipped; install limner anew"
    return True, f"{len(pairs)} files are whole, in {folder}"
