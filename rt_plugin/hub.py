"""Loading a model folder for inference, and what the loaded model can do: from the room `inference`."""

from rt_plugin.inference.interface import CLASSIFICATION_HEAD, RecurrentRobertaHubInterface
from rt_plugin.inference.likelihood import MASK
from rt_plugin.inference.loading import from_pretrained

__all__ = ["CLASSIFICATION_HEAD", "MASK", "RecurrentRobertaHubInterface", "from_pretrained"]
