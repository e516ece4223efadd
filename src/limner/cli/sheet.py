"""`limner sheet`: sprites and icons on one transparent sheet, with the JSON that game engines read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from limner.cli.making import Kept, Wishes, batches, flag, ready, sides
from limner.errors import BadInput


def sheet(
    prompts: Annotated[list[str], Parameter(help="What to paint; each is a sprite.")],
    /,
    *,
    columns: Annotated[int, flag("Sprites a row; 0 packs them close.", "--columns")] = 0,
    count: Annotated[int, flag("Sprites of each prompt.", "--count", "-b")] = 1,
    padding: Annotated[int, flag("Clear pixels between sprites.", "--padding")] = 2,
    extrude: Annotated[int, flag("Pixels of each border repeated outwards, against bleeding.", "--extrude")] = 0,
    untrimmed: Annotated[bool, flag("Keep the clear borders of the sprites.", "--untrimmed")] = False,
    power_of_two: Annotated[bool, flag("Sides of the sheet are powers of two.", "--power-of-two")] = False,
    array: Annotated[bool, flag("Write the JSON's frames as a list.", "--array")] = False,
    size: Annotated[str, flag("Of a sprite: WIDTHxHEIGHT in pixels, or one number for both.", "--size")] = "",
    wishes: Wishes | None = None,
    output: Annotated[Path, flag("The sheet's file, .png or .webp; its .json lies beside.", "--output", "-o")] = Path(
        "sheet.png"
    ),
    quiet: Annotated[bool, flag("Print the paths alone, and show no progress.", "--quiet", "-q")] = False,
    device: Annotated[str, flag("auto, cpu, cuda or mps.", "--device")] = "auto",
    keep: Kept = "auto",
) -> None:
    """Paint sprites onto one sheet: limner sheet "red apple" "green pear" "lemon" --style fluent --columns 3

    The sheet has a transparent ground; families that paint none have their plain grounds cut out. The JSON is
    TexturePacker's, which Phaser, PixiJS and others load. All sprites share the style and the first seed.
    """
    if count < 1:
        raise BadInput(f"--count should be 1 or more, not {count}")
    if output.suffix.lower() not in (".png", ".webp"):
        raise BadInput(f"a sheet keeps clear ground, so it is a .png or .webp, not {output}")
    fields = sides(size) | (wishes or Wishes()).fields()
    model, fields = ready(fields, device, keep)

    from PIL import Image

    from limner.image import from_pil, to_pil
    from limner.provenance.metadata import chunks
    from limner.tasks.afford import sparing
    from limner.tasks.cutout import cutout
    from limner.tasks.run import begin, several
    from limner.tasks.sheet import sheet as lay

    lay([Image.new("RGBA", (1, 1))], ["try"], columns, padding, not untrimmed, extrude)  # refuses before it is painted
    recipes = [one for text in prompts for one in several(begin(model, **fields | {"prompt": text}), count)]
    opaque = model.family.latent.pixels == 3
    pictures = []
    for finished, _ in batches(sparing(model, recipes), recipes, quiet):
        for one in finished:
            pictures.append(to_pil(cutout(from_pil(one.image)).picture) if opaque else one.image)
    names = [text if count == 1 else f"{text} {i + 1}" for text in prompts for i in range(count)]
    made = lay(pictures, names, columns, padding, not untrimmed, extrude, power_of_two)
    parts = chunks(None)
    atlas, told = made.save(output, array, parts.png, parts.exif, parts.xmp)
    if quiet:
        print(f"{atlas}\n{told}")
    else:
        wide, high = made.atlas.size
        print(f"{atlas}  {len(pictures)} sprites on {wide}x{high}, seed {recipes[0].seed}\n{told}")
