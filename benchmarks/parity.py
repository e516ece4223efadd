"""Every published network at its published size, on random weights, against diffusers and transformers.

    python benchmarks/parity.py [--only NAME] [--t5] [--tiny] [--json FILE]

The references are built from the published configs on the meta device; ours from what their names and shapes say of
them. Then both are given the same tensors, so that memory holds the weights once, and asked the same in fp32. What
they answer is compared by the largest difference over the largest value. T5-XXL takes 19 GB and is asked for by name.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from limner.families import Kind
from limner.families.nets import CLIP, MMDIT, T5, UNET, VAE
from limner.types import Cond
from limner.weights.layout import reshaped, translate

Answers = tuple[list[Tensor], list[Tensor]]  # ours, theirs, in the same order
LATENT = (32, 24)  # h w; sides that differ, so that none can stand for the other
WORDS = 77  # word pieces of a prompt
CLOCK = 871.25  # a time between two stations
END = 49407  # the end token of CLIP


def unet(cross: int, heads: int | list[int], **more: Any) -> dict[str, Any]:
    """The published config of a UNet, where diffusers' own defaults do not say the same."""
    return {"sample_size": 64, "cross_attention_dim": cross, "attention_head_dim": heads, **more}


def clip(width: int, layers: int, act: str) -> dict[str, Any]:
    """The published config of a text tower; heads are 64 wide, what lies between layers is four times as wide."""
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "projection_dim": width,
        "num_attention_heads": width // 64, "hidden_act": act, "bos_token_id": END - 1, "eos_token_id": END,
        "pad_token_id": END,
    }  # fmt: skip


def vae(channels: int, **more: Any) -> dict[str, Any]:
    return {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, **more,
    }  # fmt: skip


XL = {
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
}  # fmt: skip
MEDIUM = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)), "num_layers": 24, "num_attention_heads": 24,
    "caption_projection_dim": 1536,
}  # fmt: skip
XXL = {
    "vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A published network, the reference for it, and how both are asked."""

    name: str
    kind: Kind
    naming: str  # of the reference's weights in memory
    reference: Callable[[dict[str, Any]], nn.Module]
    published: Mapping[str, Any]
    ask: Callable[[Any, Any, torch.Generator], Answers]
    tiny: Mapping[str, Any] = field(default_factory=dict)  # what a smoke run changes


@torch.no_grad()
def ask_unet(ours: Any, theirs: Any, rng: torch.Generator) -> Answers:
    config = ours.config
    x = torch.randn(1, config.channels, *LATENT, generator=rng)
    words, t = torch.randn(1, WORDS, config.context, generator=rng), torch.tensor([CLOCK])
    if not config.vector:
        return [ours(x, t, Cond(words))], [theirs(x, t, words).sample]
    pooled = torch.randn(1, config.vector - 6 * 256, generator=rng)
    sizes = torch.tensor([[1024.0, 768.0, 0.0, 64.0, 1024.0, 768.0]])
    beside = {"text_embeds": pooled, "time_ids": sizes}
    return [ours(x, t, Cond(words, pooled, sizes=sizes))], [theirs(x, t, words, added_cond_kwargs=beside).sample]


@torch.no_grad()
def ask_vae(ours: Any, theirs: Any, rng: torch.Generator) -> Answers:
    picture = torch.rand(1, 3, 4 * LATENT[0], 8 * LATENT[1], generator=rng) * 2 - 1
    latent = torch.randn(1, ours.config.channels, LATENT[0] // 2, LATENT[1], generator=rng)
    spread = theirs.encode(picture).latent_dist
    return [*ours.encode(picture), ours.decode(latent)], [spread.mean, spread.logvar, theirs.decode(latent).sample]


@torch.no_grad()
def ask_clip(ours: Any, theirs: Any, rng: torch.Generator) -> Answers:
    """The states under the last layer, the last ones normed, and the pooled vector."""
    ids = torch.randint(0, END - 1, (2, WORDS), generator=rng)
    ids[:, 0], ids[0, 9:], ids[1, 40:] = END - 1, END, END
    ends, vectors, layers = (ids == END).int().argmax(1), ours.embed(ids), ours.config.layers
    below, _ = ours(vectors, ends, layers - 1)
    last, pooled = ours(vectors, ends, layers)
    said = theirs(ids, output_hidden_states=True)
    want = said.text_embeds if ours.config.projection else said.pooler_output
    return [below, ours.norm(last), pooled], [said.hidden_states[layers - 1], said.last_hidden_state, want]


@torch.no_grad()
def ask_mmdit(ours: Any, theirs: Any, rng: torch.Generator) -> Answers:
    config = ours.config
    x = torch.randn(1, config.channels, *LATENT, generator=rng)
    words = torch.randn(1, 2 * WORDS, config.context, generator=rng)
    pooled, t = torch.randn(1, config.pooled, generator=rng), torch.tensor([CLOCK])
    return [ours(x, t, Cond(words, pooled))], [theirs(x, words, pooled, t).sample]


@torch.no_grad()
def ask_t5(ours: Any, theirs: Any, rng: torch.Generator) -> Answers:
    ids = torch.randint(1, ours.config.vocabulary, (1, 2 * WORDS), generator=rng)
    return [ours(ids)], [theirs(ids).last_hidden_state]


def tower(name: str, published: dict[str, Any], projected: bool) -> Case:
    """CLIP-L is used without its projection, as a class of its own, and transformers 5 calls its weights otherwise."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    naming = "transformers" if projected else "transformers, bare"
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Case(name, CLIP, naming, lambda config: kind(CLIPTextConfig(**config)), published, ask_clip, small)


SMALL = {"block_out_channels": (64, 64, 128, 128), "layers_per_block": 1, "cross_attention_dim": 64}
SMALL_XL = {
    "block_out_channels": (64, 64, 128), "layers_per_block": 1, "cross_attention_dim": 64,
    "attention_head_dim": [1, 1, 2], "transformer_layers_per_block": [1, 1, 2],
}  # fmt: skip
SMALL_VAE = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
SMALL_MMDIT = {
    "num_layers": 3, "num_attention_heads": 2, "caption_projection_dim": 128, "joint_attention_dim": 64,
    "dual_attention_layers": (0, 1), "pos_embed_max_size": 32, "pooled_projection_dim": 64,
}  # fmt: skip
SMALL_T5 = {"vocab_size": 99, "d_model": 64, "d_ff": 96, "num_layers": 2, "num_heads": 2}

CASES = [
    Case("sd15 UNet", UNET, "diffusers", lambda c: UNet2DConditionModel(**c), unet(768, 8), ask_unet, SMALL),
    Case("sd15 autoencoder", VAE, "diffusers", lambda c: AutoencoderKL(**c), vae(4), ask_vae, SMALL_VAE),
    tower("sd15 CLIP ViT-L/14", clip(768, 12, "quick_gelu"), projected=False),
    Case(
        "sd2 UNet", UNET, "diffusers", lambda c: UNet2DConditionModel(**c),
        unet(1024, [5, 10, 20, 20], use_linear_projection=True), ask_unet,
        {**SMALL, "attention_head_dim": [1, 1, 2, 2]},
    ),
    tower("sd2 OpenCLIP ViT-H/14", clip(1024, 24, "gelu"), projected=True),
    Case(
        "sdxl UNet", UNET, "diffusers", lambda c: UNet2DConditionModel(**c),
        unet(2048, [5, 10, 20], projection_class_embeddings_input_dim=2816, **XL), ask_unet, SMALL_XL,
    ),
    tower("sdxl OpenCLIP ViT-bigG/14", clip(1280, 32, "gelu"), projected=True),
    Case("sd35-medium MMDiT", MMDIT, "diffusers", lambda c: SD3Transformer2DModel(**c), MEDIUM, ask_mmdit, SMALL_MMDIT),
    Case(
        "sd35 autoencoder", VAE, "diffusers", lambda c: AutoencoderKL(**c),
        vae(16, use_quant_conv=False, use_post_quant_conv=False), ask_vae, SMALL_VAE,
    ),
    Case("T5-XXL", T5, "transformers", lambda c: T5EncoderModel(T5Config(**c)), XXL, ask_t5, SMALL_T5),
]  # fmt: skip


@torch.no_grad()
def drawn(names: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """Normal weights that keep the size of signals; norms and biases too are drawn, that none passes for being 1 or 0.

    T5 does not divide its products by the root of a head's width, so its queries start smaller, as in its own training.
    """
    made = {}
    for name, shape in ((name, tuple(value.shape)) for name, value in names.items()):
        value = torch.randn(shape, generator=rng)
        if len(shape) == 1:
            norm = name.endswith("weight") and ("norm" in name or "layers.0" in name or "out.0" in name)
            made[name] = value.mul_(0.1).add_(float(norm))
            continue
        table = any(word in name for word in ("embedding", "pos_embed", "shared"))
        fan = 1 if table else value[0].numel() * (64 if name.endswith("SelfAttention.q.weight") else 1)
        made[name] = value.mul_(fan**-0.5)
    return made


def on_meta(build: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return build(config).eval()


def both(case: Case, tiny: bool, seed: int = 0) -> tuple[Any, Any]:
    """Ours and theirs on one set of tensors; refuses unless the names and shapes of both come out even."""
    theirs = on_meta(case.reference, {**case.published, **(case.tiny if tiny else {})})
    wanted = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    naming = case.kind.naming(case.naming)
    shapes = reshaped(wanted, naming.reads(wanted), where=case.name)
    config = case.kind.config_of(shapes, "{}")
    if "hidden_act" in case.published:  # no shape tells the activation; a family's page does
        config = replace(config, quick=case.published["hidden_act"] == "quick_gelu")
    ours = on_meta(case.kind.build, config)
    if shapes != (have := {name: tuple(value.shape) for name, value in ours.state_dict().items()}):
        raise SystemExit(f"{case.name}: {sorted(shapes.items() ^ have.items())[:3]} are not on both sides")
    weights = drawn(ours.state_dict(), torch.Generator().manual_seed(seed))
    back = translate(weights, naming.writes(ours.config), back=True, where=case.name)
    if "shared.weight" in back:
        back["encoder.embed_tokens.weight"] = back["shared.weight"]  # T5's embedding under its second name
    ours.load_state_dict(weights, assign=True)
    theirs.load_state_dict(back, assign=True)
    for module in theirs.modules():  # not among the weights, and left on the meta device
        if isinstance(getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(WORDS)[None]
    return ours, theirs


def measure(case: Case, tiny: bool) -> dict[str, Any]:
    started = time.perf_counter()
    ours, theirs = both(case, tiny)
    found, want = case.ask(ours, theirs, torch.Generator().manual_seed(1))
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, want, strict=True)]
    return {
        "name": case.name,
        "parameters": sum(value.numel() for value in ours.state_dict().values()),
        "tensors": len(ours.state_dict()),
        "error": max(errors),
        "deviation": min(float(value.std()) for value in want),
        "seconds": time.perf_counter() - started,
    }


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="networks whose name has this in it")
    parser.add_argument("--t5", action="store_true", help="T5-XXL too: 19 GB")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same kinds, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args(words)
    cases = [case for case in CASES if (asked.only or "").lower() in case.name.lower()]
    cases = [case for case in cases if case.kind is not T5 or asked.t5 or asked.tiny]
    if not cases:
        raise SystemExit(f"{asked.only!r} is none of {', '.join(case.name for case in CASES)} (T5-XXL wants --t5)")
    rows = []
    print(f"{'network':26} {'parameters':>14} {'tensors':>8} {'error':>9} {'least std':>10} {'seconds':>8}")
    for case in cases:
        row = measure(case, asked.tiny)
        rows.append(row)
        print(
            f"{row['name']:26} {row['parameters']:14,} {row['tensors']:8} {row['error']:9.1e} "
            f"{row['deviation']:10.2f} {row['seconds']:8.1f}",
            flush=True,
        )
        gc.collect()
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
