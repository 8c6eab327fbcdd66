from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trials.models import assert_same, digits, learn, mlp, pasted, refused, treated

WIDTH = 16


def tokens() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(6)
    return torch.randn(4, 6, WIDTH, generator=source), torch.randint(4, (4,), generator=source)


class Own(nn.Module):
    """A hand-written block: attention and a perceptron, with the norm where one wants it."""

    def __init__(self, is_pre: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.dropout, self.is_pre = nn.Dropout(0.0), is_pre

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norms
        if self.is_pre:
            y = first(x)
            x = x + self.dropout(self.attention(y, y, y)[0])
            return x + self.dropout(self.feed(second(x)))
        x = first(x + self.dropout(self.attention(query=x, key=x, value=x)[0]))
        return second(self.dropout(self.feed(x)) + x)


class Reader(nn.Module):
    """Blocks on tokens, with or without a normalisation behind them."""

    def __init__(self, blocks: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.blocks, self.norm = nn.Linear(WIDTH, WIDTH), blocks, norm
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = x if self.norm is None else self.norm(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


def own(is_pre: bool, with_norm: bool, depth: int = 6) -> Reader:
    torch.manual_seed(1)
    return Reader(nn.Sequential(*(Own(is_pre) for _ in range(depth))), nn.LayerNorm(WIDTH) if with_norm else None)


def stock(norm_first: bool, with_norm: bool, depth: int = 6, **options: Any) -> Reader:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(WIDTH) if with_norm else None, **options)
    return Reader(encoder)


@pytest.mark.parametrize("make", [own, stock])
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_it_computes_what_the_same_weights_compute_with_the_norm_first(make: Callable[..., Reader]) -> None:
    post, pre = make(False, True), make(True, True)
    assert_same(post.state_dict(), pre.state_dict())
    torch.manual_seed(2)
    for network in (post, pre):
        torch.manual_seed(2)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.3)
    model = treated("prenorm", post, tokens()).model
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(tokens()[0]), pre.train(mode)(tokens()[0]))
    assert not torch.allclose(model(tokens()[0]), post(tokens()[0]))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in post.named_parameters()]


def test_a_copy_of_the_remedied_model_is_its_own() -> None:
    model = treated("prenorm", own(False, False), tokens()).model
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert twin(tokens()[0]).std() > 0 == model(tokens()[0]).std()


@pytest.mark.parametrize("make", [own, stock])
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_a_final_norm_comes_where_none_is(make: Callable[..., Reader]) -> None:
    post, pre = make(False, False), make(True, False)
    pre.norm = nn.LayerNorm(WIDTH)
    model = treated("prenorm", post, tokens()).model
    torch.testing.assert_close(model(tokens()[0]), pre(tokens()[0]))


@pytest.mark.parametrize("make", [own, pytest.param(stock, marks=pytest.mark.slow)])
def test_a_deep_stack_that_does_not_learn_at_its_full_rate_learns(make: Callable[..., Reader]) -> None:
    """At 18 blocks: four seeds by two kinds of kernels ended above 1.1, as chance does; treated, below 0.45."""
    post = make(False, False, depth=18)
    assert last_loss(post) > 0.9 > 0.6 > last_loss(treated("prenorm", make(False, False, depth=18), tokens()).model)


def last_loss(model: nn.Module) -> float:
    source = torch.Generator().manual_seed(6)
    batch = torch.randn(32, 6, WIDTH, generator=source), torch.randint(4, (32,), generator=source)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        loss = learn(model, batch)
        optimizer.step()
    return float(loss)


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_the_code_shown_does_what_is_tried() -> None:
    shown, tried = pasted("prenorm", stock(False, True)), treated("prenorm", stock(False, True), tokens()).model
    assert torch.equal(shown(tokens()[0]), tried(tokens()[0]))


def test_encoder_and_decoder_together() -> None:
    class Pair(nn.Module):
        def __init__(self, norm_first: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.both = nn.Transformer(WIDTH, 2, 2, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.both(x, x).mean(1))

    with pytest.warns(UserWarning, match="enable_nested_tensor"):
        pre = Pair(True)
    model = treated("prenorm", Pair(False), tokens()).model
    torch.testing.assert_close(model(tokens()[0]), pre(tokens()[0]))


class Twice(nn.Module):
    """Reads two views with the same blocks."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(x) - self.reader(x.flip(0))


def test_blocks_that_read_two_views_are_changed_for_both() -> None:
    model = treated("prenorm", Twice(own(False, True)), tokens()).model
    torch.testing.assert_close(model(tokens()[0]), Twice(own(True, True))(tokens()[0]))


def test_a_block_that_is_its_own_successor_is_refused() -> None:
    block = Own(False)
    assert "comes after itself" in refused("prenorm", Reader(nn.Sequential(block, block, block)), tokens())


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_blocks_that_are_pre_norm_or_none_are_refused() -> None:
    for net, batch in ((own(True, True), tokens()), (stock(True, True), tokens()), (mlp(4, nn.ReLU), digits())):
        assert "no block recognised" in refused("prenorm", net, batch)


@pytest.mark.slow  # with the extra [gallery]
def test_the_post_norm_of_a_third_party_is_recognised() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        num_labels=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(config)
    batch = torch.randint(30, (4, 7)), torch.randint(4, (4,))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(input_ids=batch[0], labels=batch[1]).loss

    model = treated("prenorm", bert, batch, loss).model
    x = bert.bert.embeddings(batch[0])
    for layer in bert.bert.encoder.layer:
        attention, output = layer.attention, layer.output
        x = x + attention.output.dense(attention.self(attention.output.LayerNorm(x))[0])
        x = x + output.dense(layer.intermediate(output.LayerNorm(x)))
    torch.testing.assert_close(model.bert(batch[0]).last_hidden_state, output.LayerNorm(x))
    assert loss(model, batch).isfinite()
