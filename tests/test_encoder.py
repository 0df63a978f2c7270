"""The encoder's one look for padding: how often a device is waited for, and whole graphs by torch.compile."""

import pytest
import torch

from encoder_cases import batches, make_model, waits


@pytest.mark.parametrize("arch", ["roberta", "recurrent_roberta"])
def test_a_device_is_waited_for_once(arch):
    for tokens in batches():
        assert waits(make_model(arch), tokens) == 1


@pytest.fixture
def graphs():
    """What the backend of `compiled` is given; torch.compile forgets all graphs before and after."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "roberta"},
        {"arch": "roberta", "encoder_normalize_before": True},
        {"arch": "recurrent_roberta", "recurrence_direction": "alternate"},
        {"arch": "recurrent_roberta", "recurrence_type": "short-conv", "recurrence_step_size": 2},
    ],
)
def test_torch_compile_makes_one_graph_of_the_encoder(options, graphs):
    """fullgraph=True refuses breaks; lengths and numbers of rows change without another graph. In training."""

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def run(model, tokens):
        masked = tokens == 4  # fewer positions than tokens
        masked[:, 1] = True
        model.zero_grad()
        outputs = model(tokens, masked_tokens=masked)[0]
        outputs.sum().backward()
        return outputs.detach(), [p.grad.clone() for p in model.parameters()]

    model, compiled = (make_model(**options).train() for _ in range(2))
    compiled.encoder.sentence_encoder.compile(backend=backend, fullgraph=True, dynamic=True)
    whole, padded = batches()
    for tokens in (whole, padded, padded[:2, :7].contiguous()):
        outputs, gradients = run(model, tokens)
        found, found_gradients = run(compiled, tokens)
        torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-5)
        for gradient, expected in zip(found_gradients, gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)
    assert len(graphs) == 1
    assert list(compiled.state_dict()) == list(model.state_dict())


@pytest.mark.slow
def test_training_with_a_compiled_encoder(train_here):
    options = ("--dropout", "0", "--attention-dropout", "0", "--max-update", "4")
    states = [
        torch.load(train_here(*options, *more) / "checkpoint_last.pt", weights_only=False)["model"]
        for more in ((), ("--compile-encoder",))
    ]
    assert list(states[0]) == list(states[1])
    for name, weights in states[0].items():
        torch.testing.assert_close(states[1][name], weights, rtol=0, atol=1e-4)
