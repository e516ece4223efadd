import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from limner.errors import BadInput
from limner.tasks.match import TEMPLATE, is_clear, labelled, match


@dataclass
class Fake:
    """Sees a picture's mean colour, and reads "red", "green" and "blue" in a text."""

    name: str = "fake"
    digest: str = "0"
    scale: float = 10.0

    def see(self, pictures: Sequence[Tensor]) -> Tensor:
        return torch.nn.functional.normalize(torch.stack([picture[:3].mean((1, 2)) for picture in pictures]), dim=1)

    def read(self, texts: Sequence[str]) -> Tensor:
        rows = torch.tensor([[float(word in text) for word in ("red", "green", "blue")] for text in texts])
        return torch.nn.functional.normalize(rows + 1e-6, dim=1)


def coloured(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue, 1.0])[:, None, None].expand(4, 5, 6)


def test_cosines_and_shares_at_the_lookers_scale():
    found = match(Fake(), [coloured(1, 0, 0), coloured(0, 0.6, 0.8)], ["red", "green", "blue"])
    assert found.cosines.tolist() == [pytest.approx([1, 0, 0], abs=1e-4), pytest.approx([0, 0.6, 0.8], abs=1e-4)]
    assert found.shares.sum(1).tolist() == pytest.approx([1, 1])
    assert float(found.shares[1, 2] / found.shares[1, 1]) == pytest.approx(math.exp(10 * 0.2), rel=1e-3)


def test_labels_are_read_within_the_template_and_the_best_come_first():
    read: list[str] = []

    class Listening(Fake):
        def read(self, texts: Sequence[str]) -> Tensor:
            read.extend(texts)
            return super().read(texts)

    (found,) = labelled(Listening(), [coloured(0, 0.2, 1)], ["red", "green", "blue"], top=2)
    assert [label for label, _ in found.labels] == ["blue", "green"]
    assert read == [TEMPLATE.replace("{}", label) for label in ("red", "green", "blue")]
    assert found.sure and found.sentence() == "blue"


def test_doubt_is_said_where_the_best_has_less_than_twice_the_share_of_the_next():
    (found,) = labelled(Fake(), [coloured(0, 0.69, 0.73)], ["red", "green", "blue"], "{}")
    assert not found.sure and found.sentence() == "not sure; perhaps blue"
    assert is_clear([0.5, 0.25]) and not is_clear([0.5, 0.26]) and is_clear([0.1])


@pytest.mark.parametrize(
    ("labels", "template", "says"), [(["red"], "{}", "two or more"), (["a", "b"], "a", r"no \{\}")]
)
def test_labels_that_cannot_be_chosen_from_are_refused(labels: list[str], template: str, says: str):
    with pytest.raises(BadInput, match=says):
        labelled(Fake(), [coloured(1, 0, 0)], labels, template)
