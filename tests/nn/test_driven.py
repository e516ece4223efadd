"""Denoisers driven by OpenVINO: they answer as the network inside, for every form of what is told, and keep graphs."""

import gc
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import tiny_net
from torch import Tensor, nn

from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.nn import driven, forms, graph
from limner.nn.driven import Driven
from limner.nn.forms import filled, flattened, rebuilt
from limner.nn.fused import GatedLinear
from limner.nn.int8 import eligible, small_weight
from limner.nn.packed import PackedLinear, packed
from limner.place import Place
from limner.types import Cond

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")

TINY = MiniTransformerConfig(channels=4, width=32, depth=4, heads=2, hidden=48, text=12, styles=3)


def mini() -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, Tensor, Cond]]]:
    torch.manual_seed(0)
    net = MiniTransformer(TINY)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    def case(rows: int, words: int) -> tuple[Tensor, Tensor, Cond]:
        rng = torch.Generator().manual_seed(rows + words)
        mask = torch.arange(words)[None] < torch.arange(1, rows + 1)[:, None]
        told = Cond(torch.randn(rows, words, 12, generator=rng), torch.randn(rows, 12, generator=rng), mask)
        told = replace(told, style=torch.arange(rows) % 4)
        return torch.randn(rows, 4, 8, 6, generator=rng), torch.rand(rows, generator=rng), told

    return net.eval().requires_grad_(False), case


def unet() -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, Tensor, Cond]]]:
    small = {"multiples": (1, 2), "depths": (0, 1), "middle": 1}  # an engine takes its time for each layer
    net = tiny_net("sdxl", "denoiser", **small).eval().requires_grad_(False)

    def case(rows: int, words: int) -> tuple[Tensor, Tensor, Cond]:
        rng = torch.Generator().manual_seed(rows + words)
        config = net.config
        told = Cond(torch.randn(rows, words, config.context, generator=rng))
        sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]] * rows)
        told = replace(told, pooled=torch.randn(rows, config.vector - 6 * 256, generator=rng), sizes=sizes)
        return torch.randn(rows, 4, 8, 8, generator=rng), torch.full((rows,), 500.0), told

    return net, case


def mmdit() -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, Tensor, Cond]]]:
    net = tiny_net("sd35", "denoiser").eval().requires_grad_(False)

    def case(rows: int, words: int) -> tuple[Tensor, Tensor, Cond]:
        rng = torch.Generator().manual_seed(rows + words)
        told = Cond(torch.randn(rows, words, net.config.context, generator=rng))
        told = replace(told, pooled=torch.randn(rows, net.config.pooled, generator=rng))
        return torch.randn(rows, net.config.channels, 8, 8, generator=rng), torch.full((rows,), 500.0), told

    return net, case


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def once(net: nn.Module, folder: Path | None = None) -> Driven:
    return Driven(net, torch.float32, lambda: "these", folder)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("made", "wishes"),
    [
        (mini, {}),
        (mini, {"perturbed": True}),
        (unet, {}),
        (unet, {"perturbed": True}),
        (unet, {"few": 2}),
        (mmdit, {"skip": (1,)}),
    ],
    ids=["mini", "mini perturbed", "unet", "unet perturbed", "unet few", "mmdit skipping"],
)
def test_it_answers_as_the_network(made, wishes):
    net, case = made()
    both = once(net)
    for rows, words in ((1, 5), (2, 5)):
        told = case(rows, words)
        assert apart(both(*told, **wishes), net(*told, **wishes)) < 2e-5


@torch.inference_mode()
def test_a_picture_whose_sides_are_no_doubles_is_enlarged_as_it_was():
    net, case = unet()
    x, t, cond = case(1, 5)
    x = torch.randn(1, 4, 7, 9)
    for narrow in (net, deepcopy(net).half()):
        assert apart(once(narrow)(x, t, cond), deepcopy(narrow).float()(x, t, cond)) < 2e-5


@torch.inference_mode()
def test_what_is_told_besides_reaches_the_network():
    """What a ControlNet adds, an adapter's hints, picture prompts, a picture beside the latents, a guidance inside."""
    net, case = unet()
    x, t, cond = case(1, 5)
    kept: list[Tensor] = []
    hooks = [step[-1].register_forward_hook(lambda _, __, gave: kept.append(gave)) for step in net.input_blocks]
    net(x, t, cond)
    for hook in hooks:
        hook.remove()
    plain = net(x, t, cond)
    control = (*map(torch.randn_like, kept), torch.randn_like(kept[-1]))
    hints = tuple(torch.randn_like(kept[i]) for i in net.ends)
    layers = [layer for name, layer in net.named_modules() if name.endswith("attn2")]
    seen = tuple(torch.randn(1, 3, layer.to_q.out_features) for layer in layers for _ in "kv")
    for told in (replace(cond, control=control), replace(cond, hints=hints), replace(cond, seen=(seen,))):
        want = net(x, t, told)
        assert apart(once(net)(x, t, told), want) < 2e-5 < apart(want, plain)
    inside = tiny_net("sd15", "denoiser", channels=5, guidance=32).eval().requires_grad_(False)
    cond = Cond(cond.tokens[..., : inside.config.context], image=torch.randn(1, 1, 8, 8), guidance=torch.tensor([7.0]))
    assert apart(once(inside)(x, t, cond), inside(x, t, cond)) < 2e-5


@torch.inference_mode()
@pytest.mark.parametrize("made", [mini, unet], ids=["mini", "unet"])
def test_what_deep_layers_gave_is_carried_over(made):
    net, case = made()
    x, t, cond = case(1, 5)
    cond, both, gave = filled(cond), once(net), []

    def remember(inner: Callable[[], Tensor]) -> Tensor:
        gave.append(inner())
        return gave[-1]

    assert apart(both(x, t, cond, deep=remember), net(x, t, cond)) < 2e-5
    other = x + 0.1
    want = net(other, t, cond, deep=lambda _: gave[0])
    assert apart(both(other, t, cond, deep=lambda _: gave[0]), want) < 2e-5
    assert apart(want, net(other, t, cond)) > 1e-4


@torch.inference_mode()
def test_who_waits_for_the_graph_of_a_large_network_is_told(monkeypatch):
    net, case = mini()
    monkeypatch.setattr(forms, "LARGE", 1)
    with pytest.warns(UserWarning, match="a graph is made of the network, for pictures of this form"):
        once(net)(*case(1, 5))


@torch.inference_mode()
def test_a_graph_serves_every_number_of_its_form_and_prompts_of_most_lengths(monkeypatch):
    net, case = mini()
    traced = []
    monkeypatch.setattr(driven, "_graph", lambda *told, graph=driven._graph: traced.append(1) or graph(*told))
    both = once(net)
    for words in (3, 9, 16):
        x, t, cond = case(1, words)
        assert apart(both(x, t, cond), net(x, t, cond)) < 2e-5
        assert apart(both(x * 2, 1 - t, cond), net(x * 2, 1 - t, cond)) < 2e-5
    assert len(traced) == 1
    both(*case(1, 17))
    assert len(traced) == 2


@torch.inference_mode()
def test_the_graph_that_was_asked_longest_ago_goes(monkeypatch):
    net, case = mini()
    monkeypatch.setattr(forms, "MOST", 2)
    traced = []
    monkeypatch.setattr(driven, "_graph", lambda *told, graph=driven._graph: traced.append(1) or graph(*told))
    both = once(net)
    for rows, made in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        both(*case(rows, 5))
        assert len(traced) == made


@torch.inference_mode()
def test_the_network_is_traced_in_fp32_whatever_surrounds_it():
    """Text states may come in bf16; the engine alone decides in what it multiplies."""
    net, case = mini()
    x, t, cond = case(1, 5)
    narrow = replace(cond, tokens=cond.tokens.bfloat16(), pooled=cond.pooled.bfloat16())
    wide = replace(cond, tokens=narrow.tokens.float(), pooled=narrow.pooled.float())
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):  # the engine rounds to bf16 between layers, too
        alone = Driven(net, dtype, lambda: "these")(x, t, wide)
        assert apart(alone, net(x, t, wide)) < near
        with torch.autocast("cpu", torch.bfloat16):
            found = Driven(net, dtype, lambda: "these")(x, t, narrow)
        assert found.dtype == torch.float32 and torch.equal(found, alone)


@torch.inference_mode()
def test_graphs_are_kept_by_their_weights_and_read_again(tmp_path, monkeypatch):
    net, case = mini()
    want = once(net, tmp_path / "graphs")(*case(1, 5))
    (kept,) = (tmp_path / "graphs").iterdir()
    assert {file.name for file in kept.iterdir()} == {"graph.xml", "graph.bin"}
    with monkeypatch.context() as patch:
        patch.setattr(driven, "_graph", None)
        assert torch.equal(once(net, tmp_path / "graphs")(*case(1, 5)), want)
    Driven(net, torch.float32, lambda: "others", tmp_path / "graphs")(*case(1, 5))
    assert len(list((tmp_path / "graphs").iterdir())) == 2


@torch.inference_mode()
def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path):
    net, case = mini()
    (tmp_path / "graphs").write_text("a file")
    assert once(net, tmp_path / "graphs")(*case(1, 5)).isfinite().all()


def test_nothing_is_reported_to_anybody():
    """Left to itself the package tells a server that it was imported."""
    code = "import sys; from limner.nn import driven; driven._openvino(); import openvino.frontend.pytorch.ts_decoder; "
    code += "print(sorted(m for m in sys.modules if 'telemetry' in m and sys.modules[m] and 'tools' not in m))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def test_a_signal_is_heard_after_networks_have_gone():
    """With AMX the engine puts the stack of signals elsewhere, and there it must stay."""
    code = """if True:
        import signal
        import torch
        from tests.nn.test_driven import Driven, mini
        net, case = mini()
        with torch.inference_mode():
            first, second = (Driven(net, torch.bfloat16, lambda: "these") for _ in range(2))
            first(*case(1, 5)), second(*case(1, 5))
            del first
            del second
        signal.signal(signal.SIGINT, lambda *_: print("heard"))
        signal.raise_signal(signal.SIGINT)
    """
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "heard\n"), child.stderr[-500:]


def test_conditions_are_taken_apart_and_laid_together():
    x = iter(range(100))
    draw = lambda: torch.full((1, 2, 3), float(next(x)))  # noqa: E731
    cond = Cond(draw(), mask=torch.ones(1, 2, dtype=torch.bool), control=(draw(), draw()), seen=((draw(), draw()),))
    tensors, form = flattened(cond)
    assert len(tensors) == 6 and hash(form) is not None
    again = Cond(*rebuilt(form, iter(tensors)))
    assert all(a is b for a, b in zip(flattened(again)[0], tensors, strict=True))
    assert again.pooled is None and len(again.seen[0]) == 2
    assert filled(cond).tokens.shape[1] == 16 and filled(replace(cond, mask=None)).tokens is cond.tokens
    with pytest.raises(TypeError, match="a str holds no tensors"):
        flattened("x")


def in_small(
    net: nn.Module, case: Callable[[int, int], tuple[Tensor, Tensor, Cond]], folder: Path | None = None, way: str = "so"
) -> Driven:
    small = Driven(net, torch.float32, lambda: "these", folder, int8=True)
    small.rehearsal = (lambda each: [each(*case(rows, 5)) for rows in (1, 2)], way)
    return small


@torch.inference_mode()
@pytest.mark.parametrize("made", [unet, mmdit, mini], ids=["unet", "mmdit", "mini"])
def test_in_8_bits_it_answers_nearly_as_the_network(made):
    """Layers read numbers of 8 bits, whose steps are the largest magnitude of a rehearsal over 127."""
    net, case = made()
    small = in_small(net, case)
    for rows in (1, 2):
        told = case(rows, 5)
        found, want = small(*told), net(*told)
        assert found.shape == want.shape
        assert 1e-5 < (found - want).norm() / want.norm() < 0.1


@torch.inference_mode()
def test_a_graph_in_8_bits_has_small_weights_and_rounds_what_is_read():
    net, case = unet()
    graphs = []
    small = in_small(net, case)
    keep = driven.in_8_bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driven, "in_8_bits", lambda *told: graphs.append(keep(*told)) or graphs[0])
        patch.setattr(graph, "CLEAR", 0.0)  # all of them
        small(*case(1, 5))
    nodes = list(graphs[0].get_ops())
    reach = small._reach
    assert reach.keys() == {name for name, layer in net.named_modules() if eligible(name, layer)}
    products = [node for node in nodes if node.get_type_name() in ("MatMul", "Convolution")]
    rounded = [node for node in products if node.input_value(0).get_node().get_type_name() == "FakeQuantize"]
    gates = sum(isinstance(layer, GatedLinear) for layer in net.modules())  # whose halves are a product each
    assert len(rounded) == len(reach) + gates < len(products)
    assert not any(node.get_type_name() == "VariadicSplit" for node in nodes)
    small_ones = [node for node in nodes if node.get_type_name() == "Constant" and node.data.dtype == np.int8]
    assert len(small_ones) == len(reach) + gates


@torch.inference_mode()
@pytest.mark.parametrize("made", [unet, mmdit], ids=["unet", "mmdit"])
def test_attention_reads_queries_and_keys_in_8_bits_from_layers_and_from_norms(made):
    net, case = made()
    graphs = []
    keep = driven.in_8_bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driven, "in_8_bits", lambda *told: graphs.append(keep(*told)) or graphs[0])
        in_small(net, case)(*case(1, 5))
    attentions = [node for node in graphs[0].get_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    assert attentions
    for node, port in product(attentions, (0, 1)):
        above = node.input_value(port).get_node()
        while above.get_type_name() in graph.SHAPING:
            above = above.input_value(0).get_node()
        assert above.get_type_name() == "FakeQuantize"


@torch.inference_mode()
@pytest.mark.parametrize("made", [unet, mmdit], ids=["unet", "mmdit"])
def test_a_rehearsal_with_packed_weights_shows_the_same_numbers(made):
    net, case = made()
    place = Place(torch.device("cpu"), torch.bfloat16, "")
    walk = lambda each: [each(*case(rows, 5)) for rows in (1, 2)]  # noqa: E731
    lay = lambda each: place.settle(packed(each, place.dtype, lambda _: None))  # noqa: E731
    with place.autocast():
        found = graph.reach_of(other := deepcopy(net), walk, lay)
    want = graph.reach_of(net, walk)
    assert found.keys() == want.keys() and any(isinstance(layer, PackedLinear) for layer in other.modules())
    for name in want:
        assert found[name].gave == pytest.approx(want[name].gave, rel=0.05)
        assert found[name].power == pytest.approx(want[name].power, rel=0.05)
        assert max(found[name].read) == pytest.approx(max(want[name].read), rel=0.05)


class Tails(nn.Module):
    """Two layers; what the second reads has few large numbers among many small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.tailed = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.tailed((self.plain(x) + t + cond.tokens.mean()) ** 3)


def tails() -> tuple[nn.Module, Callable[[int, int], tuple[Tensor, Tensor, Cond]]]:
    torch.manual_seed(0)

    def case(rows: int, words: int) -> tuple[Tensor, Tensor, Cond]:
        rng = torch.Generator().manual_seed(rows + words)
        x = torch.randn(rows, 300, 64, generator=rng)
        return x, torch.zeros(1), Cond(torch.randn(rows, words, 8, generator=rng))

    return Tails().eval().requires_grad_(False), case


@torch.inference_mode()
def test_a_layer_that_would_drown_in_noise_stays_as_it_is(monkeypatch):
    net, case = tails()

    def apart_and_small() -> tuple[float, int]:
        small, graphs = in_small(net, case), []
        keep = driven.in_8_bits
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driven, "in_8_bits", lambda *told: graphs.append(keep(*told)) or graphs[0])
            found = small(*case(1, 5))
        nodes = list(graphs[0].get_ops())
        return apart(found, net(*case(1, 5))), sum(node.get_type_name() == "FakeQuantize" for node in nodes)

    some, count = apart_and_small()
    monkeypatch.setattr(graph, "CLEAR", 0.0)
    every, both = apart_and_small()
    assert (count, both) == (1, 2) and some < 0.7 * every, (some, every)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["linear", "3x3"])
@pytest.mark.parametrize("tail", [1, 3])
def test_how_clear_an_answer_stays_is_foreseen(kind, tail):
    """Against the noise that rounding really makes, which is less where many numbers are far below a step."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 96) if kind == "linear" else nn.Conv2d(64, 96, 3, padding=1)
    x = torch.randn(4, 400, 64) ** tail if kind == "linear" else torch.randn(4, 64, 20, 20) ** tail
    net = nn.Sequential(layer)
    (seen,) = graph.reach_of(net, lambda each: each(x)).values()
    small, scales = small_weight(layer.weight.data)
    rounded = small * scales.view(-1, *[1] * (small.ndim - 1))
    step = max(seen.read) / 127
    layer.bias.zero_()
    want = layer(x)
    told = graph.clearness(layer.weight.data, rounded - layer.weight.data, torch.ones(64), seen)
    layer.weight.copy_(rounded)
    noise = layer((x / step).round() * step) - want
    really = 10 * float(torch.log10(want.square().mean() / noise.square().mean()))
    assert told - 0.5 < really < told + (0.5 if tail == 1 else 3)


@torch.inference_mode()
def test_what_a_rehearsal_showed_is_kept_with_the_graphs(tmp_path):
    net, case = unet()
    first = in_small(net, case, tmp_path)
    want = first(*case(1, 5))
    assert sorted(file.name for folder in tmp_path.iterdir() for file in folder.iterdir()) == [
        "graph.bin", "graph.xml", "reach.json",
    ]  # fmt: skip
    again = Driven(net, torch.float32, lambda: "these", tmp_path, int8=True)
    again.rehearsal = (lambda _: pytest.fail("it was rehearsed before"), "so")
    assert torch.equal(again(*case(1, 5)), want)
    assert again._reach == first._reach
    in_small(net, case, tmp_path, "otherwise")(*case(1, 5))
    assert len(list(tmp_path.iterdir())) == 4  # another way shows other numbers
    with pytest.raises(ValueError, match="must be rehearsed"):
        Driven(net, torch.float32, lambda: "others", tmp_path, int8=True)(*case(1, 5))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("made", [mini, unet, mmdit], ids=["mini", "unet", "mmdit"])
def test_weights_go_into_the_graph_as_they_lie_in_their_file(made, dtype, monkeypatch):
    net, case = made()
    narrow = deepcopy(net).to(dtype)
    want = deepcopy(narrow).float()(*case(2, 5))
    graphs = []
    monkeypatch.setattr(driven, "_graph", lambda *told, graph=driven._graph: graphs.append(graph(*told)) or graphs[-1])
    assert apart(once(narrow)(*case(2, 5)), want) < 2e-5
    assert {value.dtype for value in narrow.parameters()} == {dtype}
    constants = [node for node in graphs[0].get_ops() if node.get_type_name() == "Constant"]
    sizes = {False: 0, True: 0}
    for node in constants:
        sizes[node.get_element_type().size < 4] += node.get_byte_size()
    assert sizes[True] > 3 * sizes[False], sizes  # folded convolutions are sums, in fp32


def test_a_network_is_held_no_longer_than_it_is_traced(monkeypatch):
    net, case = mini()
    held = []

    def read(each: Driven, own: Callable[[Driven], nn.Module] = Driven._read) -> nn.Module:
        mine = own(each)
        held.append(weakref.ref(mine))
        return mine

    monkeypatch.setattr(Driven, "_read", read)
    both = once(net)
    assert held == [] and not list(both.parameters())
    with torch.inference_mode():
        both(*case(1, 5))
        gc.collect()
        assert [each() for each in held] == [None]
        both(*case(1, 5))
        assert len(held) == 1
        both(*case(2, 5))
        assert len(held) == 2
