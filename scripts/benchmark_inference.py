#!/usr/bin/env python
"""Measure the encoder at work on a CPU against what people use: one sentence, uniform and natural lengths, loading.

    python scripts/benchmark_inference.py [--size tiny|mini|small|...] [--sentences 512] [--seconds 240] [--out DIR]

From token ids to the last layer's vectors, random weights, candidates interleaved, medians; one sentence again and
again, in processes of their own:

    ours                     recurrent_roberta as `from_pretrained` and the commands use it, float32; sentences of equal
                             length share a batch
    ours, fairseq's products the same, but by the library for matrices that torch and fairseq take by themselves
    ours, bfloat16           in bfloat16
    ours, transformers       the same encoder as transformers loads it of an exported folder
    ours, compiled           that by torch.compile
    ours, ONNX; ours, int8   that as a graph for onnxruntime, in float32 and in int8
    fairseq                  its roberta; batches of 32 in the order of the file, padded
    transformers             RobertaModel, so fed, as its pipeline does with batch_size=32
    transformers, one by one the same as its pipeline does unless told otherwise
    transformers, sorted     the same with sentences sorted by length
    transformers, compiled   sorted, by torch.compile
    transformers, ONNX; transformers, OpenVINO   sorted, as a graph for onnxruntime, and for OpenVINO where it is there
    sentence-transformers    its own `encode` around RobertaModel (it sorts), where it is there; from text, which costs
                             a few per cent more; also with its backends for ONNX and OpenVINO

Natural lengths are those of --text, cut into tokens by the tokenizer of the committed models. Writes
benchmark_inference.csv and .json to --out. `--candidates "ours; transformers, sorted"` measures these alone; what is
not installed, or fails, is left out, and a line says so.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from benchmark_op import Stopwatch, describe, interleaved, keep_freed_memory, print_table
from torch.nn.utils.rnn import pad_sequence

import checkout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from rt_plugin.inference.batches import equal_length_batches, lay_out_alike
from rt_plugin.inference.projections import are_quicker, prepare, quick_projections

os.environ.setdefault("HF_HUB_OFFLINE", "1")
CHECKPOINT = checkout.REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini"
PADDING, VOCABULARY, POSITIONS = 1, 16002, 512
SIZES = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8), "base": (12, 768, 12)}
COLUMNS = (
    *("what", "candidate", "median_ms", "low_ms", "high_ms", "sentences_per_s"),
    *("against_transformers", "against_sorted", "machine"),  # how many times as fast
)
BATCH = 32  # of natural lengths
ONE_SENTENCE = "1 x 16"
THE_SAME_FOR_ONE = ("transformers, one by one", "transformers, sorted")
CALLS, STARTS = 1000, 3  # of one sentence in a process, and how often
Encode = Callable[[torch.Tensor], object]  # (B, L) token ids, padded or not -> anything
LOADING = {
    "ours": "import rt_plugin; from rt_plugin.model import RecurrentRobertaModel as M; M.from_pretrained(sys.argv[1])",
    "ours, transformers": "from transformers import AutoModelForMaskedLM as M; "
    "M.from_pretrained(sys.argv[2], trust_remote_code=True)",
    "transformers": "from transformers import AutoModelForMaskedLM as M; M.from_pretrained(sys.argv[3])",
}


def parse_arguments() -> argparse.Namespace:
    parser = checkout.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="mini", help="default: %(default)s")
    parser.add_argument("--text", type=Path, default=checkout.REPOSITORY / "examples" / "quickstart" / "valid.txt")
    parser.add_argument("--sentences", type=int, default=512, help="of the text (default: %(default)s)")
    parser.add_argument("--uniform", default="32x128", help="batch and length (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=240, help="for all measurements (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=50, help="at most, of each (default: %(default)s)")
    parser.add_argument("--candidates", help="names, with a semicolon between")
    parser.add_argument("--latency", action="store_true", help="only one sentence, in this process; prints ms")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="default: %(default)s")
    return parser.parse_args()


def fairseq_model(name: str):
    """A model of fairseq with random weights, by the name of its architecture."""
    from fairseq.data import Dictionary
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

    import rt_plugin.model  # noqa: F401  (registers it)

    options = argparse.Namespace(arch=name, _name=name, max_positions=POSITIONS, tokens_per_sample=POSITIONS)
    ARCH_CONFIG_REGISTRY[name](options)
    symbols = Dictionary()
    for i in range(VOCABULARY - len(symbols)):
        symbols.add_symbol(f"t{i}")
    task = argparse.Namespace(source_dictionary=symbols, max_positions=lambda: POSITIONS)
    return ARCH_MODEL_REGISTRY[name].build_model(options, task).eval()


def of_fairseq(model, dtype=torch.float32) -> Encode:
    model = model.to(dtype)
    return lambda tokens: model(tokens, features_only=True)


def of_ours(size: str) -> Encode:
    """As `rt_plugin.inference.interface` has it."""
    model = fairseq_model(f"recurrent_roberta_{size}")
    lay_out_alike(model)
    if are_quicker():
        prepare(model)
    return of_fairseq(model)


def of_transformers(model) -> Encode:
    def encode(tokens):
        return model(input_ids=tokens, attention_mask=tokens.ne(PADDING).long()).last_hidden_state

    return encode


def own_code(size: str):
    """The encoder of an exported folder, with random weights."""
    from rt_plugin.huggingface.configuration_recurrent_roberta import RecurrentRobertaConfig
    from rt_plugin.huggingface.modeling_recurrent_roberta import RecurrentRobertaModel
    from rt_plugin.modules import default_inner_dim

    layers, width, heads = SIZES[size]
    names = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    inner = {"intermediate_size": default_inner_dim(width), "max_position_embeddings": POSITIONS + 2}
    return RecurrentRobertaModel(RecurrentRobertaConfig(vocab_size=VOCABULARY, **names, **inner)).eval()


def roberta(size: str):
    from transformers import RobertaConfig, RobertaModel

    layers, width, heads = SIZES[size]
    names = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    more = {"intermediate_size": 4 * width, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
    config = RobertaConfig(vocab_size=VOCABULARY, layer_norm_eps=1e-5, **names, **more)
    return RobertaModel(config, add_pooling_layer=False).eval()


class _Features(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def graph_of(model) -> bytes:
    from rt_plugin.huggingface.onnx_file import export_program, to_onnx

    return to_onnx(export_program(_Features(model).eval()), "last_hidden_state")


def of_onnxruntime(content: bytes) -> Encode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options)

    def encode(tokens):
        return session.run(None, {"input_ids": tokens.numpy(), "attention_mask": tokens.ne(PADDING).long().numpy()})

    return encode


def of_openvino(content: bytes) -> Encode:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda tokens: model([tokens.numpy(), tokens.ne(PADDING).long().numpy()])


def candidates(args) -> dict[str, tuple[Encode, str]]:
    """name -> what encodes a batch, and how sentences come into batches: "equal", "given" or "sorted"."""
    size, graphs = args.size, {}

    def graph(name, build):
        if name not in graphs:
            graphs[name] = graph_of(build(size))
        return graphs[name]

    def int8():
        from rt_plugin.huggingface.onnx_file import quantised

        return of_onnxruntime(quantised(graph("ours", own_code)))

    def compiled(build):
        return of_transformers(torch.compile(build(size), dynamic=True))

    makers = {
        "ours": (lambda: of_ours(size), "equal"),
        "ours, fairseq's products": (lambda: of_fairseq(fairseq_model(f"recurrent_roberta_{size}")), "equal"),
        "ours, bfloat16": (lambda: of_fairseq(fairseq_model(f"recurrent_roberta_{size}"), torch.bfloat16), "equal"),
        "ours, transformers": (lambda: of_transformers(own_code(size)), "equal"),
        "ours, compiled": (lambda: compiled(own_code), "equal"),
        "ours, ONNX": (lambda: of_onnxruntime(graph("ours", own_code)), "equal"),
        "ours, int8": (int8, "equal"),
        "fairseq": (lambda: of_fairseq(fairseq_model(f"roberta_{size}")), "given"),
        "transformers": (lambda: of_transformers(roberta(size)), "given"),
        "transformers, one by one": (lambda: of_transformers(roberta(size)), "alone"),
        "transformers, sorted": (lambda: of_transformers(roberta(size)), "sorted"),
        "transformers, compiled": (lambda: compiled(roberta), "sorted"),
        "transformers, ONNX": (lambda: of_onnxruntime(graph("transformers", roberta)), "sorted"),
        "transformers, OpenVINO": (lambda: of_openvino(graph("transformers", roberta)), "sorted"),
        "sentence-transformers": (lambda: sentence_transformer(size, "torch"), "text"),
        "sentence-transformers, ONNX": (lambda: sentence_transformer(size, "onnx"), "text"),
        "sentence-transformers, OpenVINO": (lambda: sentence_transformer(size, "openvino"), "text"),
    }
    wanted = [name.strip() for name in args.candidates.split(";")] if args.candidates else list(makers)
    unknown = [name for name in wanted if name not in makers]
    if unknown:
        raise SystemExit(f"benchmark_inference.py: no candidate {unknown[0]!r}; expected some of {'; '.join(makers)}")
    found = {}
    for name in wanted:
        make, order = makers[name]
        start = time.monotonic()
        try:
            found[name] = (make(), order)
            found[name][0](["Ready?"] if order == "text" else torch.full((2, 9), 7))
            print(f"{name}: ready after {time.monotonic() - start:.0f} s", flush=True)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed", flush=True)
        except Exception as error:  # another library's
            print(f"{name}: left out, {type(error).__name__}: {(str(error) or '?').splitlines()[0][:150]}", flush=True)
            found.pop(name, None)
    return found


def batches(tokens: list[torch.Tensor], order: str) -> list[torch.Tensor]:
    """Sentences in batches, padded where their lengths differ."""
    if order in ("equal", "alone"):
        groups = list(equal_length_batches([len(one) for one in tokens], alone=order == "alone"))
    else:
        numbers = list(range(len(tokens)))
        if order == "sorted":
            numbers.sort(key=lambda i: len(tokens[i]))
        groups = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
    return [pad_sequence([tokens[i] for i in group], True, PADDING) for group in groups]


def each(encode: Encode, inputs: list[torch.Tensor]) -> Callable[[], None]:
    def run():
        with quick_projections(many=len(inputs) > 1):  # of models that were given to `prepare`
            for tokens in inputs:
                encode(tokens)

    return run


def sentence_transformer(size: str, backend: str) -> Callable[[list[str]], object]:
    """sentence-transformers' `encode`, around a RobertaModel and the tokenizer of the committed models."""
    from sentence_transformers import SentenceTransformer, models

    model, place = roberta(size), Path(os.environ["RT_FOLDER"]).resolve()
    folder = place / f"sentences-{backend}"
    model.save_pretrained(folder)
    for path in (place / "plain").iterdir():
        if path.name.startswith(("token", "dict", "sentencepiece", "text_")):
            (folder / path.name).write_bytes(path.read_bytes())
    code = {"trust_remote_code": True}
    own = {"onnx": {"export": True, "provider": "CPUExecutionProvider"}, "openvino": {"export": True}}.get(backend, {})
    options = {"model_kwargs": {**code, **own}, "processor_kwargs": code, "config_kwargs": code}
    word = models.Transformer(str(folder), backend=backend, max_seq_length=POSITIONS, **options)
    encoder = SentenceTransformer(modules=[word, models.Pooling(model.config.hidden_size)], device="cpu")
    return lambda texts: encoder.encode(texts, batch_size=BATCH, show_progress_bar=False)


def functions(found: dict, tokens: list[torch.Tensor], texts: list[str] | None) -> dict[str, Callable[[], None]]:
    runs = {}
    for name, (encode, order) in found.items():
        if order != "text":
            runs[name] = each(encode, batches(tokens, order))
        elif texts is not None:
            runs[name] = lambda encode=encode: encode(texts)
    return runs


def latency(encode: Encode) -> float:
    """Median milliseconds of one sentence of 16 tokens, called again and again."""
    run, watch = each(encode, [torch.randint(4, VOCABULARY, (1, 16))]), Stopwatch("cpu")
    times = [watch(run) for _ in range(CALLS)]
    return statistics.median(times[CALLS // 10 :])


def latencies(args: argparse.Namespace, names: list[str]) -> dict[str, list[float]]:
    """One sentence, each candidate in a process of its own: beside others it waits for their threads and caches."""
    times = {name: [] for name in names}
    for _ in range(STARTS):
        for name in names:
            words = [sys.executable, "-W", "ignore", __file__, "--size", args.size, "--out", str(args.out)]
            words += ["--candidates", name, "--latency"]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            times[name].append(float(done.stdout.split()[-1]))
    return times


def rows_of(what: str, times: dict[str, list[float]], sentences: int, machine: str) -> list[dict]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        numbers = (f"{medians[name]:.2f}", f"{min(values):.2f}", f"{max(values):.2f}")
        rate = f"{1000 * sentences / medians[name]:.1f}" if sentences else ""
        ratios = [
            f"{medians[other] / medians[name]:.2f}" if other in medians else ""
            for other in ("transformers", "transformers, sorted")
        ]
        rows.append(dict(zip(COLUMNS, (what, name, *numbers, rate, *ratios, machine), strict=True)))
    return rows


def loading(place: Path) -> dict[str, Callable[[], None]]:
    """Starting Python, importing and loading a model of size mini, in a process of its own."""

    def start(code):
        words = [sys.executable, "-W", "ignore", "-c", f"import sys; {code}"]
        words += map(str, (CHECKPOINT, place.resolve() / "ours", place.resolve() / "plain"))
        subprocess.run(words, cwd=checkout.REPOSITORY, check=True, capture_output=True)

    return {name: lambda code=code: start(code) for name, code in LOADING.items()}


def write_folders(place: Path) -> None:
    from rt_plugin.__main__ import main

    plain = CHECKPOINT.with_name("roberta_mini")
    for source, name in ((CHECKPOINT, "ours"), (plain, "plain")):
        if not (place / name / "config.json").is_file() and main(
            ["export", str(source), str(place / name), "--format", "huggingface"]
        ):
            raise SystemExit(1)


def main() -> None:
    args = parse_arguments()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if args.latency:
        for encode, _ in candidates(args).values():
            print(latency(encode))
        return
    batch, length = (int(number) for number in args.uniform.split("x"))
    args.out.mkdir(parents=True, exist_ok=True)
    place = args.out / "folders"
    os.environ["RT_FOLDER"] = str(place)
    write_folders(place)
    from rt_plugin.model import RecurrentRobertaModel

    ours = RecurrentRobertaModel.from_pretrained(str(CHECKPOINT))
    texts = [line.strip() for line in args.text.read_text(encoding="utf-8").splitlines() if line.strip()][
        : args.sentences
    ]
    natural = ours.encode(texts, truncate=True)
    lengths = np.array([len(one) for one in natural])
    uniform = [torch.randint(4, VOCABULARY, (length,)) for _ in range(batch)]
    machine, watch = describe("cpu"), Stopwatch("cpu")
    found = candidates(args)
    print(
        f"{machine}; natural: {len(natural)} sentences, {lengths.mean():.1f} tokens on average, longest {lengths.max()}"
    )
    share, rows = args.seconds / 10, []
    different = [name for name, (_, order) in found.items() if order != "text" and name not in THE_SAME_FOR_ONE]
    rows += rows_of(ONE_SENTENCE, latencies(args, different), 1, machine)
    sections = [
        (f"{batch} x {length}", uniform, None, 3 * share),
        (f"natural, {len(natural)}", natural, texts, 5 * share),
    ]
    for what, tokens, words, seconds in sections:
        times = interleaved(functions(found, tokens, words), watch, seconds, args.rounds)
        rows += rows_of(what, times, len(tokens), machine)
    starts = loading(place)
    rounds = [{name: watch(start) for name, start in starts.items()} for _ in range(3)]
    rows += rows_of("import and load, mini", {name: [one[name] for one in rounds] for name in starts}, 0, machine)
    print_table(rows, COLUMNS[:-1])
    with (args.out / "benchmark_inference.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    settings = {name: str(value) for name, value in vars(args).items()}
    content = {"settings": settings, "mean_tokens": float(lengths.mean()), "rows": rows}
    (args.out / "benchmark_inference.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
