"""The training loop: losses fall, and a run that was broken off ends as the one that was not, bit for bit."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.errors import BadInput, BadWeights, LimnerError, NotSaved
from limner.place import find_place
from limner.train.checkpoint import NAME
from limner.train.fit import FitConfig, Logged, Sampled, Saved, fit, learning_rate, optimisers
from limner.weights.io import read_header, read_tensors, write_tensors

SHORT = FitConfig(steps=12, batch=8, lr=1e-2, warmup=3, ema=0.9, log_every=4, save_every=1e9, sample_every=1e9)
PLACE = find_place("cpu", torch.float32)
KINDS = pytest.mark.parametrize("config", [SHORT, replace(SHORT, muon_lr=1e-2)], ids=["adamw", "muon"])


class Net(nn.Module):
    """All that a loop can get wrong: chance, buffers, whole numbers, matrices in blocks, an order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
        self.head = nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.norm(self.conv(x)), 0.1)
        for block in self.blocks:
            y = y + block(y.mean((2, 3)))[:, :, None, None].tanh()
        return self.head(y.mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


def brightness(model: nn.Module, batch: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """Guess the mean of a picture from a noisy copy."""
    noisy = batch + 0.01 * torch.randn(batch.shape, generator=rng)
    return {
        "guess": (model(noisy)[:, 0] - batch.mean((1, 2, 3))).square().mean(),
        "small": model.head.bias.square().sum(),
    }


def pictures(rng: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=rng) * 4 + torch.rand(count, 3, 4, 4, generator=rng)


def start(out: Path, config: FitConfig = SHORT, model: nn.Module | None = None, **more: Any) -> Iterator[Any]:
    return fit(model or net(), more.pop("objective", brightness), pictures, config, out, PLACE, {"net": "test"}, **more)


def state(out: Path) -> dict[str, Tensor]:
    return read_tensors(out / NAME)


def same(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def broken_off(out: Path, config: FitConfig, after: int) -> None:
    """A run that is asked to stop after some steps."""
    asked = iter(range(1, 1000))
    assert not list(start(out, config, stopping=lambda: next(asked) == after))[-1].done


# Learning


@KINDS
def test_the_loss_falls(tmp_path, config):
    events = list(start(tmp_path, replace(config, steps=300, log_every=50)))
    logged = [event for event in events if isinstance(event, Logged)]
    assert [event.step for event in logged] == [50, 100, 150, 200, 250, 300]
    assert logged[-1].losses["guess"] < 0.2 * logged[0].losses["guess"]
    assert set(logged[0].losses) == {"guess", "small"}
    assert all(event.rate > 0 and 0 < event.progress <= 1 for event in logged)


def test_a_run_ends_with_what_it_made(tmp_path):
    model = net()
    last = list(start(tmp_path, model=model))[-1]
    assert isinstance(last, Saved) and last.done and last.step == 12
    saved = state(tmp_path)
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in model.state_dict().items())
    assert all(torch.equal(saved[f"ema.{name}"], value) for name, value in last.ema.items())
    assert saved["ema.norm.num_batches_tracked"] == 12


def test_the_average_lags_behind_the_weights(tmp_path):
    weights = []

    def watching(model, batch, rng):
        weights.append(model.head.bias.detach().clone())
        return brightness(model, batch, rng)

    model = net()
    want = model.head.bias.detach().clone()
    last = list(start(tmp_path, model=model, objective=watching))[-1]
    for step, value in enumerate([*weights[1:], model.head.bias.detach()]):
        keep = min(0.9, (1 + step) / (10 + step))
        want = keep * want + (1 - keep) * value
    torch.testing.assert_close(last.ema["head.bias"], want, rtol=0, atol=1e-6)


def test_samples_and_checkpoints_come_by_the_clock(tmp_path):
    events = list(start(tmp_path, replace(SHORT, sample_every=0.0, save_every=0.0)))
    assert [type(e) for e in events[:3]] == [Sampled, Saved, Sampled]
    assert sum(isinstance(event, Saved) for event in events) == 13
    assert [event.done for event in events if isinstance(event, Saved)].index(True) == 12


def test_a_length_in_time_is_kept(tmp_path):
    last = list(start(tmp_path, replace(SHORT, steps=10**9, seconds=0.2)))[-1]
    assert last.done and 1 < last.step < 10**6


def test_matrices_of_blocks_go_to_muon_and_the_rest_to_adamw():
    model = net()
    made = optimisers(model, replace(SHORT, muon_lr=0.02))
    matrices = [id(p) for group in made["muon"].param_groups for p in group["params"]]
    assert matrices == [id(block.weight) for block in model.blocks]
    rest = [id(p) for group in made["adamw"].param_groups for p in group["params"]]
    assert not set(matrices) & set(rest)
    assert set(matrices) | set(rest) == {id(p) for p in model.parameters() if p.requires_grad}
    assert list(optimisers(model, SHORT)) == ["adamw"]


def test_the_rate_warms_up_stays_and_falls():
    config = FitConfig(warmup=10, decay=0.25)
    assert [learning_rate(0, step, config) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [learning_rate(p, 99, config) for p in (0.5, 0.75, 0.875, 1)] == pytest.approx([1, 1, 0.5, 0])
    cosine = FitConfig(warmup=0, decay=1.0, shape="cosine")
    assert [learning_rate(p, 0, cosine) for p in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])
    assert learning_rate(1.0, 99, FitConfig(warmup=0, decay=0.0)) == 1


# Breaking off and going on


@KINDS
def test_two_runs_are_the_same(tmp_path, config):
    for name in "ab":
        list(start(tmp_path / name, config))
    same(tmp_path / "a", tmp_path / "b")


@KINDS
@pytest.mark.parametrize("after", [1, 5, 11])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, config, after):
    list(start(tmp_path / "whole", config))
    broken_off(tmp_path / "broken", config, after)
    list(start(tmp_path / "broken", config))
    same(tmp_path / "whole", tmp_path / "broken")


@KINDS
def test_a_run_whose_events_were_left_goes_on_as_if_they_had_not_been(tmp_path, config):
    list(start(tmp_path / "whole", config))
    events = start(tmp_path / "broken", config)
    assert next(events).step == 4
    events.close()
    assert state(tmp_path / "broken")["model.norm.num_batches_tracked"] == 4
    list(start(tmp_path / "broken", config))
    same(tmp_path / "whole", tmp_path / "broken")


@KINDS
def test_a_run_may_be_broken_off_after_every_step(tmp_path, config):
    list(start(tmp_path / "whole", config))
    for _ in range(11):
        broken_off(tmp_path / "broken", config, 1)
    list(start(tmp_path / "broken", config))
    same(tmp_path / "whole", tmp_path / "broken")


VICTIM = """
import runpy, sys, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
test = runpy.run_path(sys.argv[1])
config = replace(test["SHORT"], muon_lr=float(sys.argv[3]), save_every=0.0)
for event in test["start"](Path(sys.argv[2]), config):
    print(event.step, flush=True)
"""


@KINDS
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, config):
    list(start(tmp_path / "whole", config))
    words = [sys.executable, "-c", VICTIM, __file__, tmp_path / "broken", config.muon_lr]
    with subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            if int(line) >= 5:
                victim.send_signal(signal.SIGKILL)
                break
    at = state(tmp_path / "broken")["model.norm.num_batches_tracked"]
    assert 5 <= at < 12, "the run was over before it was killed"
    list(start(tmp_path / "broken", config))
    same(tmp_path / "whole", tmp_path / "broken")


def test_a_run_that_is_over_is_over(tmp_path):
    list(start(tmp_path))
    before = state(tmp_path)
    events = list(start(tmp_path))
    assert len(events) == 1 and events[0].done and events[0].step == 12
    assert all(torch.equal(before[name], value) for name, value in state(tmp_path).items())


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    list(start(tmp_path))
    assert list(start(tmp_path, replace(SHORT, steps=15)))[-1].step == 15


def test_time_is_counted_over_all_resumptions(tmp_path):
    broken_off(tmp_path, SHORT, 3)
    first = read_header(tmp_path / NAME).metadata["limner.run"]
    broken_off(tmp_path, SHORT, 1)
    second = read_header(tmp_path / NAME).metadata["limner.run"]
    seconds = [float(note.split('"seconds": ')[1].split(",")[0]) for note in (first, second)]
    assert 0 < seconds[0] < seconds[1]


# What is refused


def test_a_gradient_that_is_not_finite_is_refused_and_touches_nothing(tmp_path):
    model = net()

    def poisoned(model, batch, rng):
        losses = brightness(model, batch, rng)
        return losses | {"guess": losses["guess"] * (float("nan") if model.norm.num_batches_tracked == 6 else 1)}

    events = start(tmp_path, model=model, objective=poisoned)
    with pytest.raises(LimnerError, match=r"the gradient is not finite at step 5 \(losses: guess nan, small"):
        list(events)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not (tmp_path / NAME).exists()  # and no poisoned checkpoint


def test_the_checkpoint_before_is_taken_only_where_the_newest_is_absent(tmp_path):
    broken_off(tmp_path, SHORT, 3)
    broken_off(tmp_path, SHORT, 4)
    assert state(tmp_path)["model.norm.num_batches_tracked"] == 7
    (tmp_path / NAME).unlink()
    broken_off(tmp_path, SHORT, 1)
    assert state(tmp_path)["model.norm.num_batches_tracked"] == 4
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.raises(BadWeights, match=NAME):
        list(start(tmp_path))


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    broken_off(tmp_path, SHORT, 3)
    data = (tmp_path / NAME).read_bytes()
    for damaged in (b"", data[:7], data[: len(data) // 2], data[:-1], data[:20] + b"!" + data[21:]):
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(BadWeights) as caught:
            list(start(tmp_path))
        assert str(tmp_path / NAME) in str(caught.value)


@pytest.mark.parametrize("note", ["{", "[]", "{}", '{"net": "test"}'])
def test_a_checkpoint_with_a_damaged_note_is_refused_by_name(tmp_path, note):
    broken_off(tmp_path, SHORT, 3)
    write_tensors(tmp_path / NAME, state(tmp_path), {"limner.run": note})
    with pytest.raises(BadWeights, match=f"{NAME} is not a checkpoint of a run"):
        list(start(tmp_path))


def test_a_weight_file_is_no_checkpoint(tmp_path):
    write_tensors(tmp_path / NAME, {"x": torch.ones(1)})
    with pytest.raises(BadWeights, match="is a weight file, not a checkpoint"):
        list(start(tmp_path))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    broken_off(tmp_path, SHORT, 3)
    other = net()
    other.head = nn.Linear(4, 2)
    with pytest.raises(BadWeights, match=f"{NAME}: 'model.head.weight'|{NAME}: 'head.weight' has shape"):
        list(start(tmp_path, model=other))
    with pytest.raises(BadInput, match=r"made with another net \(test, not else\)"):
        list(fit(net(), brightness, pictures, SHORT, tmp_path, PLACE, {"net": "else"}))


@pytest.mark.parametrize(("before", "after"), [(0.0, 1e-2), (1e-2, 0.0)])
def test_a_checkpoint_of_other_optimisers_is_refused(tmp_path, before, after):
    broken_off(tmp_path, replace(SHORT, muon_lr=before), 3)
    with pytest.raises(BadWeights, match=NAME):
        list(start(tmp_path, replace(SHORT, muon_lr=after)))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    broken_off(tmp_path, SHORT, 3)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NotSaved, match="No space left on device"):
            broken_off(tmp_path, SHORT, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [NAME, f"previous-{NAME}"]
    list(start(tmp_path / "whole"))
    list(start(tmp_path))
    same(tmp_path, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_fused_blocks_learn_what_plain_ones_do(tmp_path: Path):
    """torch.compile needs a C++ compiler, and a minute."""
    plain = list(start(tmp_path / "plain", SHORT))[-1].ema
    fused = list(start(tmp_path / "fused", replace(SHORT, compile=True)))[-1].ema
    assert all(torch.allclose(plain[name], fused[name], atol=1e-4) for name in plain)
