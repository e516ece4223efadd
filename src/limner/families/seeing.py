"""Networks that see, and those that enlarge: kinds that belong to no family and stand in files of their own."""

from __future__ import annotations

from limner.families import Kind, Naming, Shapes
from limner.families.nets import always
from limner.models import clip_vision, ip_adapter, rrdbnet
from limner.weights.layout import Rule
from limner.weights.names import clip_vision as eyes_names
from limner.weights.names import ip_adapter as adapter_names
from limner.weights.names import rrdbnet as rrdb_names

TOKENS = "text_model.embeddings.token_embedding.weight"
PATCHES = "vision_model.embeddings.patch_embedding.weight"

CLIP_WITH_EYES = Kind(
    "clip with eyes",
    clip_vision.ClipWithEyes,
    lambda shapes, _: clip_vision.with_eyes_config_of(shapes),
    (
        always("transformers", PATCHES, TOKENS, rules=eyes_names.TRANSFORMERS),
        always("openclip", "visual.conv1.weight", "token_embedding.weight", rules=eyes_names.OPENCLIP),
    ),
    net="clip",
)
CLIP_VISION = Kind(
    "clip vision",
    clip_vision.ClipVision,
    lambda shapes, _: clip_vision.config_of(shapes),
    (
        always("transformers", PATCHES, rules=eyes_names.EYES),
        always("openclip", "visual.conv1.weight", rules=eyes_names.OPENCLIP_EYES),
    ),
    net="eyes",
)
IP_ADAPTER = Kind(
    "ip-adapter",
    ip_adapter.IpAdapter,
    lambda shapes, _: ip_adapter.config_of(shapes),
    (always("published", "ip_adapter.1.to_k_ip.weight", rules=adapter_names.PUBLISHED),),
    net="picture_prompt",
)


def _sequence_rules(shapes: Shapes) -> list[Rule]:
    """The last of all layers is the third behind the last doubling, which take three each."""
    last = max(int(name.split(".")[1]) for name in shapes)
    blocks = {name.split(".")[3] for name in shapes if ".RDB1." in name}
    return rrdb_names.sequence(len(blocks), (last - 4) // 3)


RRDB = Kind(
    "esrgan",
    rrdbnet.RrdbNet,
    lambda shapes, _: rrdbnet.config_of(shapes),
    (
        always("real-esrgan", "conv_first.weight", "body.0.rdb1.conv1.weight"),
        Naming(
            "esrgan",
            ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
            _sequence_rules,
            lambda config: rrdb_names.sequence(config.blocks, config.doublings),
        ),
        always("bsrgan", "conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight", rules=rrdb_names.NAMED),
    ),
    net="upscaler",
)
COMPACT = Kind(
    "compact esrgan",
    rrdbnet.CompactNet,
    lambda shapes, _: rrdbnet.compact_config_of(shapes),
    (always("real-esrgan", "body.0.weight", "body.1.weight", "body.2.weight"),),
    net="upscaler",
)
SEEING = [CLIP_WITH_EYES, CLIP_VISION, IP_ADAPTER, RRDB, COMPACT]  # with both towers a file is of the first
