"""The programs that `peers.py` measures, each behind the same verbs; nothing of them is imported before it is opened.

`open` loads a job's checkpoint and gives what can be asked of it: "text" (both prompts), "step" (one guided
evaluation) and "decode", functions that answer with arrays; or "whole", for a program that does not open up: it paints
a picture of one step and tells the seconds of its parts itself. What does not compute its steps whole has "painted",
a picture of many steps, besides. A setting is a row of data.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Verbs = dict[str, Callable[[], Any]]
PROMPTS = ("a red apple on a wooden table", "")  # what is wanted, and what is not
SCALE = 5.0  # of guidance
SEED = 42  # of the picture that whole programs paint
STEPS = 20  # of the picture that is painted, or reckoned from its parts
DRAWN = 4  # inputs that a calibration sees
TRACED = 5.2  # times its file in fp16 that a conversion in fp32 takes, as we reckon


@dataclass(frozen=True)
class Job:
    """One checkpoint, and how it is asked."""

    family: str
    file: str  # the checkpoint as one file, or the name of a model that ships
    folder: str  # and as a folder of diffusers
    work: str  # where inputs lie (x.npy, z.npy) and answers go
    size: int  # pixels of a side
    t: float  # the time of the step, 1 is noise
    clock: float  # what the network is told of it
    first: float  # the noise level s/a that a walk begins with
    device: str = "cpu"
    threads: int = 1
    tiny: bool = False
    emulated: bool = False  # bf16 also where the machine has none
    pictures: int = 1  # in one batch

    def array(self, name: str) -> Any:
        return np.load(Path(self.work) / f"{name}.npy")


@dataclass(frozen=True)
class Peer:
    """A program in one setting."""

    name: str
    packages: tuple[str, ...]
    open: Callable[[Job], Verbs]
    lacks: Callable[[Job], str] = lambda _: ""  # why it cannot do this job here; "": it can
    prepare: Callable[[Job], None] | None = None  # what is done once before it is opened, in a process of its own


def why_not(peer: Peer, job: Job) -> str:
    """Why a peer is not measured, in words; "" where it is."""
    if missing := [name for name in peer.packages if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    return peer.lacks(job)


def has_bf16(job: Job) -> bool:
    """Whether the machine multiplies in bf16 itself."""
    import torch

    if job.device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def wide(job: Job, dtype: str) -> str:
    """Why bf16 is not measured here."""
    emulates = dtype == "bfloat16" and not (job.emulated or has_bf16(job))
    return "no bf16 in this processor (--emulated measures it all the same)" if emulates else ""


def limner(job: Job, precision: str = "", keep: str = "all", engine: str = "", effort: str = "") -> Verbs:
    import torch

    from limner import load, paint
    from limner.diffusion.guide import guided
    from limner.memory import hold_freed
    from limner.place import find_place
    from limner.rng import Noise
    from limner.tasks.run import begin
    from limner.words import Reading

    torch.set_num_threads(job.threads)
    if keep == "all":
        hold_freed()  # as the command line does
    place = find_place(job.device, keep=keep).precisely(precision).driven(engine)  # type: ignore[arg-type]
    model = load(job.file, place)
    for net in model.family.needs if keep == "all" else ():
        model.nets[net]  # brought to its place, as the others do when they load
    x, z = (torch.from_numpy(job.array(name)).to(place.device) for name in "xz")

    def text() -> list[Any]:
        size = (job.size, job.size)
        return [model.encode([words], how=Reading(negative=not words, size=size)) for words in PROMPTS]

    told = text()
    denoiser = guided(*(model.denoiser(each) for each in told), scale=SCALE)

    def step() -> Any:
        x0 = denoiser(x, job.t)
        return model.path.target(x0, model.path.eps(x, x0, job.t), job.t).cpu().numpy()

    def picture() -> Any:
        """What a whole program paints: one step of Euler from the noise of NVIDIA cards."""
        t = model.path.time(job.first) if job.first else 1.0
        noise = Noise(SEED, "nv")(1, *x.shape[1:]).to(place.device)
        return model.to_image(denoiser(model.path.s(t) * noise, t))[:, :3].numpy()

    def painted() -> Any:
        """The whole of it, from words to pixels, by the deterministic sampler that saves most steps."""
        wishes: dict[str, Any] = {"width": job.size, "height": job.size, "steps": STEPS, "sampler": "dpmpp_2m"}
        return paint(
            model, begin(model, prompt=PROMPTS[0], cfg_scale=SCALE, seed=SEED, effort=effort, **wishes)
        ).numpy()

    verbs = {"text": text, "step": step, "decode": lambda: model.to_image(z)[:, :3].numpy(), "picture": picture}
    return verbs | ({"painted": painted} if effort else {})


def on_card(job: Job, engine: str, precision: str = "") -> str:
    """Why what is Limner's for cards is not measured here."""
    from limner.place import engines, precisions

    if job.device != "cuda":
        return "measured on a card alone"
    if engine and engine not in engines(job.device):
        return f"{engine} does not serve this card"
    return f"no {precision} in this card" if precision and precision not in precisions(job.device) else ""


def alike(job: Job, precision: str) -> str:
    """Limner's own choice is a row of its own, and what a device cannot compute in has none."""
    from limner.place import find_place, precisions

    if find_place(job.device).precision == precision:  # type: ignore[arg-type]
        return f"the same as limner here, which takes {precision} by itself"
    if precision not in precisions(job.device):
        return f"{job.device} does not compute in {precision} here"
    return wide(job, "bfloat16") if precision == "bf16" else ""


def pipeline(job: Job, dtype: str) -> Any:
    """A folder as diffusers opens it."""
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    without = dict.fromkeys(("text_encoder_3", "tokenizer_3") if job.family == "sd35" else ())  # T5
    pipe = diffusers.DiffusionPipeline.from_pretrained(job.folder, torch_dtype=getattr(torch, dtype), **without)
    return pipe.to(job.device)


def conditions(job: Job, pipe: Any) -> dict[str, Any]:
    """What the network is told, the unwanted row first, by its argument's name; as the pipeline encodes it."""
    import torch

    if job.family == "sd15":
        wanted, unwanted = pipe.encode_prompt(PROMPTS[0], job.device, job.pictures, True)
        return {"encoder_hidden_states": torch.cat([unwanted, wanted])}
    wanted, unwanted, pooled, unpooled = pipe.encode_prompt(
        PROMPTS[0], **({"prompt_2": None, "prompt_3": None} if job.family == "sd35" else {}), device=job.device,
        num_images_per_prompt=job.pictures,
    )  # fmt: skip
    tokens, pooled = torch.cat([unwanted, wanted]), torch.cat([unpooled, pooled])
    if job.family == "sd35":
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}
    sizes = torch.tensor([[job.size, job.size, 0, 0, job.size, job.size]] * len(tokens)).to(tokens)
    return {"encoder_hidden_states": tokens, "text_embeds": pooled, "time_ids": sizes}


def called(net: Any, x: Any, clock: Any, told: Mapping[str, Any]) -> Any:
    """The network's answer; SDXL's UNet takes what is told besides in a dictionary."""
    more = {name: value for name, value in told.items() if name in ("text_embeds", "time_ids")}
    plain = {name: value for name, value in told.items() if name not in more}
    plain |= {"added_cond_kwargs": more} if more else {}
    return net(x, timestep=clock, return_dict=False, **plain)[0]


def combined(both: Any) -> Any:
    """The guided answer of a batch whose first half is the unwanted."""
    unwanted, wanted = both[: len(both) // 2], both[len(both) // 2 :]
    return unwanted + SCALE * (wanted - unwanted)


def diffusers(
    job: Job, dtype: str = "float32", last: bool = False, compiled: bool = False, medium: bool = False
) -> Verbs:
    import torch

    pipe = pipeline(job, dtype)
    name = "transformer" if job.family == "sd35" else "unet"
    if medium:
        torch.set_float32_matmul_precision("medium")
    if last:
        getattr(pipe, name).to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = job.device == "cpu"  # weights are folded in
        how: Any = {} if job.device == "cpu" else {"mode": "reduce-overhead", "fullgraph": True}  # with CUDA graphs
        setattr(pipe, name, torch.compile(getattr(pipe, name), **how))
        pipe.vae.decoder = torch.compile(pipe.vae.decoder)
    net, own = getattr(pipe, name), getattr(torch, dtype)
    x, z = (torch.from_numpy(job.array(each)).to(job.device, own) for each in "xz")
    clock = torch.tensor([job.clock] * 2 * job.pictures, device=job.device)
    told = conditions(job, pipe)

    def step() -> Any:
        return combined(called(net, torch.cat([x, x]), clock, told).float()).cpu().numpy()

    def decode() -> Any:
        said = pipe.vae.config
        picture = pipe.vae.decode(z / said.scaling_factor + (said.shift_factor or 0), return_dict=False)[0]
        return (picture.float() / 2 + 0.5).clamp(0, 1).cpu().numpy()

    return {"text": lambda: conditions(job, pipe), "step": step, "decode": decode}


def compiler(job: Job, dtype: str) -> str:
    return wide(job, dtype) or (
        "" if shutil.which("g++") else "torch.compile needs a C++ compiler, and g++ is not here"
    )


def graphs(job: Job) -> Path:
    return Path(job.work) / "openvino"


def convert(job: Job, int8: bool = False) -> None:
    """The network and the decoder as OpenVINO keeps them, and what the network is told, as arrays."""
    import openvino
    import torch

    from limner.memory import free

    there = graphs(job)
    if not (there / "net.xml").exists():
        there.mkdir(exist_ok=True)
        halves = TRACED * Path(job.file).stat().st_size > free()
        pipe = pipeline(job, "float16" if halves else "float32")
        told = {name: value.float() for name, value in conditions(job, pipe).items()}
        said = pipe.vae.float().config
        for name in [name for name in pipe.components if name.startswith("text_encoder")]:
            setattr(pipe, name, None)  # of the large models not everything fits beside the graph
        x, z = (torch.from_numpy(job.array(name)) for name in "xz")
        if halves:  # as OpenVINO has large models: linear layers stay as they are in the files
            from openvino.frontend.pytorch.patch_model import __make_16bit_traceable

            __make_16bit_traceable(pipe.transformer if job.family == "sd35" else pipe.unet)

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = pipe.transformer if job.family == "sd35" else pipe.unet

            def forward(self, x: Any, clock: Any, *rest: Any) -> Any:
                return called(self.net, x, clock, dict(zip(told, rest, strict=True)))

        class Decoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.vae = pipe.vae

            def forward(self, z: Any) -> Any:
                z = z / said.scaling_factor + (said.shift_factor or 0)
                return (self.vae.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

        inputs = (torch.cat([x, x]), torch.tensor([job.clock] * 2), *told.values())
        for name, module, example in (("net", Net(), inputs), ("decoder", Decoder(), (z,))):
            shapes = [list(value.shape) for value in example]
            graph = openvino.convert_model(module.eval(), example_input=example, input=shapes)
            openvino.save_model(graph, there / f"{name}.xml")  # in fp16, as the checkpoint is
        np.savez(there / "told.npz", **{f"{i}": value.numpy() for i, value in enumerate(told.values())})
    if int8 and not (there / "int8.xml").exists():
        import nncf

        draw, kept = np.random.default_rng(1), np.load(there / "told.npz")
        seen = [
            (
                draw.standard_normal((2, *job.array("x").shape[1:])).astype(np.float32),
                np.full(2, job.clock * (i + 1) / DRAWN, np.float32),
                *kept.values(),
            )
            for i in range(DRAWN)
        ]
        graph = openvino.Core().read_model(there / "net.xml")
        graph = nncf.quantize(graph, nncf.Dataset(seen), subset_size=DRAWN, model_type=nncf.ModelType.TRANSFORMER)
        openvino.save_model(graph, there / "int8.xml")


def openvino(job: Job, hint: str = "f32", int8: bool = False) -> Verbs:
    """Text is not asked: its conditions come from diffusers."""
    import openvino

    core = openvino.Core()
    hint = ("bf16" if has_bf16(job) else "f32") if int8 else hint
    how = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": job.threads}
    net, decoder = (
        core.compile_model(graphs(job) / f"{name}.xml", "CPU", how) for name in ("int8" if int8 else "net", "decoder")
    )
    x, z = (job.array(name) for name in "xz")
    inputs = [np.concatenate([x, x]), np.full(2, job.clock, np.float32), *np.load(graphs(job) / "told.npz").values()]
    return {"step": lambda: combined(net(inputs)[0]), "decode": lambda: decoder([z])[0]}


def on_cpu(job: Job, dtype: str = "float32") -> str:
    if job.pictures > 1:
        return "measured with one picture alone"
    return "measured on the CPU alone" if job.device != "cpu" else wide(job, dtype)


def sdcpp(job: Job, kind: str) -> Verbs:
    from stable_diffusion_cpp import StableDiffusion

    program = StableDiffusion(
        model_path=job.file, wtype=kind, n_threads=job.threads, vae_decode_only=True, verbose=False
    )

    def whole() -> tuple[dict[str, float], Any]:
        laps = [time.perf_counter()]
        (picture,) = program.generate_image(
            PROMPTS[0], PROMPTS[1], width=job.size, height=job.size, cfg_scale=SCALE, sample_method="euler",
            sample_steps=1, sigmas=f"{job.first or 1.0},0", seed=SEED,
            progress_callback=lambda *_: laps.append(time.perf_counter()),
        )  # fmt: skip
        laps.append(time.perf_counter())
        begun, walks, walked, done = (laps[0], *laps[-3:])
        seconds = {"text": walks - begun, "step": walked - walks, "decode": done - walked}
        return seconds, np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255

    return {"whole": whole}


def published(job: Job) -> str:
    return "knows the published sizes alone" if job.tiny else on_cpu(job)


def known() -> Iterator[Peer]:
    """Every peer in every setting; a new setting is a line here."""
    yield Peer("limner", ("limner",), limner)
    for precision in ("fp32", "bf16", "fp16", "int8"):
        yield Peer(
            f"limner {precision}", ("limner",),
            lambda job, precision=precision: limner(job, precision),  # type: ignore[misc]
            lambda job, precision=precision: alike(job, precision),  # type: ignore[misc]
        )  # fmt: skip
    for precision in ("", "int8"):
        yield Peer(
            f"limner openvino {precision}".strip(), ("limner", "openvino"),
            lambda job, precision=precision: limner(job, precision, engine="openvino"), on_cpu,  # type: ignore[misc]
        )  # fmt: skip
    for engine, precision in (("", ""), ("openvino", ""), ("openvino", "int8")):
        yield Peer(
            " ".join(filter(None, ("limner", engine, precision, "balanced"))), ("limner", *filter(None, (engine,))),
            lambda job, how=(precision, "all", engine, "balanced"): limner(job, *how),  # type: ignore[misc]
            on_cpu if engine else lambda _: "",
        )  # fmt: skip
    for engine, precision in (("recorded", ""), ("compiled", ""), ("", "fp8"), ("compiled", "fp8")):
        yield Peer(
            " ".join(filter(None, ("limner", engine, precision))), ("limner",),
            lambda job, how=(precision, "all", engine): limner(job, *how),  # type: ignore[misc]
            lambda job, how=(engine, precision): on_card(job, *how),  # type: ignore[misc]
        )  # fmt: skip
    for keep in ("one", "layer"):
        yield Peer(f"limner keep {keep}", ("limner",), lambda job, keep=keep: limner(job, keep=keep))  # type: ignore[misc]
    for dtype, short in (("float32", "fp32"), ("bfloat16", "bf16")):
        for words, more in (
            ("", {}), (" medium", {"medium": True}), (" channels_last", {"last": True}),
            (" compiled", {"last": True, "compiled": True}),
        ):  # fmt: skip
            if words == " medium" and dtype == "bfloat16":
                continue  # it is a matter of fp32
            lacks = compiler if "compiled" in more else wide
            yield Peer(
                f"diffusers {short}{words}", ("diffusers", "transformers", "accelerate"),
                lambda job, dtype=dtype, more=more: diffusers(job, dtype, **more),  # type: ignore[misc]
                lambda job, dtype=dtype, lacks=lacks: lacks(job, dtype),  # type: ignore[misc]
            )  # fmt: skip
    needs = ("openvino", "diffusers", "transformers", "accelerate")
    yield Peer("openvino fp32", needs, openvino, on_cpu, convert)
    yield Peer("openvino bf16", needs, lambda job: openvino(job, "bf16"), lambda job: on_cpu(job, "bfloat16"), convert)
    yield Peer(
        "openvino int8", (*needs, "nncf"), lambda job: openvino(job, int8=True), on_cpu, lambda job: convert(job, True)
    )
    for kind in ("f16", "q8_0"):
        yield Peer(f"sd.cpp {kind}", ("stable_diffusion_cpp",), lambda job, kind=kind: sdcpp(job, kind), published)  # type: ignore[misc]


PEERS = {peer.name: peer for peer in known()}
THREADS = os.cpu_count() or 1
