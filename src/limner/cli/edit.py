"""`limner edit`, `inpaint`, `outpaint`, `upscale`: pictures to pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from limner.cli.making import Kept, Output, Wishes, film, flag, keep_all, ready
from limner.errors import BadInput

Picture = Annotated[Path, Parameter(help="The picture to start from: PNG, JPEG, WebP, TIFF or EXR.")]
Prompt = Annotated[str, Parameter(help="What it is to become, or what is to be there.")]
Strength = Annotated[
    float | None, flag("0 gives the picture back, 1 starts from noise.", "--strength", "--denoising-strength")
]


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How often, from how large a picture, and where."""

    count: Annotated[int, flag("Pictures to make, each from the next seed.", "--count", "--batch-count", "-b")] = 1
    max_pixels: Annotated[
        int | None, flag("Read pictures of more than 16 megapixels, up to this many.", "--max-pixels")
    ] = None
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto"
    keep: Kept = "auto"


def edit(
    picture: Picture,
    prompt: Prompt = "",
    *,
    strength: Strength = None,
    image_cfg: Annotated[
        float | None,
        flag("How hard a checkpoint for edits follows the picture.", "--image-cfg", "--image-guidance-scale"),
    ] = None,
    image_sequence: Annotated[
        bool, flag("The picture is a folder, or name-%04d.png, and so is the output, or a film.", "--image-sequence")
    ] = False,
    rate: Annotated[float, flag("Frames a second, where the output is a film.", "--rate", "--fps")] = 12.0,
    bits: Annotated[int, flag("8 or 16, of numbered PNG.", "--bits")] = 8,
    how: How | None = None,
    wishes: Wishes | None = None,
    out: Output | None = None,
) -> None:
    """Change a picture by words: limner edit cat.png "a blue cat" --strength 0.7

    Size, orientation, transparency and colour profile stay as they are. Checkpoints that were trained to edit take the
    prompt as an instruction. Every picture of a sequence is changed with the same noise.
    """
    if image_sequence:
        if (how and how.count != 1) or (out and out.as_json):
            raise BadInput(
                "a sequence is edited once, and its files are told by name: --count and --json do not go with it"
            )
        own: dict[str, Any] = {"prompt": prompt, "strength": strength, "image_cfg": image_cfg}
        _sequence(picture, own, how or How(), wishes, out or Output(), rate, bits)
    else:
        own = {"strength": strength, "image_cfg": image_cfg}
        _make("edit", picture, prompt, own, how or How(), wishes, out)


def inpaint(
    picture: Picture,
    prompt: Prompt = "",
    *,
    mask: Annotated[str, flag('A file that is white where to paint, "x,y,w,h" in pixels, or alpha.', "--mask")],
    strength: Strength = None,
    feather: Annotated[
        int | None, flag("Pixels around the mask in which old and new blend.", "--feather", "--mask-blur")
    ] = None,
    only_masked: Annotated[
        bool, flag("Paint what is around the mask alone, at the model's full resolution.", "--only-masked")
    ] = False,
    padding: Annotated[int | None, flag("How many pixels of it.", "--padding")] = None,
    how: How | None = None,
    wishes: Wishes | None = None,
    out: Output | None = None,
) -> None:
    """Paint a part of a picture anew: limner inpaint face.png "a red hat" --mask 30,0,64,40

    Pixels outside of the mask and its feathered border stay as they are, bit for bit.
    """
    own = {"mask": mask, "strength": strength, "feather": feather, "padding": padding, "only_masked": only_masked}
    _make("inpaint", picture, prompt, own, how or How(), wishes, out)


def outpaint(
    picture: Picture,
    prompt: Prompt = "",
    *,
    left: Annotated[int, flag("Pixels to add there.", "--left")] = 0,
    right: Annotated[int, flag("Pixels to add there.", "--right")] = 0,
    up: Annotated[int, flag("Pixels to add there.", "--up", "--top")] = 0,
    down: Annotated[int, flag("Pixels to add there.", "--down", "--bottom")] = 0,
    strength: Strength = None,
    how: How | None = None,
    wishes: Wishes | None = None,
    out: Output | None = None,
) -> None:
    """Paint on beyond a picture's borders: limner outpaint house.png "a house in a garden" --left 64 --right 64

    The picture itself stays as it is, bit for bit.
    """
    own = {"extend": (left, right, up, down), "strength": strength}
    _make("outpaint", picture, prompt, own, how or How(), wishes, out)


def upscale(
    picture: Picture,
    prompt: Prompt = "",
    *,
    scale: Annotated[float, flag("How many times larger, up to 8.", "--scale", "--upscale-factor")] = 2.0,
    upscaler: Annotated[
        str | None, flag("A file of the ESRGAN family that enlarges first; else Lanczos.", "--upscaler")
    ] = None,
    strength: Strength = None,
    how: How | None = None,
    wishes: Wishes | None = None,
    out: Output | None = None,
) -> None:
    """Make a picture larger and paint its details: limner upscale cat.png "a cat" --scale 4

    It is enlarged, then painted over in tiles that share one field of noise. --strength 0 only enlarges.
    """
    own = {"scale": scale, "upscaler": upscaler, "strength": strength}
    _make("upscale", picture, prompt, own, how or How(), wishes, out)


def _sequence(
    frames: Path,
    own: dict[str, Any],
    how: How,
    wishes: Wishes | None,
    out: Output,
    rate: float,
    bits: int,
) -> None:
    """Edit each picture of a sequence."""
    from limner.film import sequence_files, sequence_kind

    output = Path("edited" if out.output == "." else out.output).expanduser()
    sequence_kind(output)  # a name that is none is told before anything is loaded
    files = sequence_files(frames)
    fields = {"task": "edit", "image": str(files[0])} | (wishes or Wishes()).fields()
    fields |= {name: value for name, value in own.items() if value is not None}
    model, fields = ready(fields, how.device, how.keep)

    from limner.image import allowing
    from limner.tasks.run import begin

    with allowing(how.max_pixels):
        recipes = [begin(model, **fields | {"image": str(file)}) for file in files]
        sizes = [(recipe.width, recipe.height) for recipe in recipes]
        if other := next((i for i, size in enumerate(sizes) if size != sizes[0]), 0):
            found, wanted = ("{}x{}".format(*sizes[i]) for i in (other, 0))
            raise BadInput(
                f"{files[other]} is {found} and {files[0]} {wanted}; the pictures of a sequence have one size"
            )
        said = f"{own['prompt']}, seed {recipes[0].seed}, changed by a trained model with Limner"
        film(model, recipes, output, rate, bits, said, out.quiet, not out.no_metadata)


def _make(
    task: str,
    picture: Path,
    prompt: str,
    own: dict[str, Any],
    how: How,
    wishes: Wishes | None,
    out: Output | None,
) -> None:
    out = out or Output()
    out.file()
    if how.count < 1:
        raise BadInput(f"--count should be 1 or more, not {how.count}")
    fields = {"task": task, "image": str(picture), "prompt": prompt} | (wishes or Wishes()).fields()
    fields |= {name: value for name, value in own.items() if value is not None}

    model, fields = ready(fields, how.device, how.keep)

    from limner.image import allowing
    from limner.tasks.run import begin, several

    with allowing(how.max_pixels):
        keep_all(model, several(begin(model, **fields), how.count), out)
