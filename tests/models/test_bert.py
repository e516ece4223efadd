"""BERT against the field's reference, and its small student."""

import pytest
import torch
import transformers

from limner.models.bert import Bert, BertConfig, pool, student_of

TINY = BertConfig(vocabulary=50, width=24, layers=3, heads=4, hidden=40, positions=16, embedding=24)


@pytest.fixture(scope="module")
def theirs() -> transformers.BertModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=TINY.vocabulary,
        hidden_size=TINY.width,
        num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads,
        intermediate_size=TINY.hidden,
        max_position_embeddings=TINY.positions,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():  # the reference starts with zero biases, which would hide a wrong one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 50, (3, 10), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(10)[None] < torch.tensor([[10], [6], [1]])


def weights(theirs: transformers.BertModel) -> dict[str, torch.Tensor]:
    return {name: value for name, value in theirs.state_dict().items() if "position_ids" not in name}


@torch.no_grad()
def test_states_are_those_of_the_reference(theirs, batch):
    ours = Bert(TINY)
    ours.load_state_dict(weights(theirs))
    ids, mask = batch
    want = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    error = (ours(ids, mask)[mask] - want).abs().max() / want.abs().max()
    assert error < 1e-5


@torch.no_grad()
def test_padding_changes_nothing():
    torch.manual_seed(0)
    model, ids = Bert(TINY), torch.randint(1, 50, (2, 5))
    short = model(ids, torch.ones(2, 5, dtype=torch.bool))
    padded = torch.cat([ids, torch.full((2, 4), 7)], dim=1)
    long = model(padded, torch.arange(9)[None].expand(2, 9) < 5)
    torch.testing.assert_close(long[:, :5], short, rtol=0, atol=1e-5)


def test_the_pool_is_the_mean_of_what_stands():
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [9.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert pool(states, mask).tolist() == [[2.0], [5.0]]
    assert pool(states, torch.zeros_like(mask)).tolist() == [[0.0], [0.0]]


@torch.no_grad()
def test_a_student_of_low_rank_words_and_all_layers_is_its_teacher(theirs, batch):
    teacher = weights(theirs)
    words = teacher["embeddings.word_embeddings.weight"]
    left, strengths, right = torch.linalg.svd(words, full_matrices=False)
    teacher["embeddings.word_embeddings.weight"] = left[:, :6] * strengths[:6] @ right[:6]  # of rank 6
    full = Bert(TINY)
    full.load_state_dict(teacher)
    config = BertConfig(vocabulary=50, width=24, layers=3, heads=4, hidden=40, positions=12, embedding=6)
    student = Bert(config)
    student.load_state_dict(student_of(teacher, config, layers=(0, 1, 2)))
    torch.testing.assert_close(student(*batch), full(*batch), rtol=0, atol=1e-4)


def test_a_student_takes_the_layers_that_are_chosen(theirs):
    teacher = weights(theirs)
    config = BertConfig(vocabulary=50, width=24, layers=2, heads=4, hidden=40, positions=12, embedding=6)
    first = student_of({**teacher, "pooler.dense.weight": torch.ones(1)}, config, layers=(0, 2))
    Bert(config).load_state_dict(first)  # all names, all shapes
    for ours, taken in ((0, 0), (1, 2)):
        name = "attention.self.query.weight"
        assert torch.equal(first[f"encoder.layer.{ours}.{name}"], teacher[f"encoder.layer.{taken}.{name}"])
    assert float(first["embeddings.word_embeddings.weight"].std()) == pytest.approx(1, rel=1e-3)


def test_a_student_shares_no_memory_with_its_teacher(theirs):
    teacher = weights(theirs)
    before = {name: value.clone() for name, value in teacher.items()}
    config = BertConfig(vocabulary=50, width=24, layers=1, heads=4, hidden=40, positions=12, embedding=6)
    for value in student_of(teacher, config, layers=(0,)).values():
        value.zero_()
    assert all(torch.equal(teacher[name], value) for name, value in before.items())
