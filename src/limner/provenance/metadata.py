"""What a picture carries: its recipe, the text that other tools read, and the mark that a trained model made it.

Three places, so that some of it survives: a JSON chunk of our own (`limner`), the `parameters` text of AUTOMATIC1111
that the field's tools read, and XMP with IPTC's DigitalSourceType (IPTC Photo Metadata 2025.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from limner import __version__
from limner.errors import BadInput
from limner.recipe import Recipe

if TYPE_CHECKING:
    from limner.pipeline import Model

MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
PARTLY = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"  # began as a picture
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" \
xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<xmp:CreatorTool>{tool}</xmp:CreatorTool>
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>{words}
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
_USER_COMMENT, _EXIF_IFD = 0x9286, 0x8769


@dataclass(frozen=True)
class Receipt:
    """A recipe and what it met: the weights by digest, the type they ran in, the version that painted."""

    recipe: Recipe
    weights: Mapping[str, str]  # file name -> SHA-256
    dtype: str
    version: str = __version__

    @classmethod
    def of(cls, recipe: Recipe, model: Model) -> Receipt:
        """The receipt of a recipe that a model paints, with the networks that take part."""
        idle = {"judge"} if recipe.best_of > 1 else {"judge", "eye"}
        weights = {name: digest for name, digest in model.digests.items() if Path(name).stem not in idle}
        return cls(recipe, weights, model.place.numbers)

    def fields(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "id": self.recipe.id,
            "weights": dict(self.weights),
            "dtype": self.dtype,
            "limner": self.version,
        }

    def to_json(self) -> str:
        return json.dumps(self.fields(), ensure_ascii=False, sort_keys=True)


def parameters(receipt: Receipt) -> str:
    """The text of AUTOMATIC1111: the prompt, the negative prompt, then a line of settings."""
    r = receipt.recipe
    settings: dict[str, Any] = {
        "Steps": r.steps,
        "Sampler": r.sampler,
        "Schedule type": r.schedule,
        "CFG scale": f"{r.cfg_scale:g}",
        "Seed": r.seed,
        "Size": f"{r.width}x{r.height}",
        "Model": r.model,
        "RNG": r.noise.upper(),
        "Clip skip": r.clip_skip or None,
        "Denoising strength": f"{r.strength:g}" if r.image else f"{r.hires_strength:g}" if r.hires > 1 else None,
        "Hires upscale": f"{r.hires:g}" if r.hires > 1 else None,
        "Variation seed": r.subseed if r.variation else None,
        "Variation seed strength": f"{r.variation:g}" if r.variation else None,
        "Tiling": True if r.seamless else None,
        "Style": r.style,
        "Version": f"limner {receipt.version}",
    }
    lines = [r.prompt, *([f"Negative prompt: {r.negative}"] if r.negative else [])]
    return "\n".join([*lines, ", ".join(f"{n}: {_quoted(value)}" for n, value in settings.items() if value)])


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n\"]", text) else text


def xmp(receipt: Receipt | None, words: bool = True) -> bytes:
    """The XMP packet; without a receipt, or without words, it holds the mark alone."""
    told = f"\n<dc:description>{_alt(receipt.recipe.prompt[:2000])}</dc:description>" if receipt and words else ""
    source = PARTLY if receipt and receipt.recipe.image else MADE
    return _XMP.format(tool=f"Limner {__version__}", source=source, words=told).encode()


def _alt(text: str) -> str:
    clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)  # XML 1.0 holds none of these
    return f'<rdf:Alt><rdf:li xml:lang="x-default">{escape(clean)}</rdf:li></rdf:Alt>'


@dataclass(frozen=True)
class Chunks:
    """The same words in the forms that PNG, and that JPEG and WebP, keep."""

    png: PngInfo
    exif: bytes
    xmp: bytes


def chunks(receipt: Receipt | None, words: bool = True) -> Chunks:
    """What to write into a file; `words=False`, or no receipt of one picture, leaves all but the mark out.

    A prompt of thousands of words does not fit a JPEG: PNG and WebP keep it.
    """
    png, exif = PngInfo(), Image.Exif()
    packet = xmp(receipt, words)
    png.add_itxt("XML:com.adobe.xmp", packet.decode())
    if receipt and words:
        png.add_itxt("parameters", parameters(receipt))
        png.add_itxt("limner", receipt.to_json())
        text = f"{parameters(receipt)}\nlimner: {receipt.to_json()}"
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return Chunks(png, exif.tobytes() if receipt and words else b"", packet)


def read_receipt(image: Image.Image, name: Path | str) -> Receipt:
    """The receipt that a picture of ours carries.

    Raises BadInput with what the picture has instead.
    """
    text = own_text(image)
    if text is None:
        other = "; it has the parameters of another tool" if parameters_of(image) else ""
        raise BadInput(f"{name} carries no recipe of Limner's{other}")
    try:
        fields = json.loads(text)
        recipe = Recipe.from_json(json.dumps(fields["recipe"]))
        return Receipt(recipe, dict(fields["weights"]), str(fields["dtype"]), str(fields["limner"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{name} carries a recipe that cannot be read: {error}") from error


def own_text(image: Image.Image) -> str | None:
    """Our own JSON as it stands in a picture, unchecked."""
    if "limner" in image.info:
        return str(image.info["limner"])
    _, mark, text = _comment(image).partition("\nlimner: ")
    return text if mark else None


def parameters_of(image: Image.Image) -> str | None:
    """The `parameters` text, of ours or of any tool of the field."""
    found = str(image.info.get("parameters") or "") or _comment(image).partition("\nlimner: ")[0]
    return found or None


def is_marked(image: Image.Image) -> bool:
    """Whether the picture says that a trained model made it, or a part of it."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    return MADE in text or PARTLY in text


def _comment(image: Image.Image) -> str:
    """EXIF's UserComment, where JPEG and WebP carry the words; "" where there is none."""
    raw = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    if isinstance(raw, str):
        return raw
    return raw[8:].decode("utf-16-be" if raw.startswith(b"UNICODE\0") else "ascii", "replace")
