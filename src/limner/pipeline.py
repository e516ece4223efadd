"""A model and its four verbs: encode, denoiser, to_latent, to_image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limner.denoiser import REHEARSAL, Conditioned, rehearse
from limner.diffusion.path import Discrete, Path
from limner.diffusion.thrift import Memory, Thrift
from limner.errors import BadInput, BadWeights, UnknownName
from limner.families import Defaults, Family
from limner.families.recognise import Checkpoint, recognise
from limner.memory import AT_ONCE, TILE, TILED, cost_of, free
from limner.models.bert import pool
from limner.models.eye import Eye
from limner.models.mini_autoencoder import MiniAutoencoder
from limner.models.mmdit import MMDiT
from limner.models.text.inversion import Inversion, read_inversion
from limner.models.text.t5_pieces import T5Pieces, t5_file
from limner.models.tokenizer import Pieces
from limner.models.unet import Unet
from limner.models.vae import Vae
from limner.nets import LARGE, Nets, bare, size, undriven
from limner.nets import build as build
from limner.nn.driven import Driven
from limner.nn.periodic import periodic
from limner.nn.tiles import in_tiles
from limner.place import Keep, Place, find_place
from limner.recipe import SHIPPED as SHIPPED
from limner.store import find_model as find_model
from limner.store import home
from limner.types import Cond, Steer
from limner.weights.io import read_tensors, sha256
from limner.words import Reading, Words, read_towers

EXACT = ("text", "eye", "judge")  # of a mini model: small, and read in fp32
SHARED = 192  # pixels that neighbouring tiles share; mini's decoder sees 104 to a side
REHEARSED = "a red apple on a wooden table, a house and trees behind it"  # what a network paints to be looked at
STARTS_FROM = {"edit": "a picture to edit", "depth": "a depth map"}  # variants that words alone do not serve


@dataclass(frozen=True)
class Model:
    family: Family
    place: Place
    nets: Mapping[str, nn.Module]
    pieces: Pieces | None = None  # of mini's text encoder
    names: tuple[str, ...] = ()  # what `describe` chooses from
    files: tuple[FilePath, ...] = ()  # of weights
    t5: T5Pieces | None = None
    variant: str = "base"
    diffusion: Path | None = None  # where the files say more of it than the family does
    likes: Defaults | None = None  # defaults, where the files tell a few-step kind
    learned: tuple[Inversion, ...] = ()  # words of textual inversion
    adapts: bool = False  # it may keep less in memory than its place says, where that is short
    around: tuple[bool, bool] = (False, False)  # whether convolutions go around in x and in y, for seamless pictures

    @property
    def path(self) -> Path:
        return self.diffusion or self.family.path

    @property
    def defaults(self) -> Defaults:
        return self.likes or self.family.defaults

    @property
    def convolves(self) -> bool:
        """Whether the denoiser knows places through its convolutions alone, so that it can go around (UNets)."""
        return self.family.nets["denoiser"].build is Unet

    @property
    def perturbs(self) -> bool:
        """Whether the denoiser's attention can see each place alone, for perturbed-attention guidance."""
        return self.family.nets["denoiser"].build is not MMDiT

    @property
    def guidance_inside(self) -> bool:
        """Whether the denoiser is told a guidance scale and needs no second evaluation (LCM)."""
        return bool(getattr(getattr(bare(self.nets, "denoiser"), "config", None), "guidance", 0))

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of each weight file, by its name; read when it is first asked for."""
        return {file.name: sha256(file) for file in self.files}

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

    def encode(
        self, prompts: Sequence[Words], style: str | Sequence[str | None] | None = None, how: Reading | None = None
    ) -> Cond:
        """What the denoiser is told of each prompt. One style serves every prompt; None is any style.

        mini: tokens B L D, pooled B D, mask B L, style B. Published families: tokens B 77N D, pooled B P, sizes B 6.
        """
        styles = [style] * len(prompts) if style is None or isinstance(style, str) else style
        numbers = torch.tensor([self.style_number(each) for each in styles], device=self.place.device)
        if self.family.towers:
            with torch.inference_mode(), self.place.autocast():
                how = replace(how or Reading(), learned=self.learned)
                return read_towers(self.family, self.nets, self.t5, prompts, how)
        states, mask = self.read([each if isinstance(each, str) else plain(each) for each in prompts])
        return Cond(states, pool(states, mask), mask, numbers)

    def style_number(self, style: str | None) -> int:
        """The index that the denoiser knows a style by; 0 is any."""
        if style is None:
            return 0
        if not self.family.styles:
            raise BadInput(f"{self.family.name} knows no styles by name; say {style!r} in the prompt")
        if style not in self.family.styles:
            raise UnknownName("style", style, self.family.styles)
        return self.family.styles.index(style) + 1

    def denoiser(
        self,
        cond: Cond,
        skip: tuple[int, ...] = (),
        steer: Steer | None = None,
        thrift: Thrift | None = None,
        few: int = 1,
        perturbed: bool = False,
    ) -> Conditioned:
        """The network and its path as a function (x, t) -> x0; a cond of fewer rows serves x over and over.

        skip: blocks of a transformer that are left out, for skip-layer guidance. steer: (x, clock, cond, t) -> cond,
        what is told besides at each step, as by a ControlNet. thrift: the steps at which the deep layers are asked; at
        the others they are carried over. few: a UNet's attention in large pictures sees every few-th row and column.
        perturbed: attention in the middle sees each place alone.
        """
        wishes = {"skip": skip, "few": few if few > 1 else 0, "perturbed": perturbed}
        wishes = {name: value for name, value in wishes.items() if value}
        memory = Memory(thrift) if thrift else None
        return Conditioned(self._walker, self.place, self.path, cond, steer, memory, wishes)

    @cached_property
    def _walker(self) -> Callable[[], nn.Module]:
        """The denoiser; who holds a network keeps it in memory, so it is held where all are kept."""
        if self.place.keep != "all":
            return lambda: self._around("denoiser")
        held = self._around("denoiser")
        if isinstance(held, Driven):
            held.rehearsal = (self._rehearse, repr(self.path))
        return lambda: held

    def _rehearse(self, net: nn.Module) -> None:
        """Has the network paint a picture, for who wants to see how large the numbers are that it computes with."""
        if size(bare(self.nets, "denoiser")) >= LARGE:
            told = f"in 8 bits a network walks {REHEARSAL} steps beforehand, once, as slowly as in the wide type"
            warnings.warn(told, stacklevel=2)
        cond = self.encode([REHEARSED, ""])
        shape = self.latent_shape(*reversed(self.defaults.size))
        grey = torch.full((1, 4, *reversed(self.defaults.size)), 0.5) if self.variant in STARTS_FROM else None
        beside = self.beside(*shape[1:], grey)
        image = None if beside is None else beside.expand(len(cond), -1, -1, -1)
        scale = torch.full((len(cond),), 1.0, device=self.place.device) if self.guidance_inside else None
        cond = replace(cond, image=image, guidance=scale)
        rehearse(Conditioned(lambda: net, self.place, self.path, cond), shape)

    @torch.inference_mode()
    def to_latent(self, picture: Tensor) -> Tensor:
        """B 4 H W in [0, 1] with premultiplied colour to B C h w; opaque families see it on white.

        Large pictures go in tiles, and so do others where memory is short.
        """
        picture = picture.to(self.place.device)
        if self._tiled(picture.shape[2] * picture.shape[3]):
            whole = replace(self, around=(False, False))
            return in_tiles(whole._encoded, picture, TILE, SHARED, 1 / self.family.latent.factor, self.around)
        return self._encoded(picture)

    def _tiled(self, pixels: int) -> bool:
        """Whether the autoencoder is to work in tiles: above a size, or where the whole would not fit into memory."""
        return pixels > TILED or (pixels > TILE**2 and not self._fits(pixels))

    def _fits(self, pixels: int) -> bool:
        return pixels <= AT_ONCE and cost_of(self.family.name).decode * pixels <= (self.place.memory_left or free())

    def keeping(self, keep: Keep) -> Model:
        """The same model, keeping more or fewer of its networks in memory; before it was first used."""
        place = replace(self.place, keep=keep)
        return replace(self, place=place, nets=self.nets.at(place) if isinstance(self.nets, Nets) else self.nets)

    def _around(self, net: str) -> nn.Module:
        return periodic(undriven(self.nets, net), *self.around) if any(self.around) else self.nets[net]

    def _encoded(self, picture: Tensor) -> Tensor:
        net = self._around("autoencoder")
        with self.place.autocast():
            if self.family.latent.pixels == 4:
                return cast(MiniAutoencoder, net).encode(picture)
            mean, _ = cast(Vae, net).encode((picture[:, :3] + 1 - picture[:, 3:]) * 2 - 1)
        return (mean - self.family.latent.shift) * self.family.latent.scale

    @torch.inference_mode()
    def to_image(self, latent: Tensor, fast: bool = False) -> Tensor:
        """B C h w to B 4 H W in [0, 1] with premultiplied colour, on the CPU. fast: by the tiny autoencoder.

        Large pictures come in tiles, and so do others where memory is short; those of an autoencoder without norms
        are the same but for rounding.
        """
        side = self.family.latent.factor
        pixels = latent.shape[2] * latent.shape[3] * side**2
        tiled = self._tiled(pixels)
        if len(latent) > 1 and not self._fits(len(latent) * (TILE**2 if tiled else pixels)):
            return torch.cat([self.to_image(row, fast) for row in latent.split(1)])
        if tiled:
            part = replace(self, around=(False, False))
            tile = TILE // side
            return in_tiles(lambda z: part._decoded(z, fast).cpu(), latent, tile, SHARED // side, side, self.around)
        rows = latent.split(1 if self.place.one_by_one else len(latent))
        return torch.cat([self._decoded(row, fast).cpu() for row in rows])

    def _decoded(self, latent: Tensor, fast: bool) -> Tensor:
        """B C h w to B 4 H W; where fp16 overflows, as in SDXL's autoencoder, once more in fp32."""
        net = self._around("tiny" if fast and self.tiny else "autoencoder")
        with self.place.autocast():
            if self.family.latent.pixels == 4 or fast:
                picture = cast(Any, net).decode(latent)
            else:
                z = latent / self.family.latent.scale + self.family.latent.shift
                picture = cast(Vae, net).decode(z)
        if self.family.latent.pixels == 4:
            return picture
        if not fast and not torch.isfinite(picture).all() and self.place.dtype == torch.float16:
            warnings.warn("the autoencoder overflowed in fp16; decoded again in fp32", stacklevel=5)
            picture = self._overflowed(net, z)
        rgb = (picture if fast else picture / 2 + 0.5).clamp(0, 1)  # B 3 H W
        return torch.cat([rgb, torch.ones_like(rgb[:, :1])], dim=1)

    def _overflowed(self, net: nn.Module, z: Tensor) -> Tensor:
        if isinstance(self.nets, Nets) and self.place.keep != "all":
            return cast(Vae, self.nets.exactly("autoencoder")).decode(z)
        picture = cast(Vae, net.float()).decode(z)
        self.place.settle(net)
        return picture

    def beside(self, h: int, w: int, picture: Tensor | None = None, mask: Tensor | None = None) -> Tensor | None:
        """What the denoiser wants laid beside latents of h w: 1 C' h w, or nothing.

        picture: 1 4 H W; mask: 1 1 H W, 1 where it is filled. An inpainting checkpoint that is given neither is told
        that everything is to be filled. A depth model's picture is its depth map, near is white.
        """
        if self.variant in STARTS_FROM and picture is None:
            raise BadInput(f"this {self.family.name} checkpoint starts from {STARTS_FROM[self.variant]}")
        if self.variant == "inpaint":
            side = self.family.latent.factor
            fill = torch.ones(1, 1, h * side, w * side) if mask is None else (mask > 0.5).float()
            white = fill.expand(1, 3, -1, -1) if picture is None else picture[:, :3] + 1 - picture[:, 3:]
            bare = torch.cat([torch.where(fill > 0, 0.5, white), torch.ones_like(fill)], dim=1)  # 1 4 H W
            small = fill[:, :, ::side, ::side].to(self.place.device)  # the nearest, as it was trained with
            return torch.cat([small, self.to_latent(bare)], dim=1)
        if self.variant == "edit" and picture is not None:  # latents as the autoencoder gives them (arXiv 2211.09800)
            return self.to_latent(picture) / self.family.latent.scale + self.family.latent.shift
        if self.variant == "depth" and picture is not None:
            depth = F.interpolate(picture[:, :3].mean(1, keepdim=True), size=(h, w), mode="bicubic")
            low, high = depth.amin(), depth.amax()
            return ((depth - low) / (high - low).clamp(min=1e-6) * 2 - 1).to(self.place.device)
        return None

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """mini's text states B L D, in fp32 for all that depends on them, and the mask B L of what stands."""
        if self.pieces is None:
            raise BadInput(f"this {self.family.name} model has no word pieces of a mini text encoder")
        ids, mask = (value.to(self.place.device) for value in self.pieces(texts, self.family.pieces, warn=True))
        return self.nets["text"](ids, mask), mask

    @property
    def tiny(self) -> nn.Module:
        net = self.nets.get("tiny")
        if not hasattr(net, "decoder"):
            raise BadInput(f"this {self.family.name} model has no tiny decoder (TAESD); give one beside the model")
        return cast(nn.Module, net)

    @property
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


def plain(pieces: Sequence[Any]) -> str:
    """Weighted pieces as a sentence, for encoders that know no weights."""
    return " ".join(piece.text for piece in pieces if hasattr(piece, "text"))


def load(
    name: str = "mini",
    place: Place | None = None,
    parts: Sequence[str] = (),
    partial: bool = False,
    prediction: str = "",
    embeddings: Sequence[str] = (),
) -> Model:
    """A model by name, folder or file, every weight checked against its config before anything is allocated.

    parts: further files whose networks join or replace those of the model (an autoencoder, a text encoder, TAESD).
    partial: let weights be missing (they stay 0, norms 1) or over. prediction: "eps" or "v", where files cannot tell.
    embeddings: files of textual inversion; a prompt calls each by its file's name.
    """
    place = place or find_place()
    found = recognise(find_model(name))
    whole = dict(found.parts)
    for more in parts:
        whole |= recognise(find_model(more)).parts
    found = replace(found, parts={net: part for net, part in whole.items() if net in found.family.nets})
    _check_digests(found)
    if found.missing:
        lacks = " and the ".join(found.missing)
        raise BadWeights(f"{found.path} lacks the {lacks} of a {found.family.name} model; give it beside the model")
    quick = {tower.net: tower.quick for tower in found.family.towers}
    nets = {net: build(part, partial, quick.get(net)) for net, part in found.parts.items()}
    exact = () if found.family.towers else EXACT
    files = tuple(dict.fromkeys(file for part in found.parts.values() for file in part.files))
    path = found.diffusion
    if prediction:
        if not isinstance(path, Discrete):
            raise BadInput(f"{found.family.name} always predicts {path.prediction!r}; {prediction!r} was asked for")
        path = replace(path, prediction=cast(Any, prediction))
    model = Model(
        found.family,
        place,
        Nets(nets, place, exact, {net: part.files for net, part in found.parts.items()}),
        files=files,
        variant=found.variant,
        diffusion=path,
    )
    learned = tuple(read_inversion(read_tensors(FilePath(file)), FilePath(file).stem) for file in embeddings)
    if learned and not found.family.towers:
        raise BadInput(f"{found.family.name} knows no textual inversion")
    return replace(model, likes=found.defaults, learned=learned, **_readers(found))


def _readers(found: Checkpoint) -> dict[str, Any]:
    """What beside the networks reads words: mini's word pieces and names, T5's pieces where a folder has them."""
    folder = found.path if found.path.is_dir() else found.path.parent
    if found.family.towers:
        return {"t5": _t5_pieces(found, folder)} if "text_3" in found.parts else {}
    pieces, names = folder / "tokenizer.json", folder / "names.txt"
    if not pieces.exists():
        raise BadWeights(f"{folder} lacks tokenizer.json, the word pieces of its text encoder")
    known = tuple(names.read_text(encoding="utf-8").splitlines()) if names.exists() else ()
    return {"pieces": Pieces(pieces.read_text(encoding="utf-8")), "names": known}


def _t5_pieces(found: Checkpoint, folder: FilePath) -> T5Pieces | None:
    """From tokenizer_3 beside the weights, or t5 in the store's folder; where neither is, T5 is left out, in words."""
    for where in (folder / "tokenizer_3", home() / "t5"):
        if where.is_dir():
            text = (where / t5_file([file.name for file in where.iterdir()])).read_text(encoding="utf-8")
            return T5Pieces(text, found.family.pieces)
    warnings.warn(
        f"{found.path.name} holds T5 but no tokenizer for it: it paints without. Put the tokenizer.json of T5 into "
        f"{folder / 'tokenizer_3'} or {home() / 't5'}",
        stacklevel=3,
    )
    return None


def _check_digests(found: Checkpoint) -> None:
    """A folder's SHA256SUMS, where there is one, must agree."""
    sums = found.path / "SHA256SUMS"
    if not found.path.is_dir() or not sums.exists():
        return
    files = {file.name: file for part in found.parts.values() for file in part.files}
    for line in sums.read_text(encoding="utf-8").splitlines():
        want, _, name = line.partition("  ")
        if name in files and (is_ := sha256(files[name])) != want:
            raise BadWeights(f"{files[name]} is damaged: its SHA-256 is {is_[:16]}..., not {want[:16]}...")


def load_part(file: FilePath, family: Family, net: str) -> nn.Module:
    """One network of a family from a file of its own, in fp32."""
    part = next((p for p in recognise(file).parts.values() if p.kind is family.nets[net]), None)
    if part is None:
        raise BadWeights(f"{file} holds no {family.nets[net].name}")
    return build(part).float()
