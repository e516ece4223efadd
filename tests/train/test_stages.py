"""The four stages end to end in their tiny flavours: what they leave behind is a model that paints."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from limner.cli.train import app, to_seconds
from limner.errors import BadInput, LimnerError, UnknownName
from limner.models.bert import Bert
from limner.pipeline import load
from limner.place import find_place
from limner.recipe import Recipe
from limner.tasks.run import paint
from limner.train import text
from limner.weights.io import read_header, read_tensors, write_tensors


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder like the teacher's: the same network with random weights, and a few word pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("teacher")
    words = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B", [("[CLS]", 1), ("[SEP]", 2)]
    )
    pieces.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    write_tensors(folder / "model.safetensors", Bert(text.TEACHER).state_dict())
    return folder


def train(*words: object) -> None:
    app([str(word) for word in words], result_action="return_value")


@pytest.fixture(scope="module")
def trained(shard, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    common = ("--data", shard, "--out", out, "--config", "tiny", "--base", out)
    train("autoencoder", *common[:6], "--set", "steps=4")
    train("text", *common[:6], "--set", "steps=4", "--set", "batch=4", "--teacher", teacher)
    train("eye", *common, "--set", "steps=4")
    train("eye", "--judge", *common, "--set", "steps=4")
    train("denoiser", *common, "--set", "steps=8")
    return out


def test_a_trained_folder_paints(trained):
    model = load(str(trained), find_place("cpu"))
    assert set(model.nets) == {"autoencoder", "text", "eye", "judge", "denoiser"}
    pictures = paint(model, Recipe(prompt="a cat", steps=2), 2)
    assert pictures.shape == (2, 4, 128, 128) and torch.isfinite(pictures).all()


def test_a_run_leaves_its_log_and_its_sheet(trained):
    rows = [json.loads(line) for line in (trained / "denoiser" / "metrics.jsonl").read_text().splitlines()]
    assert "held-out velocity error" in rows[-1]
    assert list((trained / "denoiser").glob("sheet-*.png")) and list((trained / "autoencoder").glob("sheet-*.png"))


def test_the_judge_is_not_the_eye(trained):
    eye, judge = (read_tensors(trained / f"{net}.safetensors") for net in ("eye", "judge"))
    assert not torch.equal(eye["picture_out.weight"], judge["picture_out.weight"])


def test_an_unknown_setting_names_the_nearest(shard, tmp_path):
    with pytest.raises(UnknownName, match="did you mean steps"):
        train("autoencoder", "--data", shard, "--out", tmp_path, "--set", "stepz=3")


def test_an_unknown_config_names_the_nearest(shard, tmp_path):
    with pytest.raises(UnknownName, match="did you mean tiny"):
        train("autoencoder", "--data", shard, "--out", tmp_path, "--config", "tyni")


def test_another_network_does_not_go_on_from_this_one(trained, shard):
    with pytest.raises(LimnerError, match="take another --out"):
        train(
            "denoiser", "--data", shard, "--out", trained, "--config", "tiny", "--base", trained, "--set", "width=128"
        )


@pytest.mark.parametrize(("said", "seconds"), [("90s", 90), ("40m", 2400), ("2h", 7200), ("1h30m", 5400), ("", 0)])
def test_lengths_of_time(said, seconds):
    assert to_seconds(said) == seconds


def test_a_length_without_a_unit_is_refused():
    with pytest.raises(BadInput, match="90s, 40m"):
        to_seconds("90")


RUN = "import torch, sys; torch.set_num_threads(1); from limner.cli.train import app; app(sys.argv[1:])"


def process(shard, out, steps: int) -> subprocess.Popen:
    words = [
        "autoencoder",
        "--data",
        shard,
        "--out",
        out,
        "--config",
        "tiny",
        "--set",
        f"steps={steps}",
        "--set",
        "save_every=0",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)], stderr=subprocess.DEVNULL, start_new_session=True
    )


def test_a_killed_run_goes_on_as_if_it_had_not_been(shard, tmp_path):
    """kill -9 in the middle, then the same command: the same weights as a run that nobody disturbed, bit for bit."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert process(shard, whole, 40).wait(120) == 0
    started, victim = time.monotonic(), process(shard, broken, 40)
    while not (broken / "autoencoder" / "checkpoint.safetensors").exists() and time.monotonic() - started < 100:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (broken / "autoencoder.safetensors").exists(), "the run was over before it was killed"
    assert process(shard, broken, 40).wait(120) == 0
    a, b = (read_tensors(out / "autoencoder" / "checkpoint.safetensors") for out in (whole, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_ctrl_c_saves_and_says_how_to_go_on(shard, tmp_path):
    run = process(shard, tmp_path, 100_000)
    started = time.monotonic()
    while not (tmp_path / "autoencoder" / "metrics.jsonl").exists() and time.monotonic() - started < 100:
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    note = json.loads(read_header(tmp_path / "autoencoder" / "checkpoint.safetensors").metadata["limner.run"])
    assert note["step"] > 0 and not note["done"]
