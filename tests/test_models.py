"""The models learn, have as many parameters as their docstrings say, and can be taken apart."""

import ast
import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import course_lib.mini
from course_lib import models
from course_lib.datasets import digit_batches, digits, text_batches
from course_lib.models import CNN, MLP, Attention, GPTScores, TinyGPT, digit_mlp

torch.set_num_threads(1)


def count(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.parametrize("model_type, rate, accuracy", [(MLP, 3e-3, 0.94), (CNN, 1e-2, 0.96)])
def test_digits_are_learned_in_six_epochs(model_type, rate, accuracy):
    torch.manual_seed(0)
    model = model_type()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for epoch in range(6):
        for images, labels in digit_batches(32, epoch=epoch):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    images, labels = digits("test")
    assert (model(images).argmax(1) == labels).float().mean() >= accuracy


def test_models_that_chapters_share():
    assert count(digit_mlp()) == 38_410
    tokens = torch.randint(256, (2, 5))
    torch.manual_seed(0)
    scores = GPTScores()(tokens[:, :-1])
    torch.manual_seed(0)
    assert torch.allclose(F.cross_entropy(scores, tokens[:, 1:]), TinyGPT()(tokens))


def test_mlp_has_the_sizes_asked_for():
    model = MLP((64, 32, 16, 10))
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert count(model) == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("channels", [4, 16])
def test_cnn_has_batch_norm_only_if_asked(channels):
    plain, normed = CNN(channels), CNN(channels, batch_norm=True)
    assert not list(plain.buffers())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in normed.modules()) == 2
    convolutions = (9 + 1) * channels + (9 * channels + 1) * 2 * channels
    assert count(plain) == convolutions + (8 * channels + 1) * 10
    assert count(normed) == count(plain) + 2 * 3 * channels
    assert plain(torch.rand(3, 1, 8, 8)).shape == normed(torch.rand(3, 1, 8, 8)).shape == (3, 10)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size, context, dim, heads, layers", [(256, 64, 64, 4, 2), (50, 7, 24, 3, 1)])
def test_gpt_parameters_equal_the_closed_form(vocab_size, context, dim, heads, layers, tied):
    model = TinyGPT(vocab_size=vocab_size, context=context, dim=dim, heads=heads, layers=layers, tied=tied)
    formula = (
        (vocab_size + context + 2) * dim + layers * (12 * dim**2 + 13 * dim) + (not tied) * vocab_size * dim
    )
    assert count(model) == formula


def test_gpt_default_size_is_the_documented_one():
    assert count(TinyGPT()) == 120_576 and "120,576" in TinyGPT.__doc__


def test_tied_weights_share_storage_and_get_both_gradients():
    torch.manual_seed(0)
    tied = TinyGPT()
    assert tied.head.weight is tied.embedding.weight
    apart = TinyGPT(tied=False)
    assert apart.head.weight.data_ptr() != apart.embedding.weight.data_ptr()
    apart.load_state_dict(tied.state_dict())
    tokens = next(text_batches(2, 16, 1))
    tied(tokens).backward(), apart(tokens).backward()
    both = apart.head.weight.grad + apart.embedding.weight.grad
    torch.testing.assert_close(tied.embedding.weight.grad, both)


@pytest.mark.parametrize("changed", [1, 5, 15])
def test_a_later_token_never_changes_earlier_logits(changed):
    torch.manual_seed(0)
    model = TinyGPT(layers=3)
    tokens = next(text_batches(2, 15, 1))
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % 256
    before, after = model.logits(tokens), model.logits(other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, -1], after[:, -1]), "and it does change what comes after it"


def test_loss_is_the_mean_over_next_tokens():
    torch.manual_seed(0)
    model = TinyGPT(context=16)
    tokens = next(text_batches(3, 16, 1))  # [3, 17]: the longest that fits
    scores = model.logits(tokens[:, :16]).log_softmax(-1)
    picked = torch.stack([scores[row, time, tokens[row, time + 1]] for row in range(3) for time in range(16)])
    torch.testing.assert_close(model(tokens), -picked.mean())
    assert abs(model(tokens).item() - math.log(256)) < 0.3, "before training, every byte is about as likely"


def test_gpt_learns_text():
    torch.manual_seed(0)
    model = TinyGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for tokens in text_batches(8, 32, 60):
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 3.3


def test_blocks_can_run_one_after_the_other():
    torch.manual_seed(0)
    model = TinyGPT(layers=4)
    tokens = next(text_batches(2, 20, 1))
    x = model.embed(tokens)
    for stage in (model.blocks[:2], model.blocks[2:]):
        for block in stage:
            assert block(x).shape == x.shape
            x = block(x)
    assert torch.equal(model.head(model.norm(x)), model.logits(tokens))


def test_attention_equals_the_formula_head_by_head():
    torch.manual_seed(0)
    attention, x = Attention(dim=12, heads=3), torch.randn(2, 5, 12)
    q, k, v = attention.q(x), attention.k(x), attention.v(x)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)  # [2, 5, 5]
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))


def test_attention_can_be_cut_by_heads():
    torch.manual_seed(0)
    whole = Attention(dim=32, heads=4)
    for linear in (whole.q, whole.k, whole.v, whole.out):
        nn.init.normal_(linear.bias)
    x = torch.randn(2, 9, 32)
    total = whole.out.bias
    for rows in torch.arange(32).chunk(2):  # two heads, eight values each
        part = copy.deepcopy(whole)
        for linear in (part.q, part.k, part.v):
            linear.weight, linear.bias = nn.Parameter(linear.weight[rows]), nn.Parameter(linear.bias[rows])
        part.out.weight, part.out.bias = nn.Parameter(part.out.weight[:, rows]), None
        total = total + part(x)
    torch.testing.assert_close(total, whole(x))


def test_more_tokens_than_the_context_are_refused():
    model = TinyGPT(context=8)
    assert model(torch.zeros(1, 9, dtype=torch.long)).isfinite()
    with pytest.raises(ValueError, match="9 tokens in a row.* at most 8"):
        model(torch.zeros(1, 10, dtype=torch.long))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of heads"):
        TinyGPT(dim=10, heads=3)


def test_models_say_how_they_are_cut_and_mini_knows_none_of_them():
    files = sorted(Path(course_lib.mini.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "module", None)]
            names += [
                part for alias in getattr(node, "names", ()) for part in getattr(alias, "name", "").split(".")
            ]
            assert not {*models.__all__, "course_lib.models", "models"} & set(names), (file, names)


def test_the_stages_of_a_model_do_together_what_it_does():
    model, mlp = TinyGPT(tied=False), MLP((4, 8, 8, 2))
    tokens, x = next(text_batches(2, 15, 1)), torch.randn(3, 2, 2)
    for parts, given, wanted in ((model.stages(), tokens, model.logits(tokens)), (mlp.stages(), x, mlp(x))):
        assert torch.equal(nn.Sequential(*(layer for part in parts for layer in part))(given), wanted)
