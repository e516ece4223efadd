"""What every test stands on: one thread, and the same examples on every machine and every day."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from limner.models.bert import Bert, BertConfig
from limner.models.eye import Eye, EyeConfig
from limner.models.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from limner.models.mini_transformer import MiniTransformer, MiniTransformerConfig
from limner.train.ship import ship_net, write_sums

torch.set_num_threads(1)

settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")

NAMES = ("red apple", "blue house", "cat", "dog", "sword")


def tiny_pieces() -> Tokenizer:
    """BERT's word pieces over a dozen words; all others are spelled."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!'-"
    words = ["a", "red", "apple", "blue", "house", "cat", "dog", "sword", "pixel", "art"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *letters[1:], *(f"##{letter}" for letter in letters)]
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return pieces


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole mini model with random weights, small enough to paint in a tenth of a second. Copy it to change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pieces = tiny_pieces()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        eye = EyeConfig(pixels=32, widths=(8, 16), blocks=(1, 1), text=48, space=16)
        nets = {
            "autoencoder": MiniAutoencoder(MiniAutoencoderConfig(8, (8, 8, 16), (1, 1, 1), (16, 8, 8), (1, 1, 1))),
            "denoiser": MiniTransformer(MiniTransformerConfig(width=64, depth=2, heads=1, hidden=96, text=48)),
            "text": Bert(BertConfig(pieces.get_vocab_size(), width=48, layers=1, heads=2, hidden=64, embedding=16)),
            "eye": Eye(eye),
            "judge": Eye(eye),
        }
        torch.nn.init.normal_(nets["denoiser"].head.weight, std=0.5)  # it begins at zero, which paints one grey
        torch.nn.init.normal_(nets["denoiser"].modulation.weight, std=0.1)  # and this, which makes it deaf to the style
    for name, net in nets.items():
        ship_net(folder, name, net)
    pieces.save(str(folder / "tokenizer.json"))
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    write_sums(folder)
    return folder
