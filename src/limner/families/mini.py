"""The mini family: the small model that ships, and what is trained from it."""

from __future__ import annotations

from typing import Any

from limner.config import from_json
from limner.diffusion.path import Straight
from limner.families import FAMILIES, Defaults, Family, Kind, Shapes
from limner.families.nets import KINDS, always
from limner.models.bert import Bert, BertConfig
from limner.models.eye import Eye, EyeConfig
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.types import LatentSpec


def _kind(name: str, config: type[Any], build: Any, mark: str, net: str) -> Kind:
    """Our own kinds carry their config in the file's metadata; their names are the same in every layout."""

    def config_of(_: Shapes, note: str) -> Any:
        return from_json(config, note, name)

    return Kind(name, build, config_of, (always("limner", mark),), net)


EYE = _kind("eye", EyeConfig, Eye, "picture_out.weight", "eye")
NETS = {
    "autoencoder": _kind("mini autoencoder", MiniAutoencoderConfig, MiniAutoencoder, "decoder.0.weight", "autoencoder"),
    "denoiser": _kind("mini transformer", MiniTransformerConfig, MiniTransformer, "patch_in.weight", "denoiser"),
    "text": _kind("bert", BertConfig, Bert, "embeddings.word_embeddings.weight", "text"),
    "eye": EYE,
    "judge": EYE,  # an eye that never reranks: it evaluates
}
KINDS.extend((NETS["autoencoder"], NETS["denoiser"], NETS["text"], EYE))

DEFAULTS = Defaults((128, 128), 24, "euler_ancestral", "uniform", cfg_scale=5.0, cfg_interval=(0.1, 1.0),
                    pag_scale=1.5, pag_interval=(0.7, 1.0), late=0.7)  # fmt: skip
MINI = Family(
    name="mini",
    nets=NETS,
    needs=("autoencoder", "denoiser", "text"),
    single={net: (f"{net}.", "limner") for net in NETS},
    path=Straight(prediction="x0"),
    latent=LatentSpec(channels=8, factor=8, multiple=16, pixels=4),
    sizes=(64, 512),
    defaults=DEFAULTS,
    claims=lambda kind, _: "base" if kind.name == "mini transformer" else None,
    pieces=64,
    styles=("noto", "emojione", "blob", "firefox", "fluent", "flat", "silhouette", "pixel art"),
)
FAMILIES.add("mini")(MINI)
