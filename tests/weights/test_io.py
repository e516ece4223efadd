"""Weight files: whole files come back as they were, anything else is refused by name, and writing is all or nothing."""

import errno
import json
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limner.errors import BadWeights, NotSaved
from limner.weights.io import (
    DTYPES,
    MAX_AXES,
    known_sha256,
    read_header,
    read_tensors,
    release,
    sha256,
    write_tensors,
)

on_one_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=5000)


def tensors() -> dict[str, torch.Tensor]:
    """One of every dtype, an empty one, a scalar, one that is not contiguous."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for name, dtype in DTYPES.items():
        size = 5 * dtype.itemsize
        raw = torch.randint(0, 2 if dtype == torch.bool else 64, (size,), generator=rng, dtype=torch.uint8)
        found[f"of.{name}"] = raw.view(dtype)
    found["empty"] = torch.zeros(0, 3)
    found["scalar"] = torch.tensor(2.5)
    found["turned"] = torch.arange(6.0).view(2, 3).T
    found["ünïcode ☃"] = torch.ones(1)
    return found


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


def forged(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def refused(path: Path, words: str = "") -> None:
    started = time.monotonic()
    with pytest.raises(BadWeights) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert time.monotonic() - started < 5


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "whole.safetensors"
    write_tensors(path, tensors(), {"made by": "a test", "ö": "☃"})
    return path


def test_what_is_written_is_read(whole):
    same(read_tensors(whole), tensors())
    assert read_header(whole).metadata == {"made by": "a test", "ö": "☃"}


def test_the_reference_library_reads_what_is_written(whole):
    same(safetensors.torch.load_file(whole), tensors())


def test_what_the_reference_library_writes_is_read(tmp_path):
    path = tmp_path / "theirs.safetensors"
    wanted = {name: value.contiguous() for name, value in tensors().items()}
    safetensors.torch.save_file(wanted, path, {"format": "pt"})
    same(read_tensors(path), wanted)
    assert read_header(path).metadata == {"format": "pt"}


def test_a_file_without_tensors_is_a_file(tmp_path):
    path = tmp_path / "none.safetensors"
    write_tensors(path, {})
    assert read_tensors(path) == {}


def test_an_unaligned_file_is_read(tmp_path):
    value = torch.arange(3.0)
    header = {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    for pad in range(8):
        path = forged(tmp_path / f"{pad}.safetensors", text + b" " * pad, value.numpy().tobytes())
        same(read_tensors(path), {"x": value})


def test_writing_into_what_was_read_changes_no_file(whole):
    before = sha256(whole)
    for value in read_tensors(whole).values():
        value.zero_()
    assert sha256(whole) == before


def test_the_same_tensors_make_the_same_file(tmp_path, whole):
    again = tmp_path / "again.safetensors"
    write_tensors(again, dict(reversed(tensors().items())), {"made by": "a test", "ö": "☃"})
    assert sha256(again) == sha256(whole)


def test_a_cut_file_is_refused(whole, tmp_path):
    data = whole.read_bytes()
    for length in {*range(40), *range(0, len(data), 97), len(data) - 1}:
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:length])
        refused(cut)


def test_a_file_with_more_at_its_end_is_refused(whole):
    with whole.open("ab") as file:
        file.write(b"\0")
    refused(whole, "speaks of")


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "nowhere.safetensors", "No such file")


def test_a_folder_is_refused(tmp_path):
    refused(tmp_path)


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"weights": [1.0] * 100}))
    refused(path)
    torch.save({"weights": torch.ones(3)}, path)
    refused(path)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


HOSTILE = {
    "not json": b"hello, hello",
    "not utf-8": b'{"\xff\xfe": 1}',
    "a list": [],
    "a number": b"12",
    "a text": b'"ab"',
    "null": b"null",
    "nan": b"NaN",
    "an entry that is a list": {"x": []},
    "an entry that is a number": {"x": 3},
    "an entry that is text": {"x": "F32"},
    "no dtype": {"x": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"x": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"x": {"dtype": "F32", "shape": [2]}},
    "an unknown dtype": {"x": entry("F33")},
    "a dtype that is a list": {"x": entry(["F32"])},
    "a dtype that is null": {"x": entry(None)},
    "a very long dtype": {"x": entry("F" * 100_000)},
    "a negative side": {"x": entry(shape=[-2])},
    "two negative sides": {"x": entry(shape=[-2, -1])},
    "a side that is a fraction": {"x": entry(shape=[2.0])},
    "a side that is true": {"x": entry(shape=[2, True])},
    "a shape that is a text": {"x": entry(shape="")},
    "a shape that is an object": {"x": entry(shape={}, offsets=[0, 4])},
    "a shape that is a number": {"x": entry(shape=2)},
    "a wrong shape": {"x": entry(shape=[3])},
    "a shape of many large sides": {"x": entry(shape=[2**39] * 400)},
    "a shape of very many sides": {"x": entry(shape=[1] * 1_000_000)},
    "an empty shape of more than there is": {"x": entry(shape=[0, 2**39, 2**39], offsets=[0, 0])},
    "a huge number": {"x": entry(shape=[10**4000])},
    "a number too long to read": b'{"x": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 8]}}',
    "an infinite side": {"x": entry(shape=[float("inf")])},
    "a negative offset": {"x": entry(offsets=[-8, 0])},
    "offsets the wrong way round": {"x": entry(offsets=[8, 0])},
    "three offsets": {"x": entry(offsets=[0, 4, 8])},
    "offsets that are text": {"x": entry(offsets=["0", "8"])},
    "offsets that are no list": {"x": entry(offsets=8)},
    "an offset past the end": {"x": entry(shape=[4], offsets=[0, 16])},
    "an overlap": {"x": entry(), "y": entry()},
    "a partial overlap": {"x": entry(shape=[1], offsets=[0, 4]), "y": entry(shape=[2], offsets=[0, 8])},
    "a gap before": {"x": entry(shape=[1], offsets=[4, 8])},
    "a gap between": {"x": entry("U8", [1], [0, 1]), "y": entry("U8", [1], [7, 8])},
    "bytes that nobody owns": {"x": entry(shape=[1], offsets=[0, 4])},
    "a name twice": b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "x": {}}',
    "a field twice": b'{"x": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "metadata that is not text": {"__metadata__": {"a": 1}, "x": entry()},
    "metadata within metadata": {"__metadata__": {"a": {}}, "x": entry()},
    "metadata that is a list": {"__metadata__": ["a"], "x": entry()},
    "metadata that is null": {"__metadata__": None, "x": entry()},
    "very deep brackets": b"[" * 200_000,
    "very deep objects": b'{"a":' * 200_000,
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_hostile_header_is_refused(kind, tmp_path):
    refused(forged(tmp_path / "hostile.safetensors", HOSTILE[kind], bytes(8)))


@pytest.mark.parametrize("length", [0, 1, 9, 2**31, 2**62, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length, tmp_path):
    refused(forged(tmp_path / "long.safetensors", b"{}", length=length), "not a whole safetensors file")


def test_many_names_and_one_twice_are_refused_quickly(tmp_path):
    names = ",".join(f'"{i}":0' for i in range(200_000))
    refused(forged(tmp_path / "many.safetensors", f'{{{names},"199999":0}}'.encode()), "'199999' stands twice")


def test_the_format_may_have_as_many_axes_as_anybody_needs(tmp_path):
    path = tmp_path / "deep.safetensors"
    write_tensors(path, {"x": torch.ones((1,) * MAX_AXES)})
    assert read_tensors(path)["x"].ndim == MAX_AXES


@on_one_file
@given(data=st.data())
def test_a_flipped_byte_gives_a_file_that_is_sound_or_is_refused(data, whole):
    good = whole.read_bytes()
    at = data.draw(st.integers(0, 8 + struct.unpack("<Q", good[:8])[0] - 1))
    broken = whole.with_name("flipped.safetensors")
    broken.write_bytes(good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :])
    try:
        found = read_tensors(broken)
    except BadWeights as error:
        assert str(broken) in str(error)
    else:
        assert len(found) == len(tensors())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*DTYPES]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
almost = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES]) | anything,
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=3) | anything,
        "data_offsets": st.lists(st.integers(-1, 9), min_size=2, max_size=2) | anything,
    }
)


@on_one_file
@given(header=anything | st.dictionaries(st.text(max_size=3), almost | anything, max_size=3))
def test_any_header_gives_a_file_that_is_sound_or_is_refused(header, tmp_path):
    path = forged(tmp_path / "any.safetensors", header, bytes(8))
    try:
        found = read_tensors(path)
    except BadWeights as error:
        assert str(path) in str(error)
    else:
        assert sum(value.numel() * value.element_size() for value in found.values()) == 8


@on_one_file
@given(data=st.binary(max_size=64))
def test_any_bytes_give_a_file_that_is_sound_or_is_refused(data, tmp_path):
    path = tmp_path / "any.safetensors"
    path.write_bytes(data)
    try:
        read_tensors(path)
    except BadWeights as error:
        assert str(path) in str(error)


def left_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("verb", ["fsync", "replace"])
def test_a_full_disk_leaves_no_file_and_no_temporary(verb, tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, verb, full)
    path = tmp_path / "new.safetensors"
    with pytest.raises(NotSaved, match=r"new.safetensors could not be written: No space left on device"):
        write_tensors(path, tensors())
    assert left_in(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_as_it_was(whole, monkeypatch):
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sha256(whole)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotSaved):
        write_tensors(whole, {"other": torch.ones(3)})
    assert sha256(whole) == before
    assert left_in(whole.parent) == [whole.name]


def test_an_interrupted_writing_leaves_no_temporary(tmp_path, monkeypatch):
    def interrupted(_file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "new.safetensors", tensors())
    assert left_in(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotSaved, match=r"out.safetensors could not be written: (File exists|Not a directory)"):
        write_tensors(tmp_path / "file" / "out.safetensors", tensors())


def test_a_dtype_that_no_reader_knows_is_not_written(tmp_path):
    with pytest.raises(NotSaved, match=r"'wave' is torch.complex64"):
        write_tensors(tmp_path / "wave.safetensors", {"wave": torch.zeros(2, dtype=torch.complex64)})
    assert left_in(tmp_path) == []


def test_missing_folders_are_made(tmp_path):
    write_tensors(tmp_path / "a" / "b" / "c.safetensors", {"x": torch.ones(1)})
    assert left_in(tmp_path / "a" / "b") == ["c.safetensors"]


def mapped_kilobytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssFile:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells nothing of its pages")
def test_pages_that_are_released_are_gone_and_come_back(tmp_path):
    before = {"a": torch.arange(2**21, dtype=torch.float32), "b": torch.arange(7.0)}
    write_tensors(tmp_path / "w.safetensors", before)
    found = read_tensors(tmp_path / "w.safetensors")
    found["a"].sum()
    full = mapped_kilobytes()
    assert release(found["a"])
    assert mapped_kilobytes() < full - 7000  # of 8192
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_a_copy_in_memory_is_never_released(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"a": torch.arange(5000.0)})
    found = read_tensors(tmp_path / "w.safetensors")["a"]
    copies = found.clone(), found[None].expand(2, -1).contiguous(), torch.ones(3)
    kept = [copy.clone() for copy in copies]
    assert not any(release(copy) for copy in copies)
    assert all(torch.equal(a, b) for a, b in zip(copies, kept, strict=True))


def test_a_digest_is_computed_once_for_a_file_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, folder = tmp_path / "it.safetensors", tmp_path / "kept" / "here"
    asked = []
    monkeypatch.setattr("limner.weights.io.sha256", lambda path: asked.append(path) or sha256(path))
    path.write_bytes(b"first")
    first = [known_sha256(path, folder) for _ in range(2)]
    assert first == [sha256(path)] * 2 and len(asked) == 1
    about = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert known_sha256(path, folder) == sha256(path) != first[0] and len(asked) == 2
    for kept in folder.iterdir():
        kept.write_bytes(b"\xff torn")
    assert known_sha256(path, folder) == sha256(path) and len(asked) == 3
    (tmp_path / "file").write_text("no folder")
    assert known_sha256(path, tmp_path / "file") == sha256(path)
