"""Limner: an open Stable Diffusion system, small enough to read, with a model of its own inside."""

__version__ = "0.1.0"

_SURFACE = {
    "load": "limner.pipeline",
    "Model": "limner.pipeline",
    "Recipe": "limner.recipe",
    "Noise": "limner.rng",
    "Cond": "limner.types",
    "Step": "limner.types",
    "LimnerError": "limner.errors",
    "guided": "limner.diffusion.guide",
    "times": "limner.diffusion.times",
    "SAMPLERS": "limner.diffusion.samplers",
    "SCHEDULES": "limner.diffusion.times",
    "paint": "limner.tasks.run",
    "run": "limner.tasks.run",
    "begin": "limner.tasks.run",
    "painting": "limner.tasks.run",
    "describe": "limner.tasks.describe",
    "to_pil": "limner.image",
    "Client": "limner.client",
}
__all__ = ["__version__", *_SURFACE]


def __getattr__(name: str) -> object:
    """The public surface, imported when it is first asked for, so that `import limner` costs nothing."""
    if name not in _SURFACE:
        raise AttributeError(f"limner has no {name!r}; it has {', '.join(_SURFACE)}")
    from importlib import import_module

    return getattr(import_module(_SURFACE[name]), name)
