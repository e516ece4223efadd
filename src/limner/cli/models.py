"""`limner models`: what can be painted with, what a file is, and the store of what was added."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from limner.cli.say import as_json, plain, rows, size
from limner.errors import BadInput, BadWeights, LimnerError

if TYPE_CHECKING:
    from limner.families.recognise import Checkpoint
    from limner.store import Entry

models = App(name="models", help="List, add, look at, check and convert models.")

Json = Annotated[bool, Parameter(help="Print a line of JSON for each model.")]
Model = Annotated[str, Parameter(help="A name, a folder, or a .safetensors or .gguf file.")]
Name = Annotated[str, Parameter(help="A name in the store.")]


@models.default
@models.command(name="list", sort_key=0)
def listed(
    *paths: Annotated[str, Parameter(help="Folders or files to look at beside the models that are here.")],
    json: Json = False,
) -> None:
    """List the models that ship, those that were added, those in LIMNER_MODELS, and those at the paths given.

    LIMNER_MODELS may name several folders, as ComfyUI and the A1111 page keep them.
    """
    from limner.pipeline import SHIPPED
    from limner.store import entries, scanned

    found = [each for name in SHIPPED if (each := _shipped(name))]
    book = entries()
    found += [_stored(entry) for entry in book.values()]
    known = {each["path"] for each in found}
    found += [_found(path, kind) for kind, path in scanned() if str(path) not in known]
    found += [_facts(Path(path).expanduser(), "given") for path in paths]
    if json:
        for each in found:
            as_json(each)
        return
    table = [("name", "family", "parameters", "on disk", "where")]
    for each in found:
        count = f"{each['parameters']:,}" if each["parameters"] else ""
        what = " ".join((each["family"], *([each["variant"]] if each["variant"] not in ("base", "") else [])))
        table.append((plain(each["name"]), what, count, size(each["bytes"]), plain(each["path"])))
    rows(table)
    if any(each["family"] == UNREAD for each in found):
        print("to know why one cannot be read: limner models show PATH")


UNREAD = "unreadable"


def _shipped(name: str) -> dict[str, Any] | None:
    from limner.pipeline import find_model

    try:
        return _facts(find_model(name), "shipped")
    except BadWeights as error:  # the others still count
        warnings.warn(f"the model {name} that ships is not whole: {error}", stacklevel=1)
        return None


def _stored(entry: Entry) -> dict[str, Any]:
    facts = entry.model_dump(exclude={"files", "size"})
    return facts | {"parameters": sum(entry.networks.values()), "bytes": entry.size, "kind": "stored"}


def _found(path: Path, kind: str) -> dict[str, Any]:
    """What lies in a folder of models: one that cannot be read hides no other."""
    blank = {"name": _name(path), "variant": "", "parameters": 0, "networks": {}, "kind": "found"}
    blank |= {"bytes": _bytes(path), "path": str(path)}
    if kind != "model":
        return blank | {"family": kind}
    try:
        return _facts(path, "found")
    except LimnerError as error:
        return blank | {"family": UNREAD, "error": str(error)}


def _facts(path: Path, kind: str) -> dict[str, Any]:
    """Read from the files' headers alone."""
    from limner.families.recognise import recognise

    checkpoint = recognise(path)
    nets = {net: part.parameters for net, part in checkpoint.parts.items()}
    return {
        "name": _name(path), "kind": kind, "family": checkpoint.family.name, "variant": checkpoint.variant,
        "layout": checkpoint.layout, "parameters": sum(nets.values()), "networks": nets, "bytes": _bytes(path),
        "path": str(path),
    }  # fmt: skip


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _where(name: str) -> Path:
    """The path of a model that somebody typed: what ships, what is in the store, or a path."""
    from limner.pipeline import SHIPPED, find_model
    from limner.store import stored

    if name in SHIPPED:
        return find_model(name)
    path = Path(name).expanduser()
    return path if path.exists() else stored(name) or find_model(name)


@models.command(sort_key=1)
def show(model: Model, *, json: Json = False) -> None:
    """Say what a model is: family, variant, layout, the type and number of weights of each part, and what is missing.

    Only headers are read, so this takes no longer for a large file.
    """
    from limner.families.recognise import recognise
    from limner.store import entries, licence

    checkpoint = recognise(_where(model))
    entry = next((each for each in entries().values() if each.path == str(checkpoint.path.absolute())), None)
    terms = licence(checkpoint.path, checkpoint.metadata)
    if json:
        told = _told(checkpoint) | {"licence": terms, "source": entry.source if entry else None}
        return as_json(told)
    name = f"{checkpoint.family.name}{'' if checkpoint.variant == 'base' else f' {checkpoint.variant}'}"
    print(f"{plain(str(checkpoint.path))}: {name}, {checkpoint.layout}, {size(_bytes(checkpoint.path))}")
    table = [("part", "names", "parameters", "type")]
    for net, part in checkpoint.parts.items():
        table.append((net, part.layout, f"{part.parameters:,}", _types(part.dtypes)))
    rows(table, indent="  ")
    path = checkpoint.diffusion
    said = path.prediction + (", to pure noise" if getattr(path, "zero_snr", False) else "")
    facts = [("predicts", said)] if "denoiser" in checkpoint.parts else []
    facts += [("missing", ", ".join(checkpoint.missing))] if checkpoint.missing else []
    facts += [("licence", plain(terms))] if terms else []
    facts += [("from", plain(entry.source)), ("added", entry.added)] if entry else []
    facts += [(plain(key), _short(value)) for key, value in sorted(checkpoint.metadata.items())]
    rows(facts, indent="  ")
    return None


def _types(dtypes: Any) -> str:
    """One type, or each with its share of the numbers."""
    if len(dtypes) == 1:
        return str(next(iter(dtypes)))
    return ", ".join(f"{count:,} {name}" for name, count in dtypes.items())


def _short(value: str) -> str:
    """A line of metadata; a preview picture inside it is as long as a file."""
    line = " ".join(plain(value[:400]).split())
    return line if len(line) <= 100 else f"{line[:100]}... ({len(value):,} letters)"


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    parts = {
        net: {"names": part.layout, "parameters": part.parameters, "types": dict(part.dtypes),
              "files": [str(file) for file in part.files]}
        for net, part in checkpoint.parts.items()
    }  # fmt: skip
    return {
        "path": str(checkpoint.path), "family": checkpoint.family.name, "variant": checkpoint.variant,
        "layout": checkpoint.layout, "prediction": checkpoint.diffusion.prediction, "parts": parts,
        "missing": list(checkpoint.missing),
        "metadata": dict(checkpoint.metadata), "bytes": _bytes(checkpoint.path),
    }  # fmt: skip


@models.command(sort_key=2)
def add(
    model: Annotated[str, Parameter(help="A file, a folder, or hf:ORG/NAME[@REVISION][/FILE].")],
    *,
    name: Annotated[str, Parameter(help="What to call it; without it, the file's or folder's name.")] = "",
    copy: Annotated[bool, Parameter(help="Copy the files into the store.")] = False,
    variant: Annotated[str, Parameter(help="Of a hub's folder, fetch these weights, as in fp16.")] = "",
) -> None:
    """Give a model a name, and record its family and the SHA-256 of its files.

    What begins with hf: is fetched from the Hugging Face hub first: safetensors and configs alone.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    from limner import store
    from limner.pipeline import SHIPPED

    path, source = Path(model), ""
    if model.startswith("hf:"):
        from limner.hub import fetch, parse

        address = parse(model)
        path, source = fetch(address, variant), model
        name = name or (Path(address.file).stem if address.file else address.repo.partition("/")[2])
    elif variant:
        raise BadInput("--variant is for what begins with hf: alone")
    entry = store.add(path, name, source, copy, SHIPPED)
    what = f"{entry.family}{'' if entry.variant == 'base' else f' {entry.variant}'}"
    print(f"{entry.name}: {what}, {size(entry.size)}, {plain(entry.path)}")


@models.command(sort_key=3)
def verify(name: Name = "", *, json: Json = False) -> int:
    """Compare files with the SHA-256 recorded when they were added; without a name, those of every model.

    Ends with the status 1 where a file has changed or is gone.
    """
    from limner import store

    checked = [store.known(name)] if name else list(store.entries().values())
    well = True
    for entry in checked:
        states: dict[str, str] = {}
        for file, state in store.verify(entry):
            states[file] = state
            if not json:
                rows([(state, entry.name, plain(file))])
        well = well and set(states.values()) <= {"good"}
        if json:
            as_json({"name": entry.name, "good": set(states.values()) <= {"good"}, "files": states})
    if not checked and not json:
        print("the store is empty")
    return 0 if well else 1


@models.command(sort_key=4)
def convert(
    old: Annotated[str, Parameter(help="A .ckpt or other pickle, or a model.")],
    new: Annotated[Path, Parameter(help="What to write; nothing is written over.")],
    *,
    layout: Annotated[
        Literal["single", "diffusers"] | None,
        Parameter(help="One file in the original names, or a diffusers folder; without it, as NEW's name says."),
    ] = None,
    precision: Annotated[
        Literal["int8", "fp16", "bf16", "fp32"] | None,
        Parameter(
            name=("--precision", "--dtype"),
            help="The type of the weights; without it, as they are. int8 has a scale for each channel.",
        ),
    ] = None,
) -> None:
    """Make safetensors of a pickle, or another layout or type of a model.

    A pickle is read in a process of its own, which can build tensors and nothing else; its names are kept.
    """
    if new.exists():
        raise BadInput(f"{new} is there already, and nothing is written over it")
    if _is_pickle(Path(old).expanduser()):
        _from_pickle(Path(old).expanduser(), new, layout, precision)
    else:
        _rewrite(_where(old), new, layout, precision)
    print(plain(str(new)))


def _is_pickle(path: Path) -> bool:
    from limner.weights.io import refuse_pickle

    try:
        if path.is_file():
            refuse_pickle(path)
    except BadWeights:
        return True
    return path.is_file() and path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def _from_pickle(old: Path, new: Path, layout: str | None, precision: str | None) -> None:
    import tempfile

    from limner.intake.pickles import convert_pickle

    if layout is None and precision is None:
        done = convert_pickle(old, new)
    else:
        new.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=new.parent, prefix=".limner-") as folder:
            done = convert_pickle(old, Path(folder) / f"{old.stem}.safetensors")
            _rewrite(done.path, new, layout, precision)
    beside = f"; left out: {', '.join(done.beside[:8])}{' ...' if len(done.beside) > 8 else ''}" if done.beside else ""
    print(f"{done.tensors} tensors{f' of {done.at}' if done.at else ''}{beside}")


def _rewrite(old: Path, new: Path, layout: str | None, precision: str | None) -> None:
    import torch

    from limner.families.recognise import recognise
    from limner.families.write import write_checkpoint

    types = {"int8": torch.int8, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    kind = layout or ("single" if new.suffix == ".safetensors" else "diffusers")
    if (kind == "single") != (new.suffix == ".safetensors"):
        raise BadInput(f"{new} does not fit --layout {kind}: a single file ends in .safetensors, a folder does not")
    write_checkpoint(recognise(old), new, kind, types[precision] if precision else None)


@models.command(sort_key=5)
def remove(name: Name) -> None:
    """Forget a model. Its files stay, but for those that the store copied, which are deleted."""
    from limner import store

    entry = store.known(name)
    if entry.copied:
        print(f"deleting {plain(entry.path)} ({size(entry.size)}), which the store copied", flush=True)
    store.remove(name)
    print(f"{name} is forgotten" + ("" if entry.copied else f"; {plain(entry.path)} stays"))
