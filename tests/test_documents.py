"""Documents that share a sequence: what comes out is what each of them alone gives."""

import pytest
import torch
from test_model import TASK, build

from rt_plugin import ops
from rt_plugin.documents import DocumentColumns, positions_within
from rt_plugin.modules import RecurrentFFN

BOS = TASK.source_dictionary.bos()
LENGTHS = [[7, 1, 13, 3, 16], [40], [5, 5, 2, 25], [3, 9]]  # documents of each sequence; the last one has padding


def packed():
    """(B, L) tokens, (B, L) document numbers, and for each document its tokens, its sequence and its start."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((len(LENGTHS), 40), TASK.source_dictionary.pad())
    numbers, documents = torch.zeros_like(tokens), []
    for sequence, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths, start=1):
            document = torch.randint(4, 100, (length,), generator=generator)
            document[0] = BOS
            tokens[sequence, start : start + length] = document
            numbers[sequence, start : start + length] = number
            documents.append((document, sequence, start))
            start += length
    return tokens, numbers, documents


def varied(model):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def outputs_and_gradients(model, run):
    model.zero_grad()
    outputs = run()
    (torch.cat(outputs) ** 2).sum().backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recurrence_direction": "alternate", "recurrence_step_size": 2},
        {"recurrence_type": "short-conv", "encoder_normalize_before": True, "recurrence_direction": "backward"},
        {"recurrence_direction": "alternate", "recurrence_impl": "reference"},
        {"checkpoint_activations": True},
    ],
    ids=str,
)
def test_separate_documents_are_as_if_each_were_alone(options):
    model = varied(build(dropout=0.0, attention_dropout=0.0, **options)).train()
    tokens, numbers, documents = packed()

    def together():
        x, _ = model(tokens, features_only=True, attention_documents=numbers, recurrence_documents=numbers)
        return [x[sequence, start : start + len(document)] for document, sequence, start in documents]

    def alone():
        return [model(document.unsqueeze(0), features_only=True)[0][0] for document, _, _ in documents]

    (ours, our_gradients), (theirs, their_gradients) = (outputs_and_gradients(model, run) for run in (together, alone))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("given", ["attention_documents", "recurrence_documents"])
def test_each_kind_of_separation_is_one_of_its_own(given):
    """Only with both does another document change nothing."""
    model = varied(build(recurrence_direction="alternate")).eval()
    tokens, numbers, _ = packed()
    changed = tokens.clone()
    changed[0, 10] = 4 + (tokens[0, 10] - 3) % 90  # in the third document
    with torch.no_grad():
        for names, others_change in (([given], True), (["attention_documents", "recurrence_documents"], False)):
            inputs = dict.fromkeys(names, numbers)
            a, b = (model(t, features_only=True, **inputs)[0] for t in (tokens, changed))
            differs = (a != b).any(dim=2)
            assert differs[0, 8:21].any()
            assert (differs[0, :8].any() or differs[0, 21:].any()) == others_change
            assert not differs[1:].any()


def test_one_document_in_a_sequence_is_the_usual_model():
    model = varied(build()).eval()
    tokens, numbers, _ = packed()
    one = (numbers > 0).long()
    with torch.no_grad():
        separate, extra = model(
            tokens, return_all_hiddens=True, attention_documents=one, recurrence_documents=one, src_lengths=None
        )
        usual, usual_extra = model(tokens, return_all_hiddens=True)
    there = numbers > 0
    torch.testing.assert_close(separate[there], usual[there], rtol=1e-9, atol=1e-9)
    assert len(extra["inner_states"]) == len(usual_extra["inner_states"])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_block_begins_anew_with_each_document(impl, reverse):
    if impl == "native" and ops.native_backends()["cpu"]:
        pytest.skip(ops.native_backends()["cpu"])
    torch.manual_seed(0)
    block = varied(RecurrentFFN(16, reverse=reverse, impl=impl)).float()
    _, numbers, documents = packed()
    x = torch.randn(numbers.shape[1], numbers.shape[0], 16)
    with torch.no_grad():
        y = block.within_documents(x, numbers == 0, DocumentColumns(numbers))
        for document, sequence, start in documents:
            rows = slice(start, start + len(document))
            torch.testing.assert_close(y[rows, sequence], block(x[rows, sequence].unsqueeze(1))[:, 0])


def test_same_bits_on_every_run():
    block = RecurrentFFN(16)
    _, numbers, _ = packed()
    x = torch.randn(numbers.shape[1], numbers.shape[0], 16)
    gradients = []
    for _ in range(3):
        block.zero_grad()
        block.within_documents(x, None, DocumentColumns(numbers)).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("lengths", [[1], [2], [5], [17], [33], [129], [1, 500, 2, 9], list(range(1, 60))])
def test_little_is_filled_up(lengths):
    numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths)).unsqueeze(0)
    rows = []

    def count(x):
        rows.append(x.shape[0] * x.shape[1])
        return x

    x = torch.randn(sum(lengths), 1, 3)
    assert torch.equal(DocumentColumns(numbers).apply(count, x), x)
    assert sum(rows) < 1.5 * sum(lengths) + 1


def test_only_padding():
    numbers = torch.zeros(2, 5, dtype=torch.int64)
    assert not DocumentColumns(numbers).apply(lambda x: x + 1, torch.randn(5, 2, 3)).any()


def test_positions_begin_anew():
    numbers = torch.tensor([[1, 1, 1, 2, 3, 3, 0], [1, 2, 2, 2, 2, 2, 2]])
    assert positions_within(numbers).tolist() == [[0, 1, 2, 0, 0, 1, 0], [0, 0, 1, 2, 3, 4, 5]]


def test_gradients_are_the_same_bits_whatever_the_threads_do():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, 100, (16, 40), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 0.1] = BOS
    tokens[:, 0] = BOS
    numbers = (tokens == BOS).cumsum(1)
    model = build(dropout=0.0, attention_dropout=0.0).train()

    def gradients():
        x = model(tokens, features_only=True, attention_documents=numbers, recurrence_documents=numbers)[0]
        model.zero_grad()
        (x**3).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        first = gradients()
        for _ in range(8):
            assert [name for name, gradient in gradients().items() if not torch.equal(gradient, first[name])] == []
    finally:
        torch.set_num_threads(threads)
