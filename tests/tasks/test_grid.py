"""Any field of a recipe is an axis, and a plot's cells are the recipes that its labels say."""

import json

import pytest
from PIL import Image

from limner.errors import BadInput, LimnerError, UnknownName
from limner.recipe import EFFORTS, Recipe, Region
from limner.tasks.grid import ALIASES, Axis, field_of, grid, parse_axis, value_of

BOX = '[{"box": "left:0-0.5", "prompt": "a cat, a dog"}]'
EXAMPLES = {  # a text for each kind of field
    "task": "edit", "style": "any", "syntax": "comfy", "noise": "nv", "prediction": "v", "seamless": "xy",
    "sampler": "Euler a", "schedule": "karras", "regions": BOX, "controls": '[{"net": "n", "image": "i"}]',
    "picture_prompts": '[{"net": "n", "eyes": "e", "image": "i"}]', "extend": "1-2-3-4", "cfg_interval": "0-1",
    "pag_interval": "0.5-1",
    "skip_interval": "0.1-0.2", "skip_layers": "7+8", "partial": "yes", "fast_decode": "on", "only_masked": "true",
    "ease_in": "no", "precision": "int8", "engine": "openvino",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("cfg=3,5,7.5", "cfg_scale", (3.0, 5.0, 7.5)),
        ("seed=1..4", "seed", (1, 2, 3, 4)),
        ("seed=1..3,9,8..6", "seed", (1, 2, 3, 9, 8, 7, 6)),
        ("steps=4..20:4", "steps", (4, 8, 12, 16, 20)),
        ("cfg_rescale=0..0.3:0.1", "cfg_rescale", (0.0, 0.1, 0.2, 0.3)),
        ("--scheduler=karras,Uniform", "schedule", ("karras", "uniform")),
        ("sampler=Euler a, DPM++ 2M", "sampler", ("euler_ancestral", "dpmpp_2m")),
        ("size=128x64,256", "size", ((128, 64), (256, 256))),
        ("effort=exact,fast", "effort", ((1, 1, 1, 0.0), (1, 1, 1, 0.25))),
        ("cfg-interval=0.1-1,0-0.5", "cfg_interval", ((0.1, 1.0), (0.0, 0.5))),
        ("skip_layers=7+8+9,7,none", "skip_layers", ((7, 8, 9), (7,), ())),
        ("skip_layers=7,8,9|7", "skip_layers", ((7, 8, 9), (7,))),
        ("vae=a-b.safetensors,c|d", "parts", (("a-b.safetensors", "c"), ("d",))),
        ("prompt=a cat, big|a {red|blue} dog", "prompt", ("a cat, big", "a {red|blue} dog")),
        ("negative=|blurry, bad", "negative", ("", "blurry, bad")),
        ("style=any,flat", "style", (None, "flat")),
        ("fast-decode=yes,no", "fast_decode", (True, False)),
        (f"regions={BOX}|none", "regions", ((Region(box="left:0-0.5", prompt="a cat, a dog"),), ())),
    ],
)
def test_values_are_those_of_the_field(text, field, values):
    axis = parse_axis(text)
    assert (axis.field, axis.values) == (field, values) and len(axis.labels) == len(values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


def test_an_effort_leaves_what_it_does_not_say():
    axis = parse_axis("effort=exact,balanced,fast", Recipe(late=0.8, deep_every=9))
    assert axis.values == ((1, 1, 1, 0), (1, 1, 1, 0.13), (1, 1, 1, 0.25))


@pytest.mark.parametrize("field", sorted(Recipe.model_fields.keys() - {"version"}))
def test_every_field_is_an_axis(field):
    text = EXAMPLES.get(field, "1")
    axis = parse_axis(f"{field}={text}")
    cell = grid(Recipe(), [axis]).cells[0]
    assert getattr(cell.recipe, field) == axis.values[0] and cell.recipe == Recipe().but(**{field: axis.values[0]})


def test_names_of_the_command_line_are_known():
    assert all(field in Recipe.model_fields for field in ALIASES.values())
    assert [field_of(name) for name in ("CFG", "guidance-scale", "Size", " seed ")] == [
        "cfg_scale",
        "cfg_scale",
        "size",
        "seed",
    ]


def test_labels_say_what_was_typed():
    assert parse_axis("cfg=3,5").labels == ("cfg 3", "cfg 5")
    assert parse_axis("sampler=Euler a").labels == ("sampler Euler a",)
    assert parse_axis("negative=|bad").labels == ("(none)", "bad")
    assert parse_axis("size=64x32").labels == ("64x32",)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("cgf=3", UnknownName, "no field of a recipe is called 'cgf': did you mean cfg"),
        ("version=3", UnknownName, "no field"),
        ("cfg", BadInput, "an axis looks like cfg=3,5,7, not 'cfg'"),
        ("cfg=", BadInput, "an axis looks like"),
        ("cfg=1,,2", BadInput, "an empty value in '1,,2'"),
        ("cfg=low", BadInput, "cfg_scale should be a valid number"),
        ("cfg=101", BadInput, "should be a number from 0 to 100"),
        ("seed=1...5", BadInput, "seed should be a valid integer"),
        ("sampler=eulr", UnknownName, "did you mean euler"),
        ("size=1xx", BadInput, "size should look like 128x128, not '1xx'"),
        ("effort=fats", UnknownName, "did you mean fast"),
        ("size=0x8", BadInput, "width should be greater than 0"),
        ("seed=0..99999999", BadInput, "at most 10,000"),
        ("steps=1..5:0", BadInput, "the step of a range should not be 0"),
        ("regions=left", BadInput, 'regions is written as JSON, such as {"box": "...", "prompt": "..."}'),
        ("cfg_interval=1-0", BadInput, "the lower first"),
        ("style=s/a/b/", BadInput, "words are replaced in the prompt alone"),
    ],
)
def test_what_is_no_axis_is_refused(text, kind, said):
    with pytest.raises(kind) as caught:
        parse_axis(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["s/red/green,dark blue/", "s/red/green|dark blue", "prompt=s/red/green,dark blue/"])
def test_words_of_the_prompt_are_replaced(text):
    axis = parse_axis(text)
    assert axis == Axis("prompt", ("green", "dark blue"), ("green", "dark blue"), "red")
    cells = grid(Recipe(prompt="a red, red cup"), [axis]).cells
    assert [cell.recipe.prompt for cell in cells] == ["a green, green cup", "a dark blue, dark blue cup"]
    with pytest.raises(BadInput, match="holds no 'red' to replace"):
        grid(Recipe(prompt="a cup"), [axis])


def test_words_are_replaced_in_the_prompt_of_another_axis():
    axes = [parse_axis("s/ed/ose/"), parse_axis("prompt=a red cup|a red hat"), parse_axis("s/a rose/one rose/")]
    cells = {cell.at: cell.recipe.prompt for cell in grid(Recipe(), axes).cells}
    assert cells == {(0, 0, 0): "one rose cup", (0, 1, 0): "one rose hat"}


def test_an_effort_is_told_whole():
    """Of a recipe with settings of its own none stay."""
    cells = grid(Recipe(deep_every=2, late=0.2), [parse_axis("effort=exact,balanced,fast")]).cells
    assert [cell.recipe for cell in cells] == [
        Recipe(**EFFORTS[name], late=0.2) for name in ("exact", "balanced", "fast")
    ]


def test_what_is_costly_to_change_varies_slowest():
    axes = [parse_axis("model=a,b"), parse_axis("seed=1,2"), parse_axis("steps=3,4")]
    cells = grid(Recipe(prompt="x"), axes).cells
    assert [cell.at for cell in cells][:5] == [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)]
    for cell in cells:
        wanted = {"model": "ab"[cell.at[0]], "seed": 1 + cell.at[1], "steps": 3 + cell.at[2], "prompt": "x"}
        assert cell.recipe == Recipe(**wanted)
    ties = grid(Recipe(), [parse_axis("seed=1,2"), parse_axis("cfg=1,2")]).cells
    assert [cell.at for cell in ties] == [(0, 0), (1, 0), (0, 1), (1, 1)]  # row by row


@pytest.mark.parametrize(
    ("axes", "said"),
    [([], "one to three axes"), (["seed=1"] * 4, "one to three axes"), (["cfg=1", "cfg_scale=2"], "the same field"),
     (["size=8", "width=9"], "the same field"), (["deep_every=2", "effort=fast"], "the same field"),
     (["seed=1..200", "steps=1..200"], "would have 40,000 pictures")],
)  # fmt: skip
def test_what_is_no_plot_is_refused(axes, said):
    with pytest.raises(LimnerError, match=said):
        grid(Recipe(), [parse_axis(text) for text in axes])


def test_a_plot_is_drawn_with_a_board_for_each_z():
    flat = grid(Recipe(), [parse_axis("seed=1,2,3"), parse_axis("cfg=1,2")])
    pictures = {cell.at: Image.new("RGBA", (64, 64), (80 * cell.at[0], 200 * cell.at[1], 0)) for cell in flat.cells}
    board = flat.draw(pictures, "a cup")
    assert board.width > 3 * 64 and board.height > 2 * 64
    colours = {pixel for _, pixel in board.getcolors(99_999)}
    assert {(80 * x, 200 * y, 0) for x in range(3) for y in range(2)} <= colours
    deep = grid(Recipe(), [*flat.axes, parse_axis("steps=1,2")])
    many = {(*at, z): picture for at, picture in pictures.items() for z in (0, 1)}
    beside, below = deep.draw(many, "a cup"), deep.draw(many, "a cup", stacked=True)
    assert beside.width > 2 * 3 * 64 > below.width and below.height > 2 * 2 * 64
    line = grid(Recipe(), [parse_axis("seed=1,2")])
    assert line.draw({(0,): pictures[0, 0]}).width > 2 * 64  # a cell may be missing


def test_the_json_holds_the_recipes_with_their_cells():
    plot = grid(Recipe(prompt="a cup"), [parse_axis("seed=1,2"), parse_axis("cfg=1,2")])
    told = json.loads(plot.to_json({(1, 0): "one.png"}))
    assert told["axes"] == {"x": {"field": "seed", "labels": ["seed 1", "seed 2"]},
                            "y": {"field": "cfg_scale", "labels": ["cfg 1", "cfg 2"]}}  # fmt: skip
    for cell, one in zip(plot.cells, told["cells"], strict=True):
        assert (one["x"], one["y"]) == cell.at and one["id"] == cell.recipe.id
        assert Recipe.from_json(json.dumps(one["recipe"])) == cell.recipe
        assert one.get("file") == ("one.png" if cell.at == (1, 0) else None)


def test_a_single_value_is_read_as_the_command_line_would():
    assert value_of("size", "64") == (64, 64) and value_of("seed", " 7 ") == 7 and value_of("prompt", "a, b") == "a, b"
