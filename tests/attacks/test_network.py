"""Nothing is downloaded: not what a caller forgot to give, nor what a checkpoint or a name asks for."""

import pytest
from fairseq import hub_utils
from fairseq.models.roberta import RobertaModel

from conftest import REPOSITORY
from rt_plugin.errors import UserError
from rt_plugin.model import RecurrentRobertaModel

MODEL = str(REPOSITORY / "examples" / "checkpoints" / "recurrent_roberta_mini")


@pytest.mark.parametrize(
    "load",
    [
        lambda: RecurrentRobertaModel.from_pretrained(MODEL, bpe="gpt2"),
        lambda: RobertaModel.from_pretrained(MODEL, "checkpoint_best.pt", bpe="gpt2"),
        lambda: RobertaModel.from_pretrained("roberta.base"),
        lambda: hub_utils.from_pretrained("https://example.org/model.tar.gz"),
        lambda: hub_utils.from_pretrained(MODEL, "checkpoint_best.pt", "s3://example.org/data"),
    ],
)
def test_addresses_are_refused(load):
    with pytest.raises(UserError, match=r"(https?|s3)://.*: is an address, and nothing is downloaded"):
        load()
