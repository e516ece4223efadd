"""Pickles: their tensors come over bit for bit, and whatever else one may hold, nothing of it runs."""

import argparse
import importlib.util
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.errors import BadInput, BadWeights, NotSaved
from limner.intake import pickles
from limner.intake.pickles import CHILD, convert_pickle
from limner.weights.io import read_header, read_tensors, refuse_pickle

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".safetensors", ".sft", ".gguf", ".json", "")
Written = dict[str, torch.Tensor]


def weights() -> Written:
    """Every dtype, and every way in which a tensor can lie in its storage."""
    rng = torch.Generator().manual_seed(0)
    flat = torch.randn(60, generator=rng)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
    return {f"of.{str(kind)[6:]}": (flat * 50).abs().to(kind) for kind in kinds} | {
        "bool": flat > 0,
        "whole": flat.view(3, 4, 5),
        "shared": flat[7:31].view(4, 6),
        "turned": flat.view(3, 4, 5).permute(2, 0, 1),
        "every third": flat[2::3],
        "broad": flat[:1].expand(4, 3),
        "rows again": flat[:3].expand(4, 3),
        "last channel": flat[:54].view(2, 3, 3, 3).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "ünïcode ☃.weight": torch.ones(1),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }


def same(path: Path, wanted: Written) -> None:
    found = read_tensors(path)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def converted(path: Path) -> pickles.Converted:
    return convert_pickle(path, path.with_name("new.safetensors"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
def test_every_tensor_comes_over_bit_for_bit(tmp_path, zipped):
    old = tmp_path / "old.ckpt"
    torch.save(weights(), old, _use_new_zipfile_serialization=zipped)
    done = converted(old)
    same(done.path, weights())
    assert (done.tensors, done.at, done.beside) == (len(weights()), "", ())
    assert read_header(done.path).metadata == {"format": "pt"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.safetensors", "old.ckpt"]


def test_eight_bit_floats_come_over(tmp_path):
    value = torch.arange(6.0).to(torch.float8_e4m3fn)
    torch.save({"x": value}, tmp_path / "old.pt")
    found = read_tensors(converted(tmp_path / "old.pt").path)["x"]
    assert found.dtype == value.dtype and torch.equal(found.view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize("nest", ["state_dict", "params_ema", "model"])
def test_weights_are_taken_from_where_training_tools_put_them_and_the_rest_is_left(tmp_path, nest):
    net = torch.nn.Linear(3, 2)
    old = tmp_path / "old.ckpt"
    state = net.state_dict() | {"note": "not a tensor"}
    beside = {
        "epoch": 3, "loss": np.float64(0.5), "grid": np.ones(3), "where": tmp_path, "seen": {1, 2},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}, "size": torch.Size([1]),
        "hyper": argparse.Namespace(lr=1e-3, betas=(0.9, 0.99)),
    }  # fmt: skip
    torch.save(beside | {nest: OrderedDict(state)}, old)
    done = converted(old)
    same(done.path, dict(net.state_dict()))
    assert done.at == nest and set(done.beside) == {*beside, "note"}


def test_the_callbacks_of_a_lightning_run_are_left(tmp_path, monkeypatch):
    """The first published checkpoints have a class of Lightning as the key of its callbacks' state."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = type(sys)(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, type(sys)(part))
    monkeypatch.setitem(sys.modules, name, module)
    made = module.ModelCheckpoint()
    made.best = np.float32(1)
    torch.save({"callbacks": {module.ModelCheckpoint: made}, "state_dict": {"x": torch.ones(2)}}, tmp_path / "old.ckpt")
    done = converted(tmp_path / "old.ckpt")
    same(done.path, {"x": torch.ones(2)})
    assert done.beside == ("callbacks",)


@pytest.mark.parametrize("words", [dict, torch.nn.ParameterDict])
def test_a_textual_inversion_is_one_table_of_vectors(tmp_path, words):
    vectors = torch.randn(2, 8)
    old = tmp_path / "style.pt"
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words({"*": vectors}), "step": 9}, old)
    done = converted(old)
    same(done.path, {"emb_params": vectors})
    assert done.at == "string_to_param" and done.beside == ("string_to_token", "step")


def test_the_old_and_the_new_file_are_as_the_words_say(tmp_path):
    old = tmp_path / "old.ckpt"
    torch.save({"x": torch.ones(2)}, old)
    with pytest.raises(BadInput, match=r"should end in \.safetensors"):
        convert_pickle(old, tmp_path / "new.ckpt")
    converted(old)
    with pytest.raises(BadInput, match="nothing is written over it"):
        converted(old)
    with pytest.raises(NotSaved, match="No such file"):
        convert_pickle(tmp_path / "none.ckpt", tmp_path / "none.safetensors")
    convert_pickle(old, tmp_path / "a" / "b" / "new.safetensors")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("how", ["zip", "row", "bare", "protocol 5", "any zip"])
def test_a_pickle_is_refused_under_every_suffix_and_the_way_out_is_told(tmp_path, suffix, how):
    path = tmp_path / f"model{suffix}"
    if how in ("zip", "row"):
        torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=how == "zip")
    elif how == "any zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "a")
    else:
        path.write_bytes(pickle.dumps({"x": [1.0]}, protocol=5 if how == "protocol 5" else 2))
    for refuse in (refuse_pickle, read_header):
        with pytest.raises(BadWeights, match=f"limner models convert model{suffix} model.safetensors"):
            refuse(path)


def test_what_is_no_pickle_is_let_through(tmp_path):
    """A header of 640 bytes makes a safetensors file begin as pickles do."""
    path = tmp_path / "x.safetensors"
    text = json.dumps({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}).encode().ljust(640)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"ab")
    assert path.read_bytes()[:2] == b"\x80\2"
    refuse_pickle(path)
    assert read_tensors(path)["x"].tolist() == [97, 98]
    (tmp_path / "empty").touch()
    refuse_pickle(tmp_path / "empty")
    with pytest.raises(BadWeights, match="cannot be read"):
        refuse_pickle(tmp_path / "none")


# What follows is hostile.


def spent() -> float:
    """Seconds of the processor so far, of this process and the others: the neighbours' load is not counted."""
    return sum(os.times()[:4])


def call(name: str, *args: object) -> bytes:
    """A pickle that calls a function of any name."""
    module, _, function = name.rpartition(".")
    packed = pickle.dumps(args, 2)[2:-1]
    return b"c" + f"{module}\n{function}\n".encode() + packed + b"R"


def whole(body: bytes) -> bytes:
    return b"\x80\2" + body + b"."


def boxed(path: Path, body: bytes, storage: bytes = bytes(16), more: dict[str, bytes] | None = None) -> Path:
    """A zip as torch writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"a/data.pkl": body, "a/byteorder": b"little", "a/data/0": storage, **(more or {})}.items():
            archive.writestr(name, data)
    return path


def rowed(path: Path, body: bytes) -> Path:
    """A row of pickles as torch wrote before."""
    first = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(each, 2) for each in first) + body + pickle.dumps([], 2))
    return path


CALLS = (
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.getattr",
    "builtins.open", "builtins.__import__", "__builtin__.eval", "io.open", "shutil.rmtree", "socket.socket",
    "ctypes.CDLL", "importlib.import_module", "runpy.run_path", "pickle.loads", "torch.load", "torch.hub.load",
    "torch.storage._load_from_bytes", "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_sparse_tensor",
    "functools.partial", "operator.attrgetter", "types.FunctionType", "sys.addaudithook", "__main__.Reader",
    "limner.load",
)  # fmt: skip
LEFT = (
    "numpy.testing._private.utils.runstring", "numpy.f2py.compile", "builtins.object", "omegaconf.OmegaConf.load",
    "pathlib.Path", "torch.nn.modules.module.Module",
)  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_that_calls_anything_is_refused_by_the_name_of_it(tmp_path, name):
    canary = tmp_path / "canary"
    body = whole(b"}X\1\0\0\0x" + call(name, f"touch {canary}") + b"s")
    for path in (boxed(tmp_path / "zip.ckpt", body), rowed(tmp_path / "row.ckpt", body))[: 1 + (name in CALLS[:3])]:
        started = spent()
        with pytest.raises(BadWeights, match=f"asks for {name}") as caught:
            converted(path)
        assert spent() - started < 1 and str(path) in str(caught.value)
    assert not canary.exists() and not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("name", LEFT)
def test_what_training_tools_leave_is_replaced_by_what_does_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    value = call(name, f"open({str(canary)!r}, 'w')") + b"}X\1\0\0\0ab"  # and its state is set
    path = boxed(tmp_path / "old.ckpt", whole(b"}X\1\0\0\0x" + value + b"s").replace(b"X\1\0\0\0ab", b"X\1\0\0\0aNsb"))
    with pytest.raises(BadWeights, match="no tensor is in it"):
        converted(path)
    assert not canary.exists()


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    key = b"X" + struct.pack("<I", len(key.encode())) + key.encode()
    number = b"\x8a\x08" + struct.pack("<q", count)
    return b"(X\7\0\0\0storagectorch\n" + kind.encode() + b"\n" + key + b"X\3\0\0\0cpu" + number + b"tQ"


def numbers(*values: object) -> bytes:
    return pickle.dumps(values, 2)[2:-1]


def tensor(held: bytes = b"", offset: object = 0, shape: tuple = (4,), stride: tuple = (1,), name: str = "x") -> bytes:
    """A table with one tensor of any description."""
    start = pickle.dumps(offset, 2)[2:-1]
    body = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (held or storage()) + start + numbers(*shape) + numbers(*stride)
    spelled = b"X" + struct.pack("<I", len(name.encode())) + name.encode()
    return whole(b"}" + spelled + body + b"\x89)tRs")


SHAPES = {
    "a shape past the storage": (tensor(shape=(5,)), "reaches past"),
    "an offset past the storage": (tensor(offset=1), "reaches past"),
    "strides past the storage": (tensor(shape=(2, 2), stride=(3, 1)), "reaches past"),
    "a negative stride": (tensor(stride=(-1,)), "not whole numbers"),
    "a negative offset": (tensor(offset=-1), "not whole numbers"),
    "a negative side": (tensor(shape=(-4,)), "not whole numbers"),
    "a side that is true": (tensor(shape=(True,)), "not whole numbers"),
    "a side that is a fraction": (tensor(shape=(2.0,)), "not whole numbers"),
    "a side that is text": (tensor(shape=("4",)), "not whole numbers"),
    "an endless side": (tensor(shape=(2**62,), stride=(0,)), "not whole numbers"),
    "one number a million million times": (tensor(shape=(2**39,), stride=(0,)), "far more than the file has"),
    "many axes": (tensor(shape=(1,) * 100, stride=(1,) * 100), "at most 16"),
    "fewer strides than sides": (tensor(shape=(2, 2)), "at most 16"),
    "a storage longer than its member": (tensor(storage(count=5)), "has 16 bytes, and 20 are told"),
    "a storage of 2^62 numbers": (tensor(storage(count=2**62)), "not|speaks of a storage"),
    "a storage of less than nothing": (tensor(storage(count=-4)), "speaks of a storage"),
    "a storage that is not there": (tensor(storage(key="9")), "storage 9 is not in it"),
    "a storage by a path": (tensor(storage(key="../data.pkl")), "is not in it"),
    "a storage of another kind": (tensor(storage("ComplexFloatStorage")), "asks for torch.ComplexFloatStorage"),
    "a tensor without a storage": (tensor(b"K\1"), "has no storage"),
    "a dtype for a storage": (tensor(b"ctorch\nfloat32\n"), "has no storage"),
    "a name that is an instruction": (tensor(name="x\x1b[2J"), "is called"),
    "a name that is the metadata's": (tensor(name="__metadata__"), "is called"),
    "a very long name": (tensor(name="x" * 100_000), "is called"),
    "a number for a name": (tensor().replace(b"X\1\0\0\0x", b"K\7"), "by what is no text"),
    "a parameter that is no tensor": (whole(b"}K\1ctorch._utils\n_rebuild_parameter\n(K\1K\1K\1tRs"), "not a tensor"),
    "a setting on a function": (whole(b"ctorch._utils\n_rebuild_tensor_v2\n}X\4\0\0\0makeNsb"), "sets attributes"),
    "a setting on a dtype": (whole(b"ctorch\nfloat16\nN}X\4\0\0\0sizeK\0s\x86b"), "sets attributes"),
    "a setting on a tensor": (tensor().replace(b"tRs.", b"tRN}X\6\0\0\0offsetK\x63s\x86bs."), "sets attributes"),
    "a class made of a function": (whole(b"ctorch._utils\n_rebuild_parameter\n)\x81"), "no sound pickle"),
    "an extension": (whole(b"\x82\1"), "no sound pickle"),
    "a buffer from outside": (b"\x80\5\x97.", "no sound pickle"),
    "another persistent id": (whole(b"X\1\0\0\0xQ"), "speaks of a storage"),
    "a module with its source": (whole(b"(X\6\0\0\0modulectorch.nn.modules.linear\nLinear\nNNtQ"), "speaks of"),
    "no table": (whole(b"K\1"), "no table of weights"),
    "an empty table": (whole(b"}"), "no tensor"),
    "nothing at all": (b"", "no sound pickle"),
    "half a pickle": (tensor()[:60], "no sound pickle"),
    "a memo of 2^31 places": (whole(b"Nr\xff\xff\xff\x7f"), "more memory|no sound pickle"),
    "a text of 2^40 bytes": (b"\x80\4\x8d" + struct.pack("<Q", 2**40) + b"x.", "more memory|no sound pickle"),
    "a thousand brackets in each other": (whole(b"]" * 100_000 + b"a" * 99_999), "no table"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_tensor_that_cannot_be_is_refused(tmp_path, kind):
    body, words = SHAPES[kind]
    started = spent()
    with pytest.raises(BadWeights, match=words) as caught:
        converted(boxed(tmp_path / "old.ckpt", body))
    assert spent() - started < 1 and len(str(caught.value)) < 500 and str(caught.value).isprintable()
    assert [file.name for file in tmp_path.iterdir()] == ["old.ckpt"]


def test_the_boxed_tensor_of_these_tests_is_sound_where_nothing_is_wrong_with_it(tmp_path):
    same(converted(boxed(tmp_path / "old.ckpt", tensor())).path, {"x": torch.zeros(4)})


def patched(data: bytes, mark: bytes, at: int, value: bytes, which: int = 0) -> bytes:
    """The bytes with some of them changed, counted from the place where a mark stands."""
    place = -1
    for _ in range(which + 1):
        place = data.index(mark, place + 1)
    return data[: place + at] + value + data[place + at + len(value) :]


def test_a_zip_that_torch_would_not_write_is_refused(tmp_path):
    good = boxed(tmp_path / "good.ckpt", tensor()).read_bytes()
    central = b"PK\1\2"
    cases = {
        "leads out of its folder": boxed(tmp_path / "1", tensor(), more={"a/../../etc/passwd": b""}).read_bytes(),
        "leads out": boxed(tmp_path / "2", tensor(), more={"/etc/passwd": b""}).read_bytes(),
        "outside of its own folder": boxed(tmp_path / "3", tensor(), more={"b/x": b""}).read_bytes(),
        "without one data.pkl": boxed(tmp_path / "4", tensor(), more={"b/data.pkl": b""}).read_bytes(),
        "is packed or locked": patched(good, central, 8, b"\1"),
        "packed or locked, which": patched(good, central, 10, b"\x08"),
        "reaches past the end": patched(good, central, 20, struct.pack("<II", 2**31, 2**31), which=2),
        "is not where the zip says": patched(good, central, 42, struct.pack("<I", 1), which=1),
        "overlaps another": patched(good, central, 42, struct.pack("<I", 0), which=1),
        "checksum is wrong": good.replace(b"a/data/0" + bytes(16), b"a/data/0" + b"\1" + bytes(15), 1),
        "zip is broken": good[: len(good) // 2],
        "neither of torch's": b"7z\xbc\xaf\x27\x1c" + good,
    }
    for words, data in cases.items():
        path = tmp_path / "bad.ckpt"
        path.write_bytes(data)
        with pytest.raises(BadWeights, match=words):
            converted(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path):
    path = boxed(tmp_path / "old.ckpt", tensor())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(BadWeights, match="data/0 is there twice"):
        converted(path)


def test_a_bomb_of_a_zip_is_refused_before_it_goes_off(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    with pytest.raises(BadWeights, match="packed"):
        converted(path)
    path = boxed(tmp_path / "long.ckpt", bytes(20_000_000))
    with pytest.raises(BadWeights, match="pickle of 20000000 bytes is longer"):
        converted(path)


def test_big_endian_numbers_are_refused(tmp_path):
    with pytest.raises(BadWeights, match="big-endian"):
        converted(boxed(tmp_path / "old.ckpt", tensor(), more={"a/byteorder": b"big"}))
    system = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, []]
    (tmp_path / "row.ckpt").write_bytes(b"".join(pickle.dumps(each, 2) for each in system))
    with pytest.raises(BadWeights, match="big-endian"):
        converted(tmp_path / "row.ckpt")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, zipped):
    old = tmp_path / "old.ckpt"
    torch.save({"x": torch.arange(8.0), "y": torch.ones(3)}, old, _use_new_zipfile_serialization=zipped)
    data = old.read_bytes()
    for length in range(0, len(data), len(data) // 9):
        old.write_bytes(data[:length])
        with pytest.raises(BadWeights, match="is not converted"):
            converted(old)


def test_a_pickle_that_thinks_for_ever_is_stopped(tmp_path, monkeypatch):
    """Tuples of tuples, each twice in the next: hashing the last takes 2^60 steps."""
    child = tmp_path / "child.py"
    child.write_text(CHILD.read_text().replace("MOST_SECONDS = 10", "MOST_SECONDS = 1"))
    monkeypatch.setattr(pickles, "CHILD", child)
    doubled = b"(K\1tq\0" + b"".join(
        b"0h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60)
    )
    with pytest.raises(BadWeights, match="was stopped \\(SIGXCPU\\)"):
        converted(boxed(tmp_path / "old.ckpt", whole(b"}" + doubled + b"Ns")))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import time; time.sleep(60)", "took too long"),
        ("import os; os.kill(os.getpid(), 11)", "stopped .SIGSEGV"),
        ("print('{}')", "stopped .status 0"),
        ("import sys; sys.stderr.write('x' * 1_000_000)", "stopped"),
        ("import sys; sys.stderr.write('{\"tensors\": 1, \"at\": \"\", \"beside\": []}')", "not a whole safetensors"),
    ],
)  # fmt: skip
def test_what_the_other_process_says_is_not_believed(tmp_path, monkeypatch, script, words):
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(pickles, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(pickles, "PATIENCE", 1)
    torch.save({"x": torch.ones(2)}, tmp_path / "old.ckpt")
    with pytest.raises(BadWeights, match=words):
        converted(tmp_path / "old.ckpt")
    assert not (tmp_path / "new.safetensors").exists() and not list(tmp_path.glob(".*"))


ATTEMPTS = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
import ctypes, socket, subprocess  # there already: the worst case
child.confine(1000, 1000)
tries = {
    "open": lambda: open("/etc/hostname"), "write": lambda: open("canary", "w"),
    "os.open": lambda: os.open("canary", 65), "import": lambda: __import__("antigravity"),
    "socket": lambda: socket.socket(), "run": lambda: subprocess.run(["true"]),
    "system": lambda: os.system("touch canary"), "fork": lambda: os.fork(),
    "exec": lambda: os.execv("/bin/true", ["x"]), "library": lambda: ctypes.CDLL("libc.so.6"),
    "eval": lambda: eval("1"), "remove": lambda: os.remove(sys.argv[1]), "kill": lambda: os.kill(os.getppid(), 9),
    "list": lambda: os.listdir("/"), "rename": lambda: os.rename(sys.argv[1], "canary"),
    "chmod": lambda: os.chmod(sys.argv[1], 0),
}
said = {}
for name, attempt in tries.items():
    try:
        attempt()
        said[name] = "done"
    except BaseException as error:
        said[name] = type(error).__name__
try:
    os.dup(0)  # no audit event tells of it; the system's own limit does
    said["dup"] = "done"
except OSError:
    said["dup"] = "OSError"
try:
    keep = bytearray(500_000_000)
    said["memory"] = "done"
except MemoryError:
    said["memory"] = "MemoryError"
os.write(1, json.dumps(said).encode())
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system's limits are those of Linux")
def test_the_other_process_can_open_start_import_and_connect_to_nothing(tmp_path):
    command = [sys.executable, "-I", "-S", "-c", ATTEMPTS, str(CHILD)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said.pop("dup") == "OSError" and said.pop("memory") == "MemoryError"
    assert said == dict.fromkeys(said, "Refused") and len(said) == 16
    assert not list(tmp_path.iterdir())


def test_the_other_process_knows_the_standard_library_alone():
    code = f"import runpy, sys; runpy.run_path({str(CHILD)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    there = {name.partition(".")[0] for name in done.stdout.split()}
    assert there <= {*sys.stdlib_module_names, "__main__", "encodings"}


def test_nothing_is_unpickled_in_this_process(tmp_path, monkeypatch):
    def never(*_args: object, **_named: object) -> None:
        raise AssertionError("unpickled here")

    torch.save({"x": torch.ones(2)}, tmp_path / "old.ckpt")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    monkeypatch.setattr(torch, "load", never)
    assert converted(tmp_path / "old.ckpt").tensors == 1


def test_one_tensor_among_many_is_found_without_reading_the_others(tmp_path):
    """The runs of a tensor that does not lie in order, one by one."""
    spec = importlib.util.spec_from_file_location("child", CHILD)
    assert spec and spec.loader
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    kind = child.Kind("F32", 4)
    lying = child.Lying(child.Storage("0", kind, 60), 3, (3, 4, 1, 2), (8, 2, 77, 1))
    assert list(child.runs(lying)) == [(3, 24, 1)]
    lying = child.Lying(child.Storage("0", kind, 60), 0, (2, 3), (1, 20))
    assert list(child.runs(lying)) == [(0, 3, 20), (1, 3, 20)]
    assert list(child.runs(child.Lying(child.Storage("0", kind, 1), 0, (), ()))) == [(0, 1, 1)]
    assert list(child.runs(child.Lying(child.Storage("0", kind, 1), 0, (5, 0), (0, 0)))) == []
    assert os.getpid()  # still here: importing the file runs nothing
