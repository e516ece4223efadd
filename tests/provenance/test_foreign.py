import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.diffusion.samplers import SAMPLERS
from limner.diffusion.times import SCHEDULES as OUR_SCHEDULES
from limner.provenance.foreign import (
    AUTOMATIC,
    LABELS,
    NAMES,
    SAME,
    SCHEDULE_LABELS,
    SCHEDULES,
    Foreign,
    from_graph,
    from_parameters,
    sampler_of,
    schedule_of,
    split,
    understood,
)
from limner.provenance.metadata import Receipt, parameters
from limner.recipe import MAX_SEED, Recipe

A1111 = """a (red:1.2) apple,
on a table
Negative prompt: blurry,
ugly
Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 965400086, Size: 512x768, \
Model hash: 45dee52b, Model: "a, b", VAE hash: 1234abcd, Clip skip: 2, RNG: CPU, ENSD: 31337, Version: v1.10.1"""
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=80)
PLAIN = WORDS.filter(lambda text: not any(line.startswith("Negative prompt:") for line in text.split("\n")))


def test_every_name_means_one_of_ours():
    for ours in (*LABELS.values(), *NAMES.values(), *SAME):
        assert SAMPLERS.name(ours) == ours
    for label, ours in LABELS.items():
        assert SAMPLERS.name(label) == ours, label
    assert {SCHEDULE_LABELS[label] for label in SCHEDULE_LABELS} <= set(SCHEDULES)
    for ours in (*SCHEDULES.values(), *AUTOMATIC.values()):
        assert OUR_SCHEDULES.name(ours) == ours


def test_the_text_of_automatic1111():
    found = from_parameters(A1111)
    assert found.fields == {
        "prompt": "a (red:1.2) apple,\non a table", "negative": "blurry,\nugly", "syntax": "a1111", "steps": 30,
        "sampler": "dpmpp_2m", "schedule": "karras", "cfg_scale": 6.5, "seed": 965400086, "width": 512, "height": 768,
        "model": "a, b", "clip_skip": 2, "noise": "cpu",
    }  # fmt: skip
    assert found.unread == {"ENSD": "31337"}
    assert found.doubts == ()
    Recipe.of(found.fields)


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M Karras", "", ("dpmpp_2m", "karras")),  # before schedules had a name of their own
        ("Euler a", "", ("euler_ancestral", "linspace")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 3M SDE", "Automatic", ("dpmpp_3m_sde", "exponential")),
        ("Euler", "Automatic", ("euler", "linspace")),
        ("Euler", "Uniform", ("euler", "linspace")),
        ("Euler", "SGM Uniform", ("euler", "sgm_uniform")),
        ("DDIM", "", ("euler", "ddim")),
        ("euler_a discrete", "", ("euler_ancestral", "linspace")),  # stable-diffusion.cpp
        ("DPM fast", "", (None, None)),
        ("DPM++ 2M", "Nobody's", ("dpmpp_2m", None)),
    ],
)
def test_samplers_and_schedules(sampler: str, schedule: str, expected: tuple[str | None, str | None]):
    said = f", Schedule type: {schedule}" if schedule else ""
    found = from_parameters(f"x\nSteps: 20, Sampler: {sampler}{said}, Seed: 1, Size: 64x64, RNG: NV")
    assert (found.fields.get("sampler"), found.fields.get("schedule")) == expected
    assert found.fields["noise"] == "nv"
    assert ("Sampler" in found.unread) == (expected[0] is None)
    assert ("Schedule type" in found.unread) == (schedule == "Nobody's")


@given(prompt=PLAIN, negative=PLAIN, seed=st.integers(0, MAX_SEED), cfg=st.integers(0, 400), model=WORDS)
def test_our_own_text_comes_back(prompt: str, negative: str, seed: int, cfg: int, model: str):
    recipe = Recipe(
        prompt=prompt, negative=negative, seed=seed, cfg_scale=cfg / 4, model=model.strip() or "mini",
        style="pixel art", width=96, height=64, steps=7, sampler="dpmpp_3m", schedule="uniform",
    )  # fmt: skip
    found = from_parameters(parameters(Receipt(recipe, {}, "float32")))
    assert Recipe.of(found.fields) == recipe
    assert found.unread == {} and found.doubts == ()


@given(st.text(max_size=300))
def test_no_text_is_too_strange(text: str):
    for said in (text, f"{text}\nSteps: {text}, Sampler: {text}, Seed: {text}, Size: {text}", f"{{{text}"):
        found = understood(said)
        Recipe.of(found.fields)
        json.dumps([found.fields, found.unread, found.doubts]).encode()
        json.dumps([found.fields, found.unread, found.doubts], ensure_ascii=False).encode()


HOSTILE = [
    "Steps: " + "9" * 5000 + ", Sampler: Euler, Seed: -1, Size: 0x0, CFG scale: nan",
    "x\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, CFG scale: 1e999, Hires upscale: inf, Clip skip: 1e400",
    "a: " * 300_000 + "\nSteps: 1, Seed: 1, Sampler: x",
    "Steps: 1, Seed: 1, Sampler: x, " + 'k: ["k: ["' * 100_000,
    "Steps: 1, Seed: 1, Sampler: x, k: " + "[" * 500_000,
    "w" * 900_000,
    "Steps: 1, Seed: 1, Sampler: x, " + '"\\' * 400_000,
    "\n" * 900_000 + "Steps: 1, Seed: 1, Sampler: x",
    '{"1": ' + "[" * 100_000,
    "\x00\ud800\nSteps: 1, Seed: 1, Sampler: \udfff, Model: \ud83d, Refiner: \ud800",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_end_soon(text: str):
    found = understood(text)
    Recipe.of(found.fields)
    json.dumps([found.fields, found.unread, found.doubts], ensure_ascii=False).encode()


def test_what_has_no_field_is_named():
    found = from_parameters(
        "a <lora:x:1>\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 512x512, Denoising strength: 0.7, Mask blur: 4, "
        "Model hash: aa, Token merging ratio: 0.5, Version: v1.6.0"
    )
    assert found.unread == {"Denoising strength": "0.7", "Mask blur": "4", "Token merging ratio": "0.5"}
    assert len(found.doubts) == 3  # whose noise, which picture, which LoRA
    assert "syntax" not in found.fields  # plain words read alike in every syntax


def test_a_second_pass():
    found = from_parameters(
        "x\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x512, RNG: NV, Denoising strength: 0.4, Hires upscale: 2, "
        "Hires steps: 7, Hires upscaler: Latent, Variation seed: 9, Variation seed strength: 0.25, Tiling: True, "
        "Refiner: refine [7440042bbd], Refiner switch at: 0.75"
    )
    expected = {"hires": 2.0, "hires_strength": 0.4, "subseed": 9, "variation": 0.25, "seamless": "xy"}
    expected |= {"refiner": "refine", "refine_at": 0.75}
    assert found.fields.items() >= expected.items()
    assert found.unread == {"Hires steps": "7", "Hires upscaler": "Latent"}


def test_other_programs():
    sdnext = from_parameters(
        "a cat\nNegative prompt: dog\nSteps: 20, Size: 1024x1024, Sampler: Euler a, Seed: 5, CFG scale: 6, "
        "App: SD.Next, Version: 9f2f1b1, Operations: txt2img, Model: sdxl, Model hash: aa, Time: 5.2s"
    )
    assert sdnext.fields["sampler"] == "euler_ancestral" and "schedule" not in sdnext.fields
    assert sdnext.unread == {}
    cpp = from_parameters(
        "x\nSteps: 20, CFG scale: 7.0, Guidance: 3.5, Eta: 0, Seed: 42, Size: 512x512, Model: m.safetensors, "
        'RNG: cuda, Sampler: euler_a karras, Version: stable-diffusion.cpp master, SDCPP: {"a": [1, 2], "b": "x, y: z"}'
    )
    assert cpp.fields["noise"] == "nv" and cpp.fields["schedule"] == "karras"
    assert cpp.unread == {"Guidance": "3.5", "Eta": "0"}
    wild = from_parameters("x\nSteps: 2, Sampler: Euler, Seed: 1, Size: 8x8\nTemplate: {a|b}")
    assert wild.fields["prompt"] == "x" and wild.unread == {}


def test_a_prompt_that_begins_like_json():
    found = understood("{red|blue} apple\nSteps: 2, Sampler: Euler, Seed: 1, Size: 8x8")
    assert found.fields["prompt"] == "{red|blue} apple" and found.fields["steps"] == 2
    assert from_graph("{red|blue}").fields == {} and from_graph("[]").fields == {}


def test_words_alone():
    assert from_parameters("a cat\nNegative prompt: dog") == Foreign({"prompt": "a cat", "negative": "dog"})
    assert split("a: b, c: d, e: f") == ("a: b, c: d, e: f", "", {})
    assert from_parameters("").fields == {"prompt": "", "negative": ""}


def graph(**changes: Any) -> dict[str, Any]:
    """A plain graph of ComfyUI's, its sampler's inputs changed."""
    inputs = {
        "seed": 7, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    return {
        "3": {"class_type": "KSampler", "inputs": inputs | changes},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
        "11": {"class_type": "PrimitiveString", "inputs": {"value": "dog"}},
    }


def test_a_graph():
    found = understood(json.dumps(graph()))
    assert found.fields == {
        "prompt": "a cat", "negative": "dog", "syntax": "comfy", "noise": "cpu", "sampler": "euler",
        "schedule": "linspace", "steps": 20, "cfg_scale": 8, "seed": 7, "width": 512, "height": 768,
        "model": "sd15.safetensors",
    }  # fmt: skip
    assert found.unread == {} and found.doubts == ()


def test_a_graph_tells_what_it_does_not_tell():
    nodes = graph(denoise=0.5, positive=["20", 0], sampler_name="dpm_fast", seed=["21", 0])
    nodes["20"] = {"class_type": "ConditioningCombine", "inputs": {"conditioning_1": ["6", 0]}}
    nodes["21"] = {"class_type": "SeedFromTheWeb", "inputs": {}}
    found = from_graph(json.dumps(nodes))
    assert {"seed", "positive", "sampler", "denoise", "ConditioningCombine", "SeedFromTheWeb"} == set(found.unread)
    assert "prompt" not in found.fields and "seed" not in found.fields
    two = graph() | {"30": graph()["3"]}
    assert from_graph(json.dumps(two)).fields == {}
    two["30"]["inputs"]["latent_image"] = ["3", 0]  # a second pass
    assert from_graph(json.dumps(two)).unread == {"KSampler": "1 of these nodes"}


def test_a_graph_of_parts():
    nodes = graph()
    del nodes["3"]
    parts = {"noise": "RandomNoise", "guider": "CFGGuider", "sampler": "KSamplerSelect", "sigmas": "BasicScheduler"}
    insides: dict[str, dict[str, Any]] = {
        "noise": {"noise_seed": 11},
        "guider": {"cfg": 3.5, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]},
        "sampler": {"sampler_name": "dpmpp_2m"},
        "sigmas": {"scheduler": "karras", "steps": 12, "denoise": 1.0},
    }
    nodes |= {name: {"class_type": kind, "inputs": insides[name]} for name, kind in parts.items()}
    links = {name: [name, 0] for name in parts} | {"latent_image": ["5", 0]}
    nodes["3"] = {"class_type": "SamplerCustomAdvanced", "inputs": links}
    found = from_graph(json.dumps(nodes))
    expected = {"seed": 11, "cfg_scale": 3.5, "sampler": "dpmpp_2m", "schedule": "karras", "steps": 12}
    assert found.fields.items() >= expected.items() and found.unread == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just(["3", 0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["class_type", "inputs", "_meta"]), JSON), st.data())
def test_no_graph_is_too_strange(node: dict[str, Any], data: st.DataObject):
    name = data.draw(st.sampled_from([*graph()["3"]["inputs"]]))
    for nodes in (graph() | {"6": node}, graph() | {"3": node}, graph(**{name: data.draw(JSON)}), [node]):
        found = from_graph(json.dumps(nodes))
        Recipe.of(found.fields)
        json.dumps([found.fields, found.unread, found.doubts], ensure_ascii=False).encode()


def test_names_of_nobody():
    assert sampler_of("") is None and schedule_of("") is None
    assert schedule_of("Automatic", "Heun") == "linspace"
