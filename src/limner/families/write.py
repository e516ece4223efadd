"""Checkpoints written as other programs read them: one file with the original names, or diffusers' folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from limner.diffusion.path import Discrete, Straight
from limner.errors import BadInput, NotSaved, UnknownName
from limner.families import Family, Tower
from limner.families.recognise import Checkpoint, Part
from limner.models.text.clip_pieces import clip_files
from limner.weights.io import write_tensors
from limner.weights.layout import plan, translate
from limner.weights.scaled import LEAST, note, scaled

LAYOUTS = ("single", "diffusers")
PIPELINES = {
    ("sd15", "base"): "StableDiffusionPipeline",
    ("sd15", "inpaint"): "StableDiffusionInpaintPipeline",
    ("sd15", "edit"): "StableDiffusionInstructPix2PixPipeline",
    ("sd2", "base"): "StableDiffusionPipeline",
    ("sd2", "inpaint"): "StableDiffusionInpaintPipeline",
    ("sd2", "depth"): "StableDiffusionDepth2ImgPipeline",
    ("sdxl", "base"): "StableDiffusionXLPipeline",
    ("sdxl", "inpaint"): "StableDiffusionXLInpaintPipeline",
    ("sdxl-refiner", "base"): "StableDiffusionXLImg2ImgPipeline",
    ("sd3", "medium"): "StableDiffusion3Pipeline",
    ("sd35", "medium"): "StableDiffusion3Pipeline",
    ("sd35", "large"): "StableDiffusion3Pipeline",
}
CLASSES = {
    "unet": "UNet2DConditionModel", "mmdit": "SD3Transformer2DModel", "vae": "AutoencoderKL", "clip": "CLIPTextModel",
    "t5": "T5EncoderModel",
}  # fmt: skip
WORDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def write_checkpoint(
    checkpoint: Checkpoint, out: FilePath, layout: str = "single", dtype: torch.dtype | None = None
) -> FilePath:
    """Write at `out` what was recognised, in `dtype` or each tensor's own; the way back gives the same bits.

    int8: layers' large weights with a scale for each output channel, all else in fp16; the way back gives fp16.
    single: one safetensors file with the original names. diffusers: a folder with configs, scheduler and tokenizers.
    Raises NotSaved where `out` stands already or cannot be written, BadInput where a layout cannot hold a network.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    if out.exists():
        raise NotSaved(f"{out} exists already; it is not written over")
    family = checkpoint.family
    known = family.single if layout == "single" else family.folders
    if strange := sorted(set(checkpoint.parts) - set(known)):
        raise BadInput(f"the {layout} layout of {family.name} has no place for its {' and its '.join(strange)}")
    if dtype is torch.int8 and layout != "single":
        raise BadInput("weights of 8 bits are written as a single file, for no diffusers folder has scales")
    if layout == "single":
        _single(checkpoint, out, dtype)
    else:
        _diffusers(checkpoint, out, dtype)
    return out


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype and value.is_floating_point() else value


def _layers(part: Part, naming: str) -> set[str]:
    """The weights, by the file's names, that linear layers and convolutions multiply with, as they stand in them."""
    with torch.device("meta"):
        built = part.kind.build(part.config)
    kinds = (nn.Linear, nn.Conv2d)
    ours = {f"{name}.weight" for name, layer in built.named_modules() if isinstance(layer, kinds)}
    moves = plan(built.state_dict(), part.kind.naming(naming).writes(part.config), back=True)
    turned = [move for move in moves if ours.issuperset(move.sources) and move.op in ("same", "pointwise")]
    return {name for move in turned for name in move.targets if name.endswith(".weight")}


def _named(part: Part, naming: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return translate(tensors, part.kind.naming(naming).writes(part.config), back=True, where=str(part.files[0]))


def _for_file(part: Part, family: Family) -> dict[str, Tensor]:
    """Weights as a single file has them: SD3's CLIP-L without a projection that changes nothing."""
    tensors = part.tensors()
    turn = tensors.get("text_projection.weight")
    if turn is not None and "text_3" in family.nets and torch.equal(turn, torch.eye(*turn.shape).to(turn)):
        del tensors["text_projection.weight"]
    return tensors


def _for_folder(part: Part, family: Family, tower: Tower | None) -> tuple[Part, dict[str, Tensor]]:
    """A part and its weights as a diffusers folder has them.

    SD2's tower lacks its last layer and its projection, which nothing reads: diffusers takes the last that is there.
    SD3's CLIP-L has a projection; published single files have none, which is one that changes nothing.
    """
    tensors, config = part.tensors(), part.config
    if tower is not None and tower.cut:
        layers = config.layers - (config.layers + 1) % 2  # an odd number is what is left
        over = tuple(f"text_model.encoder.layers.{i}." for i in range(layers, config.layers))
        tensors = {n: v for n, v in tensors.items() if not n.startswith((*over, "text_projection."))}
        config = replace(config, layers=layers, projection=0)
    elif tower is not None and "text_3" in family.nets and not config.projection:
        like = tensors["text_model.final_layer_norm.weight"]
        tensors["text_projection.weight"] = torch.eye(config.width, dtype=like.dtype)
        config = replace(config, projection=config.width)
    return replace(part, config=config), tensors


def _single(checkpoint: Checkpoint, out: FilePath, dtype: torch.dtype | None) -> None:
    tensors: dict[str, Tensor] = {}
    small: set[str] = set()
    for net, part in checkpoint.parts.items():
        prefix, naming = checkpoint.family.single[net]
        mine = _named(part, naming, _for_file(part, checkpoint.family))
        layers = _layers(part, naming) if dtype is torch.int8 else set()
        for name, value in mine.items():
            if name in layers and value.numel() >= LEAST:
                small.add(prefix + name)
                tensors |= scaled(prefix + name, value)
            else:
                tensors[prefix + name] = _cast(value, torch.float16 if dtype is torch.int8 else dtype)
    metadata = {name: text for name, text in checkpoint.metadata.items() if name.startswith("modelspec.")}
    metadata |= note(small) if small else {}
    if isinstance(checkpoint.diffusion, Discrete) and "denoiser" in checkpoint.parts:
        metadata["modelspec.prediction_type"] = WORDS[checkpoint.diffusion.prediction].removesuffix("_prediction")
        if checkpoint.diffusion.zero_snr:
            tensors["ztsnr"] = torch.zeros(0)  # the mark that ComfyUI's programs set and read
    if not checkpoint.family.towers:  # our own kinds carry their configs
        metadata |= {f"limner.{net}.config": json.dumps(vars(part.config)) for net, part in checkpoint.parts.items()}
    write_tensors(out, tensors, metadata)


def _diffusers(checkpoint: Checkpoint, out: FilePath, dtype: torch.dtype | None) -> None:
    family = checkpoint.family
    first = next(pipeline for (name, _), pipeline in PIPELINES.items() if name == family.name)
    index: dict[str, Any] = {
        "_class_name": PIPELINES.get((family.name, checkpoint.variant), first),  # parts alone are of no variant
        "_diffusers_version": "0.31.0",  # whose keys these are
        "scheduler": ["diffusers", scheduler(checkpoint)["_class_name"]],
    }
    towers = {tower.net: tower for tower in family.towers}
    partial = out.with_name(f".{out.name}.partial")
    try:
        for net, part in checkpoint.parts.items():
            folder = partial / family.folders[net]
            naming = "transformers" if part.kind.name in ("clip", "t5") else "diffusers"
            part, weights = _for_folder(part, family, towers.get(net))
            known = config_of(part, family, towers.get(net))
            library = "transformers" if naming == "transformers" else "diffusers"
            index[folder.name] = [library, known.get("_class_name") or known["architectures"][0]]
            stem = "model" if library == "transformers" else "diffusion_pytorch_model"
            tensors = {n: _cast(value, dtype).contiguous() for n, value in _named(part, naming, weights).items()}
            write_tensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"})
            _json(folder / "config.json", known)
            home = partial / folder.name.replace("text_encoder", "tokenizer")
            if net in towers:
                home.mkdir(parents=True)
                for name, text in clip_files(towers[net].pad).items():
                    (home / name).write_text(text, encoding="utf-8")
                index[home.name] = ["transformers", "CLIPTokenizer"]
            elif net == "text_3" and (source := checkpoint.path / "tokenizer_3").is_dir():
                shutil.copytree(source, home)
                index[home.name] = ["transformers", "T5TokenizerFast"]
        for lacking in sorted(set(family.folders) - set(checkpoint.parts) - set(family.needs)):
            if lacking in family.nets:
                index[family.folders[lacking]] = [None, None]
        if "text_2" in family.nets and "text_3" not in family.nets:
            index["force_zeros_for_empty_prompt"] = family.zero_negative
        if "text_2" in family.nets and "text" not in family.nets:
            index["requires_aesthetics_score"] = True
        _json(partial / "scheduler" / "scheduler_config.json", scheduler(checkpoint))
        _json(partial / "model_index.json", index)
        partial.rename(out)
    except OSError as error:
        raise NotSaved(f"{out} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _json(path: FilePath, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def scheduler(checkpoint: Checkpoint) -> dict[str, Any]:
    """scheduler_config.json: the path, in diffusers' words."""
    path = checkpoint.diffusion
    if isinstance(path, Straight):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": path.shift}
    assert isinstance(path, Discrete)
    return {
        "_class_name": "EulerDiscreteScheduler" if checkpoint.family.name.startswith("sdxl") else "DDIMScheduler",
        "beta_start": path.beta_start, "beta_end": path.beta_end, "beta_schedule": "scaled_linear",
        "num_train_timesteps": path.stations, "prediction_type": WORDS[path.prediction], "steps_offset": 1,
        "timestep_spacing": "leading", "rescale_betas_zero_snr": path.zero_snr,
        **({} if checkpoint.family.name.startswith("sdxl") else {"set_alpha_to_one": False, "clip_sample": False}),
    }  # fmt: skip


def config_of(part: Part, family: Family, tower: Tower | None) -> dict[str, Any]:
    """config.json of one component, in diffusers' and transformers' words."""
    c = part.config
    match part.kind.name:
        case "unet":
            widths = [c.width * m for m in c.multiples]
            kinds = [("CrossAttn" if depth else "", i) for i, depth in enumerate(c.depths)]
            return {
                "_class_name": CLASSES["unet"], "in_channels": c.channels, "out_channels": c.out, "sample_size": 64,
                "block_out_channels": widths, "layers_per_block": c.blocks, "cross_attention_dim": c.context,
                "down_block_types": [f"{cross}DownBlock2D" for cross, _ in kinds],
                "up_block_types": [f"{cross}UpBlock2D" for cross, _ in reversed(kinds)],
                "mid_block_type": "UNetMidBlock2DCrossAttn", "act_fn": "silu", "norm_num_groups": c.groups,
                "attention_head_dim": c.heads or [width // 64 for width in widths],
                "use_linear_projection": c.linear, "time_cond_proj_dim": c.guidance or None,
                "transformer_layers_per_block": [depth or c.middle for depth in c.depths],
                **({"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": c.vector} if c.vector else {}),
            }  # fmt: skip
        case "mmdit":
            return {
                "_class_name": CLASSES["mmdit"], "sample_size": 128, "patch_size": c.patch, "in_channels": c.channels,
                "out_channels": c.channels, "num_layers": c.depth, "num_attention_heads": c.heads,
                "attention_head_dim": c.width // c.heads, "joint_attention_dim": c.context,
                "caption_projection_dim": c.width, "pooled_projection_dim": c.pooled,
                "pos_embed_max_size": c.positions, "dual_attention_layers": list(range(c.dual)),
                "qk_norm": "rms_norm" if c.qk_norm else None,
            }  # fmt: skip
        case "vae":
            levels = len(c.multiples)
            return {
                "_class_name": CLASSES["vae"], "in_channels": 3, "out_channels": 3, "latent_channels": c.channels,
                "block_out_channels": [c.width * m for m in c.multiples], "layers_per_block": c.blocks,
                "down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
                "norm_num_groups": c.groups, "act_fn": "silu", "sample_size": 512, "use_quant_conv": c.quant,
                "use_post_quant_conv": c.quant, "scaling_factor": family.latent.scale,
                **({"shift_factor": family.latent.shift} if family.latent.shift else {}),
            }  # fmt: skip
        case "clip":
            assert tower is not None
            name = "CLIPTextModelWithProjection" if c.projection and "text_2" in family.nets else "CLIPTextModel"
            return {
                "architectures": [name], "model_type": "clip_text_model", "vocab_size": c.vocabulary,
                "hidden_size": c.width, "intermediate_size": c.hidden, "num_hidden_layers": c.layers,
                "num_attention_heads": c.heads, "max_position_embeddings": c.positions,
                "hidden_act": "quick_gelu" if tower.quick else "gelu", "projection_dim": c.projection or c.width,
                "layer_norm_eps": 1e-5, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": tower.pad,
            }  # fmt: skip
        case "t5":
            return {
                "architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": c.vocabulary,
                "d_model": c.width, "num_layers": c.layers, "num_heads": c.heads, "d_kv": c.head, "d_ff": c.hidden,
                "relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": 128,
                "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "tie_word_embeddings": False,
                "is_encoder_decoder": False,
            }  # fmt: skip
    raise BadInput(f"a {part.kind.name} has no place in diffusers' layout")
