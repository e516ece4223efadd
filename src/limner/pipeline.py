"""A model and its four verbs: encode, denoiser, to_latent, to_image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path as FilePath
from typing import cast

import torch
from torch import Tensor, nn

from limner.config import from_json
from limner.diffusion.path import Path
from limner.errors import BadInput, BadWeights, UnknownName
from limner.families import Family, detect
from limner.families.mini import OPTIONAL
from limner.models.bert import pool
from limner.models.eye import Eye
from limner.models.mini_autoencoder import MiniAutoencoder
from limner.models.mini_transformer import MiniTransformer
from limner.models.tokenizer import Pieces
from limner.place import Place, find_place
from limner.types import Cond, Denoiser
from limner.weights.io import Header, read_header, read_tensors, sha256
from limner.weights.layout import Rule, account, rename, translate

SHIPPED = ("mini",)
PAINTERS = ("autoencoder", "denoiser")  # what runs under autocast only


@dataclass(frozen=True)
class Model:
    family: Family
    place: Place
    nets: Mapping[str, nn.Module]
    pieces: Pieces
    names: tuple[str, ...] = ()  # what `describe` chooses from
    digests: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each weight file

    @property
    def path(self) -> Path:
        return self.family.path

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """C h w of a picture's latents; refuses sizes that the family cannot paint."""
        least, most = self.family.sizes
        step = self.family.latent.multiple
        fit = [min(most, max(least, round(side / step) * step)) for side in (width, height)]
        if fit != [width, height]:
            raise BadInput(
                f"{self.family.name} cannot paint {width}x{height}: sides are multiples of {step} "
                f"from {least} to {most}; the nearest is {fit[0]}x{fit[1]}"
            )
        return self.family.latent.channels, height // self.family.latent.factor, width // self.family.latent.factor

    def encode(self, prompts: Sequence[str], style: str | Sequence[str | None] | None = None) -> Cond:
        """What the denoiser is told of each prompt: tokens B L D, pooled B D, mask B L, style B.

        One style serves every prompt; None is any style.
        """
        styles = [style] * len(prompts) if style is None or isinstance(style, str) else style
        states, mask = self.read(prompts)
        numbers = torch.tensor([self.style_number(each) for each in styles], device=self.place.device)
        return Cond(states, pool(states, mask), mask, numbers)

    def style_number(self, style: str | None) -> int:
        """The index that the denoiser knows a style by; 0 is any."""
        if style is None:
            return 0
        if style not in self.family.styles:
            raise UnknownName("style", style, self.family.styles)
        return self.family.styles.index(style) + 1

    def denoiser(self, cond: Cond) -> Denoiser:
        """The network and its path as a function (x, t) -> x0; a cond of one row serves every row of x."""
        net = cast(MiniTransformer, self.nets["denoiser"])

        @torch.inference_mode()
        def denoise(x: Tensor, t: float) -> Tensor:
            x = x.contiguous()  # one layout: in bf16 another one is another product, and another picture
            every = cond if len(cond) == len(x) else cond.repeat(len(x))
            clock = torch.full((len(x),), self.path.clock(t), device=x.device)
            with self.place.autocast():
                if self.place.one_by_one:
                    answer = torch.cat([net(x[i : i + 1], clock[:1], every.row(i)) for i in range(len(x))])
                else:
                    answer = net(x, clock, every)
            return self.path.x0(x, answer.float().contiguous(), t)

        return denoise

    @torch.inference_mode()
    def to_latent(self, picture: Tensor) -> Tensor:
        """B 4 H W in [0, 1] with premultiplied colour to B C h w."""
        with self.place.autocast():
            return cast(MiniAutoencoder, self.nets["autoencoder"]).encode(picture.to(self.place.device))

    @torch.inference_mode()
    def to_image(self, latent: Tensor) -> Tensor:
        """B C h w to B 4 H W in [0, 1] with premultiplied colour, on the CPU."""
        net = cast(MiniAutoencoder, self.nets["autoencoder"])
        with self.place.autocast():
            return torch.cat(
                [net.decode(part).cpu() for part in latent.split(1 if self.place.one_by_one else len(latent))]
            )

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The text states B L D, in fp32 for all that depends on them, and the mask B L of what stands."""
        ids, mask = (value.to(self.place.device) for value in self.pieces(texts, self.family.pieces, warn=True))
        return self.nets["text"](ids, mask), mask

    @cached_property
    def eye(self) -> Eye:
        if "eye" not in self.nets:
            raise BadInput(f"this {self.family.name} model has no eye, which --best-of and describe need")
        return cast(Eye, self.nets["eye"])

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], eye: Eye | None = None) -> Tensor:
        """Texts in the eye's space: unit vectors, N S."""
        pooled = torch.cat([pool(*self.read(texts[i : i + 256])) for i in range(0, len(texts), 256)])
        return (eye or self.eye).read(pooled).float()

    @cached_property
    def name_vectors(self) -> Tensor:
        """Those of `names`, read once: there are thousands."""
        return self.vectors(self.names)

    @torch.inference_mode()
    def likeness(self, pictures: Tensor, texts: Sequence[str] | Tensor, eye: Eye | None = None) -> Tensor:
        """Cosines of pictures (B 4 H W, premultiplied) and texts, or their vectors, in the eye's space: B N."""
        told = texts if isinstance(texts, Tensor) else self.vectors(texts, eye)
        with self.place.autocast():
            seen = (eye or self.eye).see(pictures.to(self.place.device))
        return (seen.float() @ told.T).cpu()


def find_model(name: str) -> FilePath:
    """Where a model's weights are: a name that ships, a folder, or a file."""
    if name in SHIPPED:
        return FilePath(str(resources.files("limner") / "data" / name))
    path = FilePath(name).expanduser()
    if not path.exists():
        if path.suffix or "/" in name:
            raise BadInput(
                f"{name} does not exist; a model is a name ({', '.join(SHIPPED)}), a folder or a .safetensors file"
            )
        raise UnknownName("model", name, SHIPPED)
    return path


def weight_files(path: FilePath) -> list[FilePath]:
    """The files of a model, at least one: the file itself, or those of the folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    files = [file for file in files if not file.name.endswith("checkpoint.safetensors")]
    if not files:
        raise BadWeights(f"{path} holds no .safetensors file")
    return files


def load(name: str = "mini", place: Place | None = None) -> Model:
    """A model by name, folder or file, every weight checked against its config before anything is allocated."""
    place = place or find_place()
    path = find_model(name)
    files = weight_files(path)
    nets: dict[str, nn.Module] = {}
    family: Family | None = None
    digests = {file.name: sha256(file) for file in files}
    _check_digests(path, digests)
    for file in files:
        header = read_header(file)
        family, layout, net = detect({n: e.shape for n, e in header.entries.items()}, str(file))
        for each in layout.rules if layout.name == "single file" else [file.stem if file.stem in family.nets else net]:
            built = load_net(file, header, family, each, layout.rules[each], layout.name == "single file")
            if built is not None:
                nets[each] = place.settle(built) if each in PAINTERS else built.to(place.device)
    assert family is not None
    if missing := sorted(set(family.nets) - set(OPTIONAL) - set(nets)):
        raise BadWeights(f"{path} lacks the {' and the '.join(missing)} of a {family.name} model")
    folder = path if path.is_dir() else path.parent
    pieces, names = folder / "tokenizer.json", folder / "names.txt"
    if not pieces.exists():
        raise BadWeights(f"{folder} lacks tokenizer.json, the word pieces of its text encoder")
    known = tuple(names.read_text(encoding="utf-8").splitlines()) if names.exists() else ()
    return Model(family, place, nets, Pieces(pieces.read_text(encoding="utf-8")), known, digests)


def _check_digests(path: FilePath, digests: Mapping[str, str]) -> None:
    """A folder's SHA256SUMS, where there is one, must agree."""
    sums = path / "SHA256SUMS"
    if not path.is_dir() or not sums.exists():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        want, _, name = line.partition("  ")
        if name in digests and digests[name] != want:
            raise BadWeights(f"{path / name} is damaged: its SHA-256 is {digests[name][:16]}..., not {want[:16]}...")


def load_part(file: FilePath, family: Family, net: str) -> nn.Module:
    """One network from a file of its own."""
    built = load_net(file, read_header(file), family, net, (Rule("{}", "{}"),), part=False)
    assert built is not None
    return built


def load_net(
    file: FilePath, header: Header, family: Family, net: str, rules: Sequence[Rule], part: bool
) -> nn.Module | None:
    """One network from a file; None where a single file does not hold it."""
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    if part:
        prefix = rules[0].theirs.removesuffix("{}")
        shapes = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
        if not shapes:
            return None
    key = f"limner.{net}.config" if part else "limner.config"
    config = from_json(family.nets[net].config, header.metadata.get(key, "{}"), str(file))
    with torch.device("meta"):
        built = family.nets[net].build(config)
    moves = rename(shapes, rules)
    found = {move[0]: shapes[name] for name, move in moves.items() if move is not None}
    account(found, {name: tuple(value.shape) for name, value in built.state_dict().items()}, str(file))
    tensors = {name: value for name, value in read_tensors(file, header).items() if name in shapes}
    tensors = {
        name: value.float() if value.is_floating_point() else value for name, value in translate(tensors, rules).items()
    }
    built.load_state_dict(tensors, assign=True)
    built.eval().requires_grad_(False)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
