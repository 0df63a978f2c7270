"""The records in the log of a training. Imports the standard library only."""

import json
import re
from collections.abc import Iterable

_RECORD = re.compile(r"\| INFO \| (train|train_inner|valid) \| (\{.*\})\s*$")
# fairseq's names of what is kept of a record; "wall" counts all attempts of a training that was resumed
_FIELDS = {
    "num_updates": "update",
    "loss": "loss",
    "ppl": "perplexity",
    "mask_loss": "mask_loss",
    "mask_ppl": "mask_perplexity",
    "accuracy": "accuracy",
    "masked": "masked_per_cent",
    "lr": "learning_rate",
    "gnorm": "gradient_norm",
    "loss_scale": "loss_scale",
    "wps": "tokens_per_second",
    "wpb": "tokens_per_update",
    "ups": "updates_per_second",
    "wall": "seconds",
}


def read_log(lines: Iterable[str]) -> list[dict]:
    """The progress records in the lines of a fairseq log written with `--log-format json`.

    Returns:
        For each record `split` ("train", "valid", or "epoch" for the training data's mean over an epoch), `update` and,
        where logged, `loss` (bits), `perplexity`, in validation both of `<mask>` alone (`mask_loss`,
        `mask_perplexity`), `accuracy` (0 to 1), `masked_per_cent`, `learning_rate`, `gradient_norm`, `loss_scale`,
        `tokens_per_second`, `tokens_per_update`, `updates_per_second`, and `seconds` since the training's first start.
        Lines that are no record, or half of one, are passed over.
    """
    records = []
    for line in lines:
        found = _RECORD.search(line)
        if not found:
            continue
        kind, text = found.groups()
        try:
            record = _record(kind, json.loads(text))
        except ValueError:  # half a line of a killed training
            continue
        if "loss" in record and "update" in record:
            records.append(record)
    return records


def _record(kind: str, logged: dict) -> dict:
    split = "valid" if kind == "valid" else "train"
    logged = {name.removeprefix(f"{split}_"): value for name, value in logged.items()}
    record = {new: float(logged[old]) for old, new in _FIELDS.items() if old in logged}
    record["split"] = "epoch" if kind == "train" else split
    if "update" in record:
        record["update"] = int(record["update"])
    if "masked" in logged and "accuracy" in record:  # rt_masked_lm logs per cent, rt_glue a fraction
        record["accuracy"] /= 100
    return record


def read_json_records(lines: Iterable[str]) -> list[dict]:
    """The records in the lines of a log.jsonl, as `read_log` has them; other lines, or half ones, are passed over."""
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"update", "split"} <= record.keys():
            records.append(record)
    return records
