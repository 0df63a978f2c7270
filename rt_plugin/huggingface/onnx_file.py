"""`rt-plugin export --format onnx`: the model as one ONNX graph for any length and batch, with the tokenizer beside it.

model.onnx       input_ids, attention_mask: (batch, length) int64 -> logits
                 (batch, length, tokens); of a classifier (batch, classes); of `--output features` last_hidden_state,
                 (batch, length, d)
and what a folder for transformers has, but for its weights

A recurrence is one `Scan` over the positions, whatever the length: torch.export keeps torch's `scan`, and torch.onnx
maps it. With int8, the matrices of the projections are stored and multiplied in 8 bits, activations quantised as they
come (onnxruntime's dynamic quantisation); embeddings, the recurrence and attention stay float32.
"""

import importlib
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from rt_plugin.console.files import replacing
from rt_plugin.errors import UserError
from rt_plugin.huggingface import folder

ONNX_FILE = "model.onnx"
OUTPUTS = ("head", "features")
PRECISIONS = ("float32", "int8")
OPSET = 20  # the first with Gelu as one operator
_INPUTS = ("input_ids", "attention_mask")


class _Graph(nn.Module):
    """(input_ids, attention_mask) -> one tensor."""

    def __init__(self, model: nn.Module, output: str):
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), self.output)


def write_onnx(state: dict, source: Path, model: Path, out: Path, precision: str, output: str = "head") -> list[str]:
    """Write the folder, but for the card; returns the files' names, the graph first.

    Args:
        state: the checkpoint, as `read_checkpoint` gives it.
        source, model: see `folder.convert`.
        out: the folder to write.
        precision: one of `PRECISIONS`.
        output: "head", the logits of the output layer or of the classifier, or "features", the last layer's vectors.

    Raises:
        UserError: the precision is none of these; and see `folder.convert`.
        ModuleNotFoundError: transformers, onnx, onnxscript or, for int8, onnxruntime is not installed.
        OSError: it cannot be written.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--format onnx --precision {precision}: expected {' or '.join(PRECISIONS)}")
    for name in ("onnx", "onnxscript", "transformers"):  # at once, and each by its name
        importlib.import_module(name)
    converted = folder.convert(state, source, model, own_code=True)
    try:
        built = _built(converted, output)
    except RuntimeError as error:  # of weights that are missing
        raise UserError(f"{source}: its weights are not those of its model ({' '.join(str(error).split())})") from error
    graph = _Graph(built, "last_hidden_state" if output == "features" else "logits")
    try:
        content = to_onnx(export_program(graph.eval()), graph.output)
    except RuntimeError as error:  # of which torch.onnx has kinds of its own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: torch.onnx cannot make a graph of this model ({reason})") from error
    names = folder.write_beside(converted, model, out)
    with replacing(out / ONNX_FILE) as file:
        file.write(content if precision == "float32" else quantised(content))
    return [ONNX_FILE, *names]


def _built(converted: folder.Converted, output: str) -> nn.Module:
    from rt_plugin.huggingface import modeling_recurrent_roberta as modeling
    from rt_plugin.huggingface.configuration_recurrent_roberta import RecurrentRobertaConfig

    config = RecurrentRobertaConfig.from_dict(converted.values)
    if converted.is_classifier:
        model = modeling.RecurrentRobertaForSequenceClassification(config)
    else:
        model = modeling.RecurrentRobertaForMaskedLM(config)
    weights = {name: value.float() for name, value in converted.weights.items()}
    if "lm_head.decoder.weight" not in weights:
        weights["lm_head.decoder.weight"] = weights["encoder.embed_tokens.weight"]
    known = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in weights.items() if name in known})
    return model.encoder if output == "features" else model


def export_program(model: nn.Module) -> torch.export.ExportedProgram:
    """torch.export of a model of (input_ids, attention_mask), for any batch and length of at least 1."""
    # Both at least 2, and different, or torch.export takes them for constants, or for each other.
    tokens = torch.full((2, 5), 4)
    tokens[1, 4] = 1
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        return torch.export.export(
            model, (tokens, tokens.ne(1).long()), dynamic_shapes=(dynamic, dynamic), strict=False
        )


def to_onnx(program: torch.export.ExportedProgram, output: str) -> bytes:
    """The ONNX model of an exported program, as it stands in a file."""
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # it warns of a torchvision that is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program, dynamo=True, input_names=_INPUTS, output_names=[output], opset_version=OPSET, verbose=False
            )
    finally:
        noisy.setLevel(level)
    proto = exported.model_proto
    names = {dim.dim_param: name for dim, name in zip(_dims(proto.graph.input[0]), ("batch", "length"), strict=True)}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in _dims(value):
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    return proto.SerializeToString()


def _dims(value):
    return value.type.tensor_type.shape.dim


def quantised(content: bytes) -> bytes:
    """An ONNX model whose multiplications with constant matrices are in 8 bits, each column of them with its scale."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place, "float32.onnx"), Path(place, "int8.onnx")
        before.write_bytes(_with_constant_matrices(content))
        noisy = logging.getLogger()
        level = noisy.level
        noisy.setLevel(logging.ERROR)  # it advises a preparation that the graph has had
        try:
            quantize_dynamic(
                before, after, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
        finally:
            noisy.setLevel(level)
        return after.read_bytes()


def _with_constant_matrices(content: bytes) -> bytes:
    """The output layer, which is the embeddings transposed, as a matrix of its own: only constants are quantised."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(content)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in constants]:
        order = next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
        matrix = numpy_helper.to_array(constants[node.input[0]]).transpose(order)
        model.graph.initializer.append(numpy_helper.from_array(matrix.copy(), node.output[0]))
        model.graph.node.remove(node)
    del model.graph.value_info[:]  # onnxruntime turns matrices round and keeps their old shapes
    return model.SerializeToString()
