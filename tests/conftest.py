"""What every test stands on: one thread, the same examples on every machine and every day, tiny models."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from limner.families import FAMILIES
from limner.families.nets import CLIP, MMDIT, T5, UNET, VAE
from limner.families.recognise import recognise
from limner.families.write import write_checkpoint
from limner.models.bert import Bert, BertConfig
from limner.models.clip import ClipConfig
from limner.models.eye import Eye, EyeConfig
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.models.mmdit import MMDiTConfig
from limner.models.t5 import T5Config
from limner.models.unet import UnetConfig
from limner.models.vae import VaeConfig
from limner.train.ship import ship_net, write_sums
from limner.weights.io import write_tensors
from limner.weights.layout import translate

torch.set_num_threads(1)

settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")

NAMES = ("red apple", "blue house", "cat", "dog", "sword")


def tiny_pieces() -> Tokenizer:
    """BERT's word pieces over a dozen words; all others are spelled."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!'-"
    words = ["a", "red", "apple", "blue", "house", "cat", "dog", "sword", "pixel", "art"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *letters[1:], *(f"##{letter}" for letter in letters)]
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return pieces


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole mini model with random weights, small enough to paint in a tenth of a second. Copy it to change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pieces = tiny_pieces()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eye = EyeConfig(pixels=32, widths=(8, 16), blocks=(1, 1), text=48, space=16)
        nets = {
            "autoencoder": MiniAutoencoder(MiniAutoencoderConfig(8, (8, 8, 16), (1, 1, 1), (16, 8, 8), (1, 1, 1))),
            "denoiser": MiniTransformer(MiniTransformerConfig(width=64, depth=2, heads=1, hidden=96, text=48)),
            "text": Bert(BertConfig(pieces.get_vocab_size(), width=48, layers=1, heads=2, hidden=64, embedding=16)),
            "eye": Eye(eye),
            "judge": Eye(eye),
        }
        torch.nn.init.normal_(nets["denoiser"].head.weight, std=0.5)  # it begins at zero, which paints one grey
        torch.nn.init.normal_(nets["denoiser"].modulation.weight, std=0.1)  # and this, which makes it deaf to the style
    for name, net in nets.items():
        ship_net(folder, name, net)
    pieces.save(str(folder / "tokenizer.json"))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    write_sums(folder)
    return folder


TINY: dict[str, dict[str, Any]] = {  # whole checkpoints of every published family, painted with in a second
    "sd15": {
        "denoiser": UnetConfig(width=64, multiples=(1, 2), blocks=1, depths=(1, 0), context=64),
        "autoencoder": VaeConfig(width=32, multiples=(1, 1, 1, 1), blocks=1),
        "text": ClipConfig(width=64, layers=2, heads=1, hidden=96),
    },
    "sd2": {
        "denoiser": UnetConfig(
            width=64, multiples=(1, 2), blocks=1, depths=(1, 0), context=128, heads=0, linear=True
        ),
        "autoencoder": VaeConfig(width=32, multiples=(1, 1, 1, 1), blocks=1),
        "text": ClipConfig(width=128, layers=4, heads=2, hidden=96, projection=32, quick=False),
    },
    "sdxl": {
        "denoiser": UnetConfig(
            width=64, multiples=(1, 2, 2), blocks=1, depths=(0, 1, 2), middle=2, context=192, heads=0, linear=True,
            vector=48 + 6 * 256,
        ),
        "autoencoder": VaeConfig(width=32, multiples=(1, 1, 1, 1), blocks=1),
        "text": ClipConfig(width=64, layers=3, heads=1, hidden=96),
        "text_2": ClipConfig(width=128, layers=3, heads=2, hidden=96, projection=48, quick=False),
    },
    "sdxl-refiner": {
        "denoiser": UnetConfig(
            width=64, multiples=(1, 1, 2, 2), blocks=1, depths=(0, 1, 1, 0), context=128, heads=0, linear=True,
            vector=48 + 5 * 256,
        ),
        "autoencoder": VaeConfig(width=32, multiples=(1, 1, 1, 1), blocks=1),
        "text_2": ClipConfig(width=128, layers=3, heads=2, hidden=96, projection=48, quick=False),
    },
    "sd3": {
        "denoiser": MMDiTConfig(width=128, depth=2, heads=2, context=256, pooled=64 + 48, positions=32),
        "autoencoder": VaeConfig(channels=16, width=32, multiples=(1, 1, 1, 1), blocks=1, quant=False),
        "text": ClipConfig(width=64, layers=3, heads=1, hidden=96),
        "text_2": ClipConfig(width=128, layers=3, heads=2, hidden=96, projection=48, quick=False),
        "text_3": T5Config(vocabulary=200, width=256, layers=2, heads=4, head=32, hidden=96),
    },
}  # fmt: skip
TINY["sd35"] = TINY["sd3"] | {
    "denoiser": MMDiTConfig(
        width=128, depth=3, heads=2, context=256, pooled=64 + 48, positions=32, qk_norm="rms", dual=2
    )
}
KIND_OF = {UnetConfig: UNET, MMDiTConfig: MMDIT, VaeConfig: VAE, ClipConfig: CLIP, T5Config: T5}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn anew, so that nothing passes for being zero or one; of about the size that keeps signals."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.ndim > 1:
                fan = value[0].numel() if "embedding" not in name else 1
                value.copy_(torch.randn(value.shape, generator=rng) / fan**0.5)
            else:  # a weight of one axis is a norm's
                value.copy_(float(name.endswith("weight")) + 0.1 * torch.randn(value.shape, generator=rng))
    return net.eval()


@cache
def tiny_net(family: str, net: str, **changes: Any) -> nn.Module:
    """One network of a tiny checkpoint, drawn once: not to be written into."""
    config = replace(TINY[family][net], **changes)
    return randomised(KIND_OF[type(config)].build(config), seed=sum(map(ord, net)))


def tiny_nets(family: str, *names: str) -> dict[str, nn.Module]:
    return {net: tiny_net(family, net) for net in names or TINY[family]}


def write_single(
    path: Path,
    family: str,
    nets: dict[str, nn.Module],
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
    marks: tuple[str, ...] = (),
) -> Path:
    """A single file as people publish it, straight from networks and the family's page; marks are empty tensors."""
    tensors = {mark: torch.zeros(0) for mark in marks}
    for net, module in nets.items():
        prefix, naming = FAMILIES[family].single[net]
        rules = FAMILIES[family].nets[net].naming(naming).writes(module.config)
        found = translate(module.state_dict(), rules, back=True)
        tensors |= {prefix + name: value.to(dtype) if dtype else value for name, value in found.items()}
    write_tensors(path, tensors, metadata)
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_checkpoint("sdxl")`: a single file of a family, written once a session."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        return path if path.exists() else write_single(path, name, tiny_nets(name))

    return make


@pytest.fixture(scope="session")
def tiny_diffusers(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]):
    """`tiny_diffusers("sdxl")`: the same as a diffusers folder."""
    folder = tmp_path_factory.mktemp("folders")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_checkpoint(recognise(tiny_checkpoint(name)), path, "diffusers")

    return make
