"""An engine's graph, rewritten: what is split is computed in parts, and products are in 8 bits.

For 8 bits it is seen in a walk beforehand how large the numbers are that layers read. Weights are int8 with a scale for
each output channel (`small_weight`); what layers read, and the queries and keys of attention, straight from layers or
from norms behind them, are int8 with one scale each, by the largest magnitude that was seen. Greater ones are cut off.
Before, half of what channels differ by is moved from what is read into the weights (SmoothQuant, Xiao et al. 2023,
arXiv 2211.10438, equation 4, by what is read alone, so that layers that read the same round it once). What a layer
gives that reads a few large numbers among many small ones, as behind a gate, would drown in the noise of rounding; such
layers stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from limner.nn.int8 import eligible, small_weight
from limner.nn.norm import RMSNorm

LOW, HIGH = -128, 127
LEAST = 1e-6  # magnitude
PRODUCTS = ("MatMul", "Convolution")  # nodes that may be a layer
SHAPING = ("Reshape", "Transpose", "Convert")  # that leave numbers as they are
SCOPE = "self.net."  # what a tracer sets before the name of a weight
QUIET = 1e-3  # of the loudest channel; quieter ones are taken for that
CLEAR = 33.0  # dB that what a layer gives must stand above the noise of rounding


class Seen(NamedTuple):
    """Of a layer."""

    read: list[float]  # the greatest magnitude of each channel that it reads
    squares: list[float]  # and the mean square
    gave: float  # the greatest magnitude of all that it gives
    power: float  # and the mean square, without its bias


Reach = Mapping[str, Seen]  # by the layer's name


def reach_of(
    net: nn.Module, walk: Callable[[nn.Module], object], lay: Callable[[nn.Module], nn.Module] | None = None
) -> Reach:
    """What layers that can multiply in 8 bits, and norms of queries and keys, read and give while a network walks.

    lay: exchanges layers of the network for others of the same names, with which it walks faster.
    """
    found: dict[str, _Tally] = {}

    def seen(name: str, plain: Any) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        axis = 1 if isinstance(plain, nn.Conv2d) else -1
        bias = 0.0 if getattr(plain, "bias", None) is None else plain.bias.data.float()

        def look(_: nn.Module, read: tuple[Tensor], gave: Tensor) -> None:
            x, y = (each.movedim(axis, -1).flatten(0, -2).float() for each in (read[0], gave))  # N I and N O
            if name not in found:
                found[name] = _Tally(x.shape[1])
            most, given = x.abs().amax(0), y.abs().amax()  # ten times as fast as torch's norms
            found[name].add(most, x.square().mean(0), float(given), float((y - bias).square().mean()))

        return look

    layers = list(net.named_modules())
    looks = {name: seen(name, layer) for name, layer in layers if eligible(name, layer) or isinstance(layer, RMSNorm)}
    net = lay(net) if lay else net
    hooks = [net.get_submodule(name).register_forward_hook(look) for name, look in looks.items()]
    try:
        walk(net)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: tally.seen() for name, tally in found.items()}


class _Tally:
    """Sums of what was seen, in place: small tensors that stay keep large ones from lying where others lay."""

    def __init__(self, channels: int) -> None:
        self.read, self.squares = torch.zeros(channels), torch.zeros(channels)
        self.gave, self.power, self.count = 0.0, 0.0, 0

    def add(self, read: Tensor, squares: Tensor, gave: float, power: float) -> None:
        torch.maximum(self.read, read, out=self.read)
        self.squares += squares
        self.gave, self.power, self.count = max(self.gave, gave), self.power + power, self.count + 1

    def seen(self) -> Seen:
        return Seen(self.read.tolist(), (self.squares / self.count).tolist(), self.gave, self.power / self.count)


def clearness(weight: Tensor, error: Tensor, shares: Tensor, seen: Seen) -> float:
    """dB of what a layer gives above the noise that is in it when what it reads and its weights are rounded.

    weight: O I ..., with the shares of its channels, I, moved into it; error: what rounding changes in it. Numbers that
    are rounded to steps of a size s are wrong by s / sqrt(12).
    """
    step = max(seen.read) / HIGH
    inputs = step**2 / 12 * float(weight.square().sum())
    weights = float((error.transpose(0, 1).flatten(1).square().sum(1) * torch.tensor(seen.squares) / shares**2).sum())
    return 10 * math.log10(max(seen.power * len(weight), 1e-30) / max(inputs + weights, 1e-30))


def in_8_bits(graph: Any, net: nn.Module, reach: Reach) -> Any:
    """The graph itself, whose layers of the network, and attention to what they give, multiply in 8 bits."""
    from openvino import opset13 as op  # type: ignore[import-untyped]

    layers = {node.get_name(): name for node in graph.get_ordered_ops() if (name := _layer(node)) in reach}
    made: dict[tuple[str, int, bytes], Any] = {}

    def rounded(output: Any, most: float, shares: Any) -> Any:
        """To 8 bits after each channel is divided by its share."""
        key = (output.get_node().get_friendly_name(), output.get_index(), shares.tobytes() + np.float32(most).tobytes())
        if key not in made:
            low, high = (np.float32(most * end / HIGH) for end in (LOW, HIGH))
            ends = [op.constant(end) for end in (low * shares, high * shares, low, high)]
            made[key] = op.fake_quantize(output, *ends, HIGH - LOW + 1).output(0)
        return made[key]

    for node in graph.get_ordered_ops():
        if node.get_type_name() in PRODUCTS and node.get_name() in layers:
            name = layers[node.get_name()]
            weight = cast(Tensor, net.get_submodule(name).weight).data.float()
            read = torch.tensor(reach[name].read)
            most = max(float(read.max()), LEAST)
            shares = (read / most).clamp(min=QUIET).sqrt()  # of each channel in the weights
            weight = weight * shares.view(-1, *[1] * (weight.ndim - 2))
            small, scales = small_weight(weight)
            scales = scales.view(-1, *[1] * (weight.ndim - 1))
            if clearness(weight, small * scales - weight, shares, reach[name]) < CLEAR:
                continue
            whole = op.convert(op.constant(small.numpy()), "f32")
            places = shares.view(1, -1, 1, 1) if weight.ndim == 4 else shares
            node.input(0).replace_source_output(rounded(node.input_value(0), most, places.numpy()))
            node.input(1).replace_source_output(op.multiply(whole, op.constant(scales.numpy())).output(0))
        elif node.get_type_name() == "ScaledDotProductAttention":
            for input, names in _from_layers(node, layers):
                most = max(LEAST, *(reach[name].gave for name in names))
                input.replace_source_output(rounded(input.get_source_output(), most, np.ones(1, np.float32)))
    graph.validate_nodes_and_infer_types()
    return graph


def in_parts(graph: Any) -> Any:
    """The graph itself, where a product that is split along its channels, as gates are, becomes a product each.

    The engine copies what it splits, and on the CPU slowly.
    """
    from openvino import opset13 as op

    for split in graph.get_ordered_ops():
        if split.get_type_name() != "VariadicSplit" or not (found := _split_product(split)):
            continue
        product, bias = found
        first = 0
        for output in split.outputs():
            here = slice(first, first + output.get_shape()[-1])
            weight = _cut(product.input_value(1).get_node(), here)
            part = op.matmul(product.input_value(0), weight, False, True).output(0)
            part = part if bias is None else op.add(part, _cut(bias, (..., here))).output(0)
            first = here.stop
            for reader in output.get_target_inputs():
                reader.replace_source_output(part)
    graph.validate_nodes_and_infer_types()
    return graph


def _split_product(split: Any) -> tuple[Any, Any] | None:
    """The linear layer's product, and its bias or None, of which a node splits the channels."""
    axis, above, bias = split.input_value(1).get_node(), split.input_value(0).get_node(), None
    last = len(split.input_value(0).get_shape()) - 1
    if axis.get_type_name() != "Constant" or int(axis.data.item()) not in (-1, last):
        return None
    if above.get_type_name() == "Add" and _cut(above.input_value(1).get_node(), (..., slice(1))) is not None:
        above, bias = above.input_value(0).get_node(), above.input_value(1).get_node()
    plain = above.get_type_name() == "MatMul" and above.get_attributes() == {"transpose_a": False, "transpose_b": True}
    return (above, bias) if plain and _cut(above.input_value(1).get_node(), slice(1)) is not None else None


def _cut(weight: Any, here: Any) -> Any:
    """A part of a weight or bias, whatever it lies in; None for what is not constant."""
    import openvino
    from openvino import opset13 as op

    match weight.get_type_name():
        case "Constant":
            part = np.ascontiguousarray(weight.data[here])  # of bf16 numpy knows the size alone
            tensor = openvino.Tensor(part, part.shape, weight.get_element_type())
            return openvino.op.Constant(tensor, shared_memory=False)
        case "Convert":
            narrow = _cut(weight.input_value(0).get_node(), here)
            return None if narrow is None else op.convert(narrow, "f32")
        case "Multiply":
            parts = [_cut(weight.input_value(i).get_node(), here) for i in (0, 1)]
            return None if None in parts else op.multiply(*parts)
    return None


def _layer(node: Any) -> str:
    """The name of the layer whose product a node is, or of the norm whose last step; "" for all others."""
    kind = node.get_type_name()
    for input in node.inputs() if kind == "Multiply" else node.inputs()[1:] if kind in PRODUCTS else ():
        weight = input.get_source_output().get_node()
        while weight.get_type_name() == "Convert":
            weight = weight.input_value(0).get_node()
        name = str(weight.get_friendly_name())
        if name.startswith(SCOPE) and name.endswith(".weight"):
            return name.removeprefix(SCOPE).removesuffix(".weight")
    return ""


def _from_layers(attention: Any, layers: Mapping[str, str]) -> Iterator[tuple[Any, list[str]]]:
    """Where queries and keys come from layers or norms with nothing between but their shape: who reads them, and the
    names of these."""
    for port in (0, 1):
        input = _unshaped(attention.input(port))
        node = input.get_source_output().get_node()
        joined = node.get_type_name() == "Concat"
        parts = [_unshaped(each).get_source_output().get_node() for each in node.inputs()] if joined else [node]
        names = [layers.get(part.get_name(), "") for part in parts]
        if all(names):
            yield input, names


def _unshaped(input: Any) -> Any:
    """Who reads the same numbers before they were brought into their shape."""
    while (node := input.get_source_output().get_node()).get_type_name() in SHAPING:
        input = node.input(0)
    return input
