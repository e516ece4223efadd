"""What lies in a file stays there."""

from copy import deepcopy

import torch
from torch import nn

from limner.nn import streamed
from limner.nn.streamed import Table, tabled


@torch.inference_mode()
def test_a_table_is_looked_up_where_it_lies(monkeypatch):
    monkeypatch.setattr(streamed, "TABLE", 100)
    plain = nn.ModuleDict({"large": nn.Embedding(50, 8), "small": nn.Embedding(5, 8)}).half()
    values, given = plain["large"].weight.data, []
    net = tabled(plain, lambda tensor: given.append(tensor.data_ptr()))
    assert [type(layer) for layer in net.values()] == [Table, nn.Embedding]
    ids = torch.tensor([[3, 0], [49, 3]])
    for each in (net, deepcopy(net)):
        rows = each.float()["large"](ids)
        assert rows.dtype == torch.float32 and torch.equal(rows, values.float()[ids])
    assert given == [values.data_ptr()] * 3  # no copy was made, and its pages were given back
