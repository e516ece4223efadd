"""Every row once: tables are checked whole, and a run that is killed goes on where it was."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from limner.errors import BadInput, NotSaved
from limner.recipe import EFFORTS, Recipe
from limner.tasks import campaign
from limner.tasks.campaign import Row, Stamp, batches, fill, plan, read_table, rows_of, run

HEAD = "prompt,seed,size\n"


def colour(recipe: Recipe) -> tuple[int, int, int, int]:
    return recipe.seed % 251, recipe.steps, len(recipe.prompt), 255


def painter(painted: list[str] | None = None):
    """Squares whose colour depends on the recipe."""

    def paint(recipes):
        for i, recipe in enumerate(recipes):
            if painted is not None:
                painted.append(recipe.prompt)
            yield i, Image.new("RGBA", (8, 8), colour(recipe))

    return paint


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def table(count: int, **more: str) -> list[Row]:
    return [Row(i + 2, {"prompt": f"cat {i}", "seed": str(i), **more}) for i in range(count)]


def whole(jobs, folder: Path) -> None:
    """Each row has its file and its line, and nothing else lies there."""
    told = lines(folder)
    assert Counter(line["row"] for line in told) == Counter(job.row for job in jobs)
    for line in told:
        job = jobs[line["row"] - 1]
        assert (line["file"], line["digest"], line["recipe"]) == (job.file, job.digest, job.recipe.id)
        assert line["seed"] == job.recipe.seed and campaign.file_digest(folder / job.file) == line["sha256"]
        with Image.open(folder / job.file) as image:
            assert image.convert("RGBA").getpixel((0, 0)) == colour(job.recipe)
    sheets = {f"contact-{i + 1:03d}.jpg" for i in range(-(-len(jobs) // campaign.A_SHEET))}
    assert {path.name for path in folder.iterdir()} - sheets == {job.file for job in jobs} | {
        "manifest.jsonl", ".campaign.lock",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a;b\n1,5;2\n", "a\tb\n1,5\t2\n", '"a",b\n"1,5",2\n', '\r\na,b\r\n"1,5",2\r\n,\r\n'])
def test_a_table_says_itself_what_parts_its_cells(text):
    assert [dict(row.cells) for row in rows_of(text)] == [{"a": "1,5", "b": "2"}]
    assert [dict(row.cells) for row in rows_of("a,b,,\n1,,,\n2")] == [{"a": "1", "b": ""}, {"a": "2", "b": ""}]


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_bytes('\ufeffPrompt,seed\n"a\ntall cat",1\n\nzwei Kätzchen\n'.encode())
    first, second = read_table(path)
    assert (first.line, dict(first.cells)) == (2, {"prompt": "a\ntall cat", "seed": "1"})
    assert (second.line, dict(second.cells)) == (5, {"prompt": "zwei Kätzchen", "seed": ""})


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"prompt\n", "holds no row"), (b"", "holds no row"), (b"a,A\n1,2\n", "two columns called 'a'"),
     (b"a,,b\n1,2,3\n", "line 2: a cell stands in no named column"), (b"a\nb\xe9\n", "not text in UTF-8"),
     (b'a,b\n"1,2\n', "no CSV that can be read"), (b"a,b\n1,2,3\n", "line 2: a cell stands in no named")],
)  # fmt: skip
def test_what_is_no_table_is_refused(data, said, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(BadInput, match=said):
        read_table(tmp_path / "t.csv")
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(tmp_path / "gone.csv")


def test_rows_become_recipes():
    text = HEAD.replace("\n", ",cfg,Style,name,skip-layers\n")
    text += '"a {style} cat",7,128x64,3.5,ink,Tom Cat.PNG,7+8\n"{a|b} dog",,,,,,\n'
    one, two = plan(rows_of(text), {"seed": 5, "steps": 9})
    wanted = {"prompt": "a ink cat", "seed": 7, "width": 128, "height": 64, "cfg_scale": 3.5, "skip_layers": (7, 8)}
    assert one.recipe == Recipe(**wanted, steps=9) and (one.row, one.line, one.file) == (1, 2, "0001-tom-cat.png")
    assert two.recipe == Recipe(prompt="{a|b} dog", seed=5, steps=9) and two.file == "0002-a-b-dog.png"
    assert len({one.digest, two.digest}) == 2 and not one.stamp


def test_a_template_takes_its_words_from_columns():
    rows = rows_of("Colour,thing,style,seed\nred,apple,flat,3\nblue,cup,,4\n")
    jobs = plan(rows, template="a {colour} { Thing }, {style}")
    assert [job.recipe.prompt for job in jobs] == ["a red apple, flat", "a blue cup, "]
    assert [job.recipe.seed for job in jobs] == [3, 4] and {job.recipe.style for job in jobs} == {None}
    named = plan(rows_of("prompt,style,name\na cup,flat,{style} one\n"))[0]
    assert named.recipe.style == "flat" and named.file == "0001-flat-one.png"
    assert fill(r"\{colour} {2$$a|b} {}", {"colour": "red"}) == "{colour} {2$$a|b} {}"
    with pytest.raises(BadInput, match=r"line 2: no column is called 'color': did you mean colour\?"):
        plan(rows, template="a {color} cup")


def test_an_effort_is_a_column_unless_the_prompt_wants_it_as_a_word():
    jobs = plan(rows_of("prompt,effort\na,fast\nb,\n"), {"late": 0.2})
    assert [job.recipe for job in jobs] == [
        Recipe(prompt="a", **EFFORTS["fast"], late=0.2),
        Recipe(prompt="b", late=0.2),
    ]
    job = plan(rows_of("effort\nsweat\n"), template="{effort} and tears")[0]
    assert job.recipe == Recipe(prompt="sweat and tears")


def test_every_bad_row_is_told_and_nothing_painted():
    rows = rows_of(HEAD + "a,x,\nb,1,\nc,2,12y\n" + "d,-1,\n" * 12)
    with pytest.raises(BadInput) as caught:
        plan(rows)
    told = str(caught.value).splitlines()
    assert told[0] == "the table has 14 rows that cannot be painted:" and told[-1] == "  and 4 more"
    assert told[1].startswith("  line 2: seed should be a valid integer") and "line 4: size should look" in told[2]
    assert len(told) == 12


@pytest.mark.parametrize(
    ("head", "said"),
    [("promt,seed", "a column 'promt'; did you mean 'prompt'"), ("cfg,cfg_scale", "cfg and cfg_scale say the same"),
     ("prompt,height,size", "height and size say the same"), ("effort,ask_every", "effort and ask_every say the same")],
)  # fmt: skip
def test_columns_that_cannot_be_meant_are_refused(head, said):
    with pytest.raises(BadInput, match=said):
        plan(rows_of(f"{head}\n{','.join('1' * (head.count(',') + 1))}\n"))


def test_check_makes_the_recipe_and_its_refusals_are_told():
    def check(fields):
        if fields["prompt"] == "bad":
            raise BadInput("no such picture")
        return Recipe.of(fields | {"steps": 3})

    assert plan(table(1), check=check)[0].recipe.steps == 3
    with pytest.raises(BadInput, match="line 7: no such picture"):
        plan([Row(7, {"prompt": "bad"})], check=check)


def test_what_a_picture_depends_on_is_in_its_digest(tmp_path):
    logo = tmp_path / "logo.png"
    Image.new("RGBA", (4, 4), "red").save(logo)
    rows = [Row(2, {"prompt": "a", "logo": "logo.png", "text": "for {prompt}"})]
    first = plan(rows, folder=tmp_path)[0]
    assert first.stamp == Stamp(logo=str(logo), text="for a")
    digests = [first.digest, plan(rows, folder=tmp_path, weights="x")[0].digest]
    digests += [plan(rows, folder=tmp_path, stamp=Stamp(at="top"))[0].digest, plan(table(1))[0].digest]
    assert plan(rows, folder=tmp_path)[0].digest == first.digest
    Image.new("RGBA", (4, 4), "blue").save(logo)
    digests.append(plan(rows, folder=tmp_path)[0].digest)
    assert len(set(digests)) == 5
    with pytest.raises(BadInput, match=r"line 2: .*gone.png does not exist"):
        plan([Row(2, {"prompt": "a", "logo": "gone.png"})], folder=tmp_path)
    with pytest.raises(BadInput, match=r"line 2: no place is called 'botom'"):
        plan(table(1), stamp=Stamp(text="x", at="botom"))


def test_a_run_fills_a_folder_and_another_paints_nothing(tmp_path):
    jobs, painted = plan(table(70)), []
    events = list(run(jobs, painter(painted), tmp_path / "out"))
    assert [event.done for event in events] == [*range(1, 71)] and all(event.fresh for event in events)
    whole(jobs, tmp_path / "out")
    again = list(run(jobs, painter(painted), tmp_path / "out"))
    assert len(painted) == 70 and [event.done for event in again] == [*range(1, 71)]
    assert not any(event.fresh for event in again) and {event.total for event in again} == {70}
    with Image.open(tmp_path / "out" / "contact-002.jpg") as sheet:
        assert sheet.width > 10 * 64
    whole(jobs, tmp_path / "out")


def test_changed_rows_are_painted_anew_under_their_new_names(tmp_path):
    list(run(plan(table(5)), painter(), tmp_path))
    (tmp_path / "0004-cat-3.png").write_bytes(b"scribbled")
    (tmp_path / "0005-cat-4.png").unlink()
    rows = table(5)
    rows[1] = Row(3, {"prompt": "dog", "seed": "1"})
    jobs, painted = plan(rows), []
    list(run(jobs, painter(painted), tmp_path))
    assert sorted(painted) == ["cat 3", "cat 4", "dog"]
    assert not (tmp_path / "0002-cat-1.png").exists() and (tmp_path / "0002-dog.png").exists()
    last = {line["row"]: line for line in lines(tmp_path)}
    assert len(lines(tmp_path)) == 8 and all(last[job.row]["digest"] == job.digest for job in jobs)
    shorter = jobs[:3]
    assert [event.fresh for event in run(shorter, painter(), tmp_path)] == [False] * 3
    assert (tmp_path / "0005-cat-4.png").exists()  # finished pictures of rows that left the table stay


def test_a_torn_line_is_dropped_and_a_damaged_one_told(tmp_path):
    jobs, painted = plan(table(3)), []
    list(run(jobs, painter(), tmp_path))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    list(run(jobs, painter(painted), tmp_path))
    assert painted == ["cat 2"]
    whole(jobs, tmp_path)
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(BadInput, match=r"manifest.jsonl is damaged at line 1"):
        list(run(jobs, painter(), tmp_path))


def test_what_others_put_there_is_not_overwritten(tmp_path):
    (tmp_path / "0002-cat-1.png").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"0002-cat-1.png is in the way"):
        list(run(plan(table(3)), painter(), tmp_path))
    assert (tmp_path / "0002-cat-1.png").read_bytes() == b"mine"


def test_what_a_broken_run_left_is_removed_where_its_row_has_another_name(tmp_path):
    """A picture that was linked and has no line, of a row that is called otherwise by now."""
    walk = run(plan(table(3)), painter(), tmp_path)
    next(walk)
    walk.close()
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    (tmp_path / ".limner-0123.partial").touch()
    (tmp_path / "0002-mine.png").write_bytes(b"mine")
    rows = table(3)
    rows[1] = Row(3, {"prompt": "dog"})
    list(run(plan(rows), painter(), tmp_path))
    assert (tmp_path / "0002-mine.png").read_bytes() == b"mine"
    (tmp_path / "0002-mine.png").unlink()
    whole(plan(rows), tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path):
    walk = run(plan(table(3)), painter(), tmp_path)
    next(walk)
    with pytest.raises(BadInput, match="in use by another campaign"):
        next(run(plan(table(3)), painter(), tmp_path))
    walk.close()
    assert len(list(run(plan(table(3)), painter(), tmp_path))) == 3


def test_settings_that_are_equal_come_in_batches(tmp_path):
    rows = [Row(i, {"prompt": f"p{i}", "seed": str(i), "size": "8" if i % 3 else "16"}) for i in range(14)]
    found = batches(plan(rows), 4)
    assert [len(part) for part in found] == [4, 1, 4, 4, 1]
    assert all(len({job.recipe.width for job in part}) == 1 for part in found)
    sizes = []

    def paint(recipes):
        sizes.append(len(recipes))
        yield from painter()(recipes)

    list(run(plan(rows), paint, tmp_path, batch=4, sheets=False))
    assert sizes == [4, 1, 4, 4, 1]


def test_saving_keeps_the_painter_neither_waiting_nor_alone(tmp_path):
    """The first picture is not saved before the painter is far ahead, and never too far."""
    far, painted, saved, ahead = threading.Event(), 0, 0, []

    def paint(recipes):
        nonlocal painted
        for i in range(len(recipes)):
            painted += 1
            ahead.append(painted - saved)
            if painted == campaign.WAITING:
                far.set()
            yield i, Image.new("RGBA", (8, 8))

    def save(image, path, recipe):
        nonlocal saved
        assert far.wait(10) and threading.current_thread() is not threading.main_thread()
        time.sleep(0.002)
        image.save(path)
        saved += 1

    assert len(list(run(plan(table(60)), paint, tmp_path, save, sheets=False))) == 60
    assert campaign.WAITING <= max(ahead) <= campaign.WAITING + 3


def test_a_full_disk_is_told_and_what_was_saved_stands(tmp_path):
    def save(image, path, recipe):
        if path.name.startswith("0003"):
            raise NotSaved(f"{path} could not be written: the disk is full")
        image.save(path)

    jobs = plan(table(4))
    with pytest.raises(NotSaved, match="the disk is full"):
        list(run(jobs, painter(), tmp_path, save))
    assert {line["row"] for line in lines(tmp_path)} == {1, 2, 4}
    list(run(jobs, painter(), tmp_path))
    whole(jobs, tmp_path)


def test_a_manifest_that_cannot_be_written_is_left_whole(tmp_path, monkeypatch):
    jobs, count = plan(table(4)), 0

    def fsync(handle):
        nonlocal count
        count += 1
        if count == 5:  # the lock's, then each picture's folder and line
            raise OSError(28, "No space left on device")

    def save(image, path, recipe):
        image.save(path)

    monkeypatch.setattr(campaign.os, "fsync", fsync)
    with pytest.raises(NotSaved, match=r"manifest.jsonl could not be written"):
        list(run(jobs, painter(), tmp_path, save, sheets=False))
    monkeypatch.undo()
    assert all(line["row"] for line in lines(tmp_path))
    list(run(jobs, painter(), tmp_path))
    whole(jobs, tmp_path)


def test_the_stamp_is_laid_over(tmp_path):
    def paint(recipes):
        for i, _ in enumerate(recipes):
            yield i, Image.new("RGBA", (96, 96), "navy")

    jobs = plan(table(1, text="SALE"), stamp=Stamp(at="middle", size=60, colour="yellow"))
    list(run(jobs, paint, tmp_path))
    with Image.open(tmp_path / jobs[0].file) as image:
        colours = {pixel for _, pixel in image.getcolors(10_000)}
    assert {(255, 255, 0, 255), (0, 0, 128, 255)} <= colours


CHILD = """
import os, sys
from pathlib import Path
from PIL import Image
from limner.recipe import Recipe
from limner.tasks.campaign import Job, Stamp, run

os.fsync = lambda handle: None  # a process that is killed loses nothing that it wrote
rows, folder, log = int(sys.argv[1]), Path(sys.argv[2]), open(sys.argv[3], "ab", buffering=0)
recipes = [Recipe(prompt=f"cat {i}", seed=i) for i in range(rows)]
jobs = [Job(i + 1, i + 2, f"{i + 1:04d}-cat-{i}.png", r, Stamp(), r.id) for i, r in enumerate(recipes)]

def paint(recipes):
    for i, recipe in enumerate(recipes):
        log.write(b"%d\\n" % recipe.seed)
        yield i, Image.new("RGBA", (8, 8), (recipe.seed % 251, recipe.steps, len(recipe.prompt), 255))

def save(image, path, recipe):
    partial = path.with_name(f".limner-{os.getpid()}.partial")
    image.save(partial, "PNG")
    os.replace(partial, path)

for event in run(jobs, paint, folder, save, sheets=False):
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed as hard there")
def test_a_thousand_rows_and_five_kills_give_each_row_once(tmp_path):
    folder, log, manifest = tmp_path / "out", tmp_path / "log", tmp_path / "out" / "manifest.jsonl"
    chance = random.Random(3)
    command = [sys.executable, "-c", CHILD, "1000", str(folder), str(log)]
    for share in (0.0, 0.2, 0.4, 0.6, 0.8):
        goal = int(150 * (1000 * share + chance.randrange(200)))  # bytes: a line has more
        child = subprocess.Popen(command)
        while child.poll() is None and (not manifest.exists() or manifest.stat().st_size < goal):
            time.sleep(0.0005)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    subprocess.run(command, check=True)
    recipes = [Recipe(prompt=f"cat {i}", seed=i) for i in range(1000)]
    jobs = [campaign.Job(i + 1, i + 2, f"{i + 1:04d}-cat-{i}.png", r, Stamp(), r.id) for i, r in enumerate(recipes)]
    whole(jobs, folder)
    painted = Counter(log.read_text().split())
    lost = sum(painted.values()) - 1000  # painted, and not safe when the process was killed
    assert len(painted) == 1000 and lost <= 5 * (campaign.WAITING + 3)
