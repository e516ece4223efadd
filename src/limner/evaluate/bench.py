"""What every figure stands on: the model, its judge, the real pictures and the painted ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from limner.errors import BadInput
from limner.evaluate.metrics import small
from limner.evaluate.people import Crowd, crowd
from limner.evaluate.samples import COLOURED, SHEET, ByText, Case, Plan, by_style, cells, halves, pooled, rounds, unlike
from limner.models.eye import Eye
from limner.pipeline import Model
from limner.recipe import Recipe
from limner.rng import seed_of
from limner.train.data import Pictures
from limner.train.splits import Split, splits

PART = 64  # pictures looked at together


@dataclass(frozen=True)
class Judge:
    """The eye that evaluates and never reranks, with its heads in fp32."""

    model: Model

    @cached_property
    def eye(self) -> Eye:
        if "judge" not in self.model.nets:
            raise BadInput(f"this {self.model.family.name} model has no judge, the eye that evaluation needs")
        return cast(Eye, self.model.nets["judge"])

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """B 4 H W, bytes, to B F, each row of mean 0 and deviation 1."""
        found = []
        for part in pictures.split(PART):
            with self.model.place.autocast():
                found.append(self.eye.features(part.to(self.model.place.device).float() / 255).float().cpu())
        return torch.cat(found)

    @torch.inference_mode()
    def seen(self, features: Tensor) -> Tensor:
        """Features to unit vectors B S, beside those of texts."""
        return F.normalize(self.eye.picture_out(features.to(self.model.place.device)).cpu(), dim=1)

    @torch.inference_mode()
    def styles(self, features: Tensor) -> Tensor:
        """Features to the number of the likeliest style: B."""
        return self.eye.style_out(features.to(self.model.place.device)).argmax(1).cpu()

    @torch.inference_mode()
    def texts(self, phrases: Sequence[str]) -> Tensor:
        """Phrases to unit vectors B S."""
        return self.eye.read(pooled(self.model, phrases).to(self.model.place.device)).cpu()


@dataclass(frozen=True)
class Bench:
    model: Model
    pictures: Pictures
    plan: Plan
    recipe: Recipe  # what every picture has in common
    painted: dict[str, Tensor] = field(default_factory=dict)  # by the names of `asked`, bytes

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.model)

    @cached_property
    def kinds(self) -> list[Split]:
        return splits(self.pictures.words)

    def cells(self, *kinds: Split) -> list[Case]:
        """The cases of these splits; of all where none is named."""
        keep = (not kinds or kind in kinds for kind in self.kinds)
        return cells(self.pictures.words, keep)

    def told(self, cases: Sequence[Case]) -> list[tuple[str, str | None]]:
        """The prompt of each case, and its style where the model knows it."""
        return [(case.name, case.style if case.style in self.model.family.styles else None) for case in cases]

    def rows(self, *kinds: Split) -> list[int]:
        return [row for row, kind in enumerate(self.kinds) if kind in kinds]

    @cached_property
    def halves(self) -> tuple[list[Case], list[Case]]:
        """Two halves of training pictures: the prompts come from the first, both are real sets to compare with."""
        draw = random.Random(seed_of(self.plan.seed, "halves"))
        return halves(by_style(self.cells("train")), self.plan.spread, draw)

    @cached_property
    def cases(self) -> dict[str, list[Case]]:
        """The prompts of each retrieval figure: no two share a concept or a name."""
        found = {"train": unlike(self.halves[0], self.plan.prompts)}
        for kind in ("pair", "concept"):
            draw = random.Random(seed_of(self.plan.seed, kind))
            found[kind] = unlike(rounds(by_style(self.cells(kind)), draw), self.plan.prompts)
        return found

    @cached_property
    def diverse(self) -> list[list[Case]]:
        """Concepts that training shows in three styles or more: all cases of each."""
        groups: dict[str, list[Case]] = {}
        for case in self.cells("train"):
            groups.setdefault(case.concept, []).append(case)
        many = [group for group in groups.values() if len(group) >= 3]
        return random.Random(seed_of(self.plan.seed, "diverse")).sample(many, min(len(many), self.plan.diverse[0]))

    @cached_property
    def people(self) -> Crowd:
        return crowd(self.pictures.words, self.rows("train"), self.plan.people, self.plan.seed)

    @cached_property
    def asked(self) -> Mapping[str, list[Recipe]]:
        """Every picture that is painted, by the figure it serves; those of one prompt stand together."""
        plan = self.plan

        def several(prompts: Sequence[tuple[str, str | None]], count: int, *names: object) -> list[Recipe]:
            return [
                self.recipe.but(prompt=prompt, style=style, seed=seed_of(plan.seed, *names, prompt, style, k) % 2**32)
                for prompt, style in prompts
                for k in range(count)
            ]

        asked = {kind: several(self.told(cases), plan.seeds, "retrieval") for kind, cases in self.cases.items()}
        ready = set(self.cases["train"])
        asked["spread"] = several(self.told([c for c in self.halves[0] if c not in ready]), 1, "retrieval")
        asked["empty"] = several([("", None)], plan.empty, "empty")
        asked["colour"] = several([(f"a {pair}", None) for pair in COLOURED], plan.coloured, "colour")
        asked["diverse"] = several([(group[0].name, None) for group in self.diverse], plan.diverse[1], "diverse")
        asked["people"] = several(self.told(self.people.told), 1, "people")
        asked["anybody"] = several([(case.name, None) for case in self.people.untold], plan.seeds, "anybody")
        asked["sheet"] = [self.recipe.but(prompt=prompt, seed=k) for prompt in SHEET for k in range(plan.sheet)]
        return asked

    def real(self, rows: Sequence[int]) -> Tensor:
        """Real pictures: B 4 H W, bytes."""
        return torch.from_numpy(self.pictures.pixels[list(rows)])

    def first(self, kind: str) -> Tensor:
        """The first picture of each prompt of a retrieval figure."""
        return self.painted[kind][:: self.plan.seeds]

    @cached_property
    def fair(self) -> Tensor:
        """One picture of each prompt of the first half, in the order of `fair_cases`."""
        return torch.cat([self.first("train"), self.painted["spread"]])

    @cached_property
    def fair_cases(self) -> list[Case]:
        ready = set(self.cases["train"])
        return [*self.cases["train"], *(c for c in self.halves[0] if c not in ready)]

    @cached_property
    def by_text(self) -> ByText:
        return ByText(self.model, self.pictures, self.rows("train"))

    def found(self, recipes: Sequence[Recipe]) -> Tensor:
        """What the baseline that paints nothing answers: B 4 H W, bytes."""
        return self.real(self.by_text(recipes))

    @torch.inference_mode()
    def rebuilt(self, pictures: Tensor) -> Tensor:
        """Through the autoencoder and back, bytes to bytes."""
        parts = (self.model.to_image(self.model.to_latent(part.float() / 255)) for part in pictures.split(PART // 2))
        return torch.cat([part.mul(255).round().byte() for part in parts])

    @cached_property
    def bank(self) -> tuple[Tensor, Tensor, Tensor]:
        """All training pictures: small pixels N 4096, the judge's features N F, and the number of each concept N."""
        rows = self.rows("train")
        numbers = {concept: i for i, concept in enumerate(sorted({w.concept for w in self.pictures.words}))}
        shrunk, features = [], []
        for start in range(0, len(rows), PART * 4):
            part = self.real(rows[start : start + PART * 4])
            shrunk.append(small(part.float() / 255))
            features.append(self.judge.features(part))
        concepts = torch.tensor([numbers[self.pictures.words[row].concept] for row in rows])
        return torch.cat(shrunk), torch.cat(features), concepts
