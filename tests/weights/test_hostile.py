"""Hostile files and folders: what opens a model refuses them in a sentence, soon, in little memory, running nothing."""

import contextlib
import gc
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import store
from limner.errors import LimnerError
from limner.families import FAMILIES
from limner.families.recognise import recognise
from limner.models.clip import ClipConfig
from limner.models.unet import UnetConfig
from limner.models.vae import VaeConfig
from limner.pipeline import load
from limner.weights.io import MAX_HEADER, MAX_VALUES, read_header, read_tensors, write_tensors
from limner.weights.layout import translate

FILES = {"header": read_header, "tensors": read_tensors}  # what opens a file
MODELS: dict[str, Callable[[Path], Any]] = {  # what opens a file or a folder
    "recognise": recognise, "load": lambda path: load(str(path)), "add": store.add,
}  # fmt: skip
MOST = 100_000_000  # bytes that refusing anything may take
EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.",
    "pickle.",
    "ctypes.dlopen",
)
HEARD: list[str] | None = None


class Hook(MetaPathFinder):
    """Hears of every import that is not of the package and its libraries themselves."""

    def find_spec(self, name: str, *_: object) -> None:
        if HEARD is not None and name.partition(".")[0] not in KNOWN:
            HEARD.append(f"import {name}")


KNOWN = {*sys.stdlib_module_names, "limner", "torch", "numpy", "tokenizers", "pydantic"}


def hear(event: str, args: tuple[object, ...]) -> None:
    if HEARD is not None and event.startswith(EVENTS):
        HEARD.append(event)


sys.addaudithook(hear)  # for good: an audit hook cannot be taken back, so it listens to `watched` alone


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be run or imported, and no canary hatch, while a test of this file goes on."""
    global HEARD
    monkeypatch.setenv("LIMNER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.setattr(sys, "meta_path", [Hook(), *sys.meta_path])
    HEARD = []
    yield
    heard, HEARD = HEARD, None
    assert not heard and not (tmp_path / "canary").exists()


def refused(opens: Callable[[Path], Any], path: Path, seconds: float = 1) -> str:
    gc.freeze()  # what thousands of other tests have left is no part of this one's time
    begun = sum(os.times()[:2])
    with pytest.raises(LimnerError) as caught:
        opens(path)
    assert sum(os.times()[:2]) - begun < seconds, "it took too long"
    gc.unfreeze()
    said = str(caught.value)
    assert 0 < len(said) < 2000
    return said


def file(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(shape: list[Any], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class Bomb:
    def __reduce__(self) -> Any:
        return (os.system, (f"touch {os.environ['CANARY']}",))


def zipped(*names: str, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return out.getvalue()


def bombs() -> dict[str, bytes]:
    """Files that run something in a careless reader."""
    saved = io.BytesIO()
    torch.save({"x": torch.ones(2), "bomb": Bomb()}, saved)
    row = io.BytesIO()
    torch.save({"bomb": Bomb()}, row, _use_new_zipfile_serialization=False)
    inside = struct.pack("<Q", 100) + pickle.dumps(Bomb()).ljust(100)
    packed = zipped("a/data.pkl", data=zipped("data.pkl", data=pickle.dumps(Bomb())))
    return {f"protocol {n}": pickle.dumps(Bomb(), n) for n in range(6)} | {
        "torch zip": saved.getvalue(), "torch row": row.getvalue(), "zip in zip": packed,
        "empty zip": b"PK\5\6" + bytes(18), "zip with ..": zipped("../../x.safetensors"),
        "zip behind bytes": bytes(9) + zipped("a"), "pickle behind a length": inside,
        "text pickle": b"cos\nsystem\n(Vls\ntR.", "python": b"import os\nos.system('true')\n",
        "gzip": b"\x1f\x8b\x08" + bytes(40), "7z": b"7z\xbc\xaf\x27\x1c" + bytes(40),
        "gguf": b"GGUF\3\0\0\0" + bytes(40), "tar": b"x".ljust(257) + b"ustar" + bytes(250),
        "elf": b"\x7fELF" + bytes(60), "yaml": b"!!python/object/apply:os.system ['true']\n",
        "html": b"<html>404 Not Found</html>", "onnx": b"\x08\7\x12\7pytorch",
        "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "nothing": b"",
        "a byte": b"\0",
    }  # fmt: skip


BOMBS = (
    *(f"protocol {n}" for n in range(6)), "torch zip", "torch row", "zip in zip", "empty zip", "zip with ..",
    "zip behind bytes", "pickle behind a length", "text pickle", "python", "gzip", "7z", "gguf", "tar", "elf", "yaml",
    "html", "onnx", "git lfs", "nothing", "a byte",
)  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_what_is_not_safetensors_is_refused_under_every_suffix(kind, tmp_path):
    data = bombs()[kind]
    for suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pkl", ".sft", ""):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(data)
        for opens in (read_header, recognise):
            refused(opens, path)
    for opens in (*FILES.values(), *MODELS.values()):
        refused(opens, tmp_path / "model.safetensors")


HEADERS: dict[str, tuple[Any, bytes]] = {
    "overlapping ranges": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "two names for the same bytes": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "a gap between ranges": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "a range past the end": ({"a": entry([4], 0, 16)}, bytes(8)),
    "a range before the start": ({"a": entry([2], -8, 0)}, bytes(8)),
    "bytes that no tensor owns": ({"a": entry([1], 0, 4)}, bytes(9)),
    "a shape for other bytes": ({"a": entry([3], 0, 8)}, bytes(8)),
    "a shape of 2^63": ({"a": entry([2**63], 0, 8)}, bytes(8)),
    "a product that overflows": ({"a": entry([2**32, 2**32], 0, 0)}, b""),
    "empty and enormous": ({"a": entry([0, 2**39, 2**39], 0, 0)}, b""),
    "ten thousand axes": ({"a": entry([1] * 10_000, 0, 4)}, bytes(4)),
    "NaN as metadata": (b'{"__metadata__": {"a": NaN}}', b""),
    "an endless number": (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', bytes(4)),
    "metadata in metadata": ({"__metadata__": {"a": {"b": "c"}}}, b""),
    "a duplicate name": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"a"),
    "duplicate metadata": (b'{"__metadata__":{},"__metadata__":{"a":"b"}}', b""),
    "a lone half of a letter": (b'{"\\ud800": 1}', b""),
    "a name of a megabyte": ({"a" * 1_000_000: 1}, b""),
    "JSON of another file": ({"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]}, b""),
    "a pickle for a dtype": ({"a": entry([1], 0, 4, "pickle")}, bytes(4)),
    "brackets without end": (b"[" * 1_000_000, b""),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(HEADERS))
def test_a_header_that_lies_is_refused(kind, tmp_path):
    path = file(tmp_path / "model.safetensors", *HEADERS[kind])
    for opens in (*FILES.values(), *MODELS.values()):
        assert str(path) in refused(opens, path)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 + 2, 2**62, 2**63, 2**64 - 1])
def test_a_header_that_is_longer_than_the_file_is_refused(length, tmp_path):
    path = file(tmp_path / "model.safetensors", {}, bytes(100), length)
    for opens in (*FILES.values(), *MODELS.values()):
        refused(opens, path)


def dense(kind: str) -> bytes:
    """Headers that are small in the file and could be large in memory."""
    room = MAX_HEADER - 100
    return {
        "90 MB of spaces": b"{" + b" " * 90_000_000 + b"}",
        "brackets": b'{"a":[' + b"[]," * (room // 3) + b"[]]}",
        "names": b"{" + b",".join(b'"%d":0' % i for i in range(MAX_VALUES + 10)) + b"}",
        "as many names as may be": b"{" + b",".join(b'"%d":0' % i for i in range(MAX_VALUES - 10)) + b"}",
        "a text that becomes wide": b'{"a":"' + b"x" * room + "\N{GRINNING FACE}".encode() + b'"}',
        "quotes": b'{"a":"' + b'\\"' * (room // 2 - 1_000_000) + b'","b":[' + b"1," * 300_000 + b"1]}",
        "a text without end": b'{"a":"' + b"," * room,
    }[kind]


DENSE = (
    "90 MB of spaces", "brackets", "names", "as many names as may be", "a text that becomes wide", "quotes",
    "a text without end",
)  # fmt: skip


@pytest.mark.parametrize("kind", DENSE)
def test_a_header_that_would_fill_the_memory_is_refused_first(kind, tmp_path):
    path = file(tmp_path / "model.safetensors", dense(kind))
    tracemalloc.start()
    try:
        refused(read_header, path, seconds=4)  # counting the memory makes it slow: the next line counts the time
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    refused(read_header, path)


def net(kind: Any, config: Any) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(kind.build(config).state_dict())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1.5 in one file."""
    family = FAMILIES["sd15"]
    configs = {
        "denoiser": UnetConfig(width=32, multiples=(1, 2), blocks=1, depths=(1, 0), context=64),
        "autoencoder": VaeConfig(width=32, multiples=(1, 1), blocks=1),
        "text": ClipConfig(width=64, layers=1, heads=1, hidden=64, vocabulary=300),
    }
    tensors = {}
    for name, config in configs.items():
        prefix, naming = family.single[name]
        rules = family.nets[name].naming(naming).writes(config)
        made = translate(net(family.nets[name], config), rules, back=True)
        tensors |= {prefix + key: value.half() for key, value in made.items()}
    path = tmp_path_factory.mktemp("whole") / "sd15.safetensors"
    write_tensors(path, tensors)
    load(str(path))  # once, before anything is timed: torch imports half of itself when first asked
    return path


@pytest.fixture(scope="session")
def whole_folder(whole: Path) -> Path:
    """The same as a diffusers folder."""
    from limner.families.write import write_checkpoint

    return write_checkpoint(recognise(whole), whole.with_name("folder"), "diffusers")


def test_the_whole_file_and_folder_of_these_tests_are_sound(whole, whole_folder):
    assert recognise(whole).missing == () and recognise(whole_folder).missing == ()
    load(str(whole))


def test_a_file_cut_at_64_points_is_refused(whole, tmp_path):
    data = whole.read_bytes()
    path = tmp_path / "cut.safetensors"
    points = [*range(0, 64, 2), *(len(data) * i // 32 - 1 for i in range(1, 33))]
    assert len(set(points)) == 64
    for length in points:
        path.write_bytes(data[:length])
        for opens in (read_header, recognise):
            refused(opens, path)
    for opens in MODELS.values():
        refused(opens, path)


def test_a_flipped_bit_of_the_header_is_refused_or_harmless(whole, tmp_path):
    """What still reads as a header has the same bytes under the same or another name, or another dtype as wide."""
    data = bytearray(whole.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    path, rng, passed = tmp_path / "flipped.safetensors", random.Random(0), 0
    for _ in range(64):
        at, bit = rng.randrange(8 + size), 1 << rng.randrange(8)
        data[at] ^= bit
        path.write_bytes(data)
        data[at] ^= bit
        try:
            recognise(path)
            load(str(path))
        except LimnerError:
            continue
        passed += 1
    assert passed <= 4


ABSURD = {
    "a width of nothing": ("model.diffusion_model.input_blocks.0.0.weight", [0, 4, 3, 3]),
    "a width of 2^38": ("model.diffusion_model.input_blocks.0.0.weight", [2**38, 0, 3, 3]),
    "a matrix for a convolution": ("model.diffusion_model.input_blocks.0.0.weight", [32, 4]),
    "a number for a convolution": ("model.diffusion_model.input_blocks.0.0.weight", []),
    "no channels": ("model.diffusion_model.out.2.weight", [0, 32, 3, 3]),
    "a vocabulary of 2^38": ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", [2**38, 0]),
    "a text of no width": ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", [49408, 0]),
    "a text of 2^38": ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", [0, 2**38]),
    "an autoencoder of 2^38": ("first_stage_model.encoder.conv_in.weight", [2**38, 0, 3, 3]),
    "latents of 2^38": ("first_stage_model.decoder.conv_in.weight", [0, 2**38, 3, 3]),
    "an autoencoder of nothing": ("first_stage_model.encoder.conv_in.weight", [0, 3, 3, 3]),
    "a row for the decoder": ("first_stage_model.decoder.conv_in.weight", [7]),
}  # fmt: skip


def changed(whole: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The whole file with other shapes and names, their bytes and all others zero, in a sparse file."""
    entries = {name: list(each.shape) for name, each in read_header(whole).entries.items()}
    change(entries)
    header, at = {}, 0
    for name, shape in entries.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = entry(shape, at, at + size, "F16")
        at += size
    file(path, header)
    os.truncate(path, path.stat().st_size + at)
    return path


@pytest.mark.parametrize("kind", list(ABSURD))
def test_shapes_that_no_network_has_are_refused(kind, whole, tmp_path):
    """Recognising asks for the shapes that tell the config alone, so it may pass; loading asks for all."""
    name, shape = ABSURD[kind]
    path = changed(whole, tmp_path / "absurd.safetensors", lambda entries: entries.update({name: shape}))
    with contextlib.suppress(LimnerError):
        recognise(path)
    assert str(path) in refused(MODELS["load"], path)


NAMES = {
    "a name with ../": "../../etc/passwd",
    "an absolute name": "/etc/passwd",
    "a name with a nul": "a\0b",
    "a name that clears the screen": "\x1b[2J",
    "a dunder": "__class__.__init__",
    "a wide index": "model.diffusion_model.input_blocks.99999999999999999999.0.weight",
    "a negative index": "model.diffusion_model.input_blocks.-1.0.weight",
    "an index that is no number": "model.diffusion_model.input_blocks.eleven.0.weight",
    "many dots": "model.diffusion_model." + ".".join("a" * 1000),
    "an empty name": "",
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NAMES))
def test_names_that_no_network_has_are_refused(kind, whole, tmp_path):
    path = changed(whole, tmp_path / "named.safetensors", lambda entries: entries.update({NAMES[kind]: [1]}))
    assert str(path) in refused(MODELS["load"], path)


def test_thousands_of_layers_of_nothing_are_refused_soon(whole, tmp_path):
    start = "model.diffusion_model.input_blocks.1.1.transformer_blocks"

    def more(entries: dict[str, Any]) -> None:
        entries.update({f"{start}.{i}.norm1.weight": [0] for i in range(1, 10_000)})

    refused(MODELS["load"], changed(whole, tmp_path / "deep.safetensors", more))


# Folders.

Spoil = Callable[[Path], Any]


def text(name: str, words: str | dict[str, Any]) -> Spoil:
    """A file of a folder with other words."""
    return lambda folder: (folder / name).write_text(words if isinstance(words, str) else json.dumps(words))


def index(**changes: Any) -> Spoil:
    """A changed model_index.json."""

    def spoil(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def sharded(*names: Any, weight_map: Any = None) -> Spoil:
    """The UNet's weights in shards of these names."""

    def spoil(folder: Path) -> None:
        found = folder / "unet" / "diffusion_pytorch_model.safetensors"
        found.rename(found.with_name("whole.bin"))
        shards = {f"tensor{i}": name for i, name in enumerate(names)} if weight_map is None else weight_map
        (folder / "unet" / f"{found.name}.index.json").write_text(json.dumps({"weight_map": shards}))

    return spoil


def linked(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        outside = folder.parent / "outside.safetensors"
        if path.exists():
            shutil.copy(path, outside)
            path.unlink()
        path.symlink_to(target.format(outside=outside))

    return spoil


def pickled(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Bomb()))


def only_pickles(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps(Bomb()))


FOLDERS: dict[str, Spoil] = {
    "a foreign class": index(unet=["my_package", "MyUNet"]),
    "a module of the system": index(unet=["os", "system"]),
    "a class of diffusers that is not built here": index(unet=["diffusers", "FluxTransformer2DModel"]),
    "a class by a path": index(vae=["diffusers", "../../AutoencoderKL"]),
    "a class that is a list": index(unet=["diffusers", ["UNet2DConditionModel"]]),
    "a class that is an object": index(unet=["diffusers", {"a": 1}]),
    "a component that is not known": index(backdoor=["diffusers", "UNet2DConditionModel"]),
    "a component by a path": index(**{"../../etc": ["diffusers", "UNet2DConditionModel"]}),
    "another component's weights": index(unet=["diffusers", "AutoencoderKL"]),
    "code for the pipeline": index(_class_name=["pipeline", "Evil"], unet=["unet.evil", "Evil"]),
    "no components": text("model_index.json", {}),
    "an index that is a list": text("model_index.json", "[]"),
    "an index that is no JSON": text("model_index.json", "import os"),
    "an index that is empty": text("model_index.json", ""),
    "an index of brackets": text("model_index.json", "[" * 200_000),
    "an index in another alphabet": lambda folder: (folder / "model_index.json").write_bytes(b"\xff\xfe{\0}\0"),
    "a shard outside": sharded("../../etc/passwd"),
    "a shard of another component": sharded("../vae/diffusion_pytorch_model.safetensors"),
    "a shard by an absolute path": sharded("/etc/passwd"),
    "a shard that is a pickle": lambda folder: (sharded("whole.bin")(folder), pickled("unet/whole.bin")(folder)),
    "a shard that is gone": sharded("a.safetensors", "b.safetensors"),
    "a shard that is a number": sharded(weight_map={"a": 7}),
    "a shard that is a list": sharded(weight_map={"a": ["b"]}),
    "shards of both kinds": sharded(weight_map={"a": 7, "b": "c"}),
    "a map of shards that is a list": sharded(weight_map=["a"]),
    "a map of shards that is empty": sharded(weight_map={}),
    "the folder itself for a shard": sharded("."),
    "a pickle called safetensors": pickled("unet/diffusion_pytorch_model.safetensors"),
    "a pickle alone": only_pickles,
    "a link to elsewhere": linked("unet/diffusion_pytorch_model.safetensors", "{outside}"),
    "a link to the system": linked("vae/diffusion_pytorch_model.safetensors", "/etc/passwd"),
    "a link to itself": linked("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
    "a link to a device": linked("unet/diffusion_pytorch_model.safetensors", "/dev/zero"),
    "a link for the index": linked("model_index.json", "/etc/passwd"),
    "a scheduler that is a list": text("scheduler/scheduler_config.json", "[]"),
    "a component that is gone": lambda folder: shutil.rmtree(folder / "unet"),
    "a component that is a file": lambda folder: (shutil.rmtree(folder / "vae"), (folder / "vae").write_text("x")),
}


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_a_hostile_folder_is_refused(kind, whole_folder, tmp_path):
    folder = Path(shutil.copytree(whole_folder, tmp_path / "folder"))
    FOLDERS[kind](folder)
    for opens in MODELS.values():
        refused(opens, folder)


HARMLESS = {
    "auto_map": {"auto_map": {"AutoModel": "evil.Evil"}},
    "a class of its own": {"_class_name": "Evil", "_module": "evil"},
    "code": {"custom_pipeline": "evil", "__reduce__": "os.system", "quantization_config": {"a": "eval('1')"}},
    "no config": "import evil",
}


@pytest.mark.parametrize("kind", list(HARMLESS))
def test_a_config_that_names_code_is_not_asked(kind, whole_folder, tmp_path):
    """What a network is comes from its shapes: no config chooses it, so such words are without effect."""
    folder = Path(shutil.copytree(whole_folder, tmp_path / "folder"))
    (folder / "unet" / "evil.py").write_text("raise SystemExit")
    (folder / "pipeline.py").write_text("raise SystemExit")
    text("unet/config.json", HARMLESS[kind])(folder)
    try:
        found = recognise(folder)
    except LimnerError:
        return
    assert found.parts["denoiser"].config == recognise(whole_folder).parts["denoiser"].config


def test_the_hubs_own_links_are_followed(whole_folder, tmp_path):
    """Its cache keeps snapshots of links into a folder of blobs beside them."""
    repo = tmp_path / "models--a--b"
    folder = Path(shutil.copytree(whole_folder, repo / "snapshots" / "0123"))
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        blob = repo / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert recognise(folder).missing == ()
    assert store.add(folder, "linked").family == "sd15"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("opens", [*FILES, *MODELS])
def test_a_pipe_is_refused_and_not_waited_for(opens, tmp_path):
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)
    refused((FILES | MODELS)[opens], path)
    path.unlink()
    path.symlink_to("/dev/zero")
    refused((FILES | MODELS)[opens], path)
