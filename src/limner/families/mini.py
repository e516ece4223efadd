"""The mini family: the small model that ships, and what is trained from it."""

from limner.diffusion.path import Straight
from limner.families import FAMILIES, Defaults, Family, Layout, Net
from limner.models.bert import Bert, BertConfig
from limner.models.eye import Eye, EyeConfig
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.types import LatentSpec
from limner.weights.layout import Rule

NETS = {
    "autoencoder": Net(MiniAutoencoderConfig, MiniAutoencoder, "decoder.0.weight"),
    "denoiser": Net(MiniTransformerConfig, MiniTransformer, "patch_in.weight"),
    "text": Net(BertConfig, Bert, "embeddings.word_embeddings.weight"),
    "eye": Net(EyeConfig, Eye, "picture_out.weight"),
    "judge": Net(EyeConfig, Eye, "picture_out.weight"),  # an eye that never reranks: it evaluates
}
OPTIONAL = ("eye", "judge")  # painting needs neither

MINI = Family(
    name="mini",
    nets=NETS,
    layouts=(
        Layout("folder", {net: (Rule("{}", "{}"),) for net in NETS}),  # one file a network, our own names
        Layout("single file", {net: (Rule(f"{net}.{{}}", "{}"),) for net in NETS}),
    ),
    path=Straight(prediction="x0"),
    latent=LatentSpec(channels=8, factor=8, multiple=16, pixels=4),
    sizes=(64, 512),
    pieces=64,
    styles=("noto", "emojione", "blob", "firefox", "fluent", "flat", "silhouette", "pixel art"),
    defaults=Defaults(
        (128, 128), steps=24, sampler="euler_ancestral", schedule="uniform", cfg_scale=5.0, cfg_interval=(0.1, 1.0)
    ),
)
FAMILIES.add("mini")(MINI)
