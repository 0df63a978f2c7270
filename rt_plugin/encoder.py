"""fairseq's Transformer encoder with one look for padding a batch, so that a GPU is not waited for in every layer."""

import torch
from fairseq.models.transformer import TransformerEncoder
from torch import Tensor


class OneLookEncoder(TransformerEncoder):
    """Computes what fairseq's does, in another order.

    fairseq asks in each layer whether the batch holds padding, which waits for the device, and stops a graph of
    torch.compile. Here it is asked once; in a graph never: the mask counts there, whether it masks something or not.
    """

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list]:
        """As fairseq's.

        Args:
            src_tokens: (B, L).
            src_lengths: not used, as in fairseq's.
            return_all_hiddens: give the layers' outputs, too.
            token_embeddings: (B, L, d) in place of the tokens' own, or None.

        Returns:
            As fairseq's: lists of one tensor, but for `encoder_states` and `fc_results`. `encoder_out` (L, B, d).
        """
        embedded = self.forward_embedding(src_tokens, token_embeddings)
        return self.run_layers(src_tokens, *embedded, return_all_hiddens)

    def run_layers(
        self, src_tokens: Tensor, x: Tensor, embedding: Tensor, return_all_hiddens: bool, **of_layers
    ) -> dict[str, list]:
        """From embedded tokens to what `forward` returns.

        Args:
            src_tokens: (B, L).
            x: (B, L, d), the tokens embedded, with positions.
            embedding: (B, L, d), without.
            of_layers: further arguments of every layer.
        """
        padding = src_tokens.eq(self.padding_idx)
        unknown = torch.compiler.is_compiling() or src_tokens.device.type == "xla"
        mask = padding if unknown or padding.any() else None
        if mask is not None:
            x = x.masked_fill(mask.unsqueeze(-1), 0)
            lengths = (~padding).sum(dim=1, dtype=torch.int32)
        else:
            lengths = src_tokens.new_full(src_tokens.shape[:1], src_tokens.shape[1], dtype=torch.int32)
        x = x.transpose(0, 1)
        states, results = [x] if return_all_hiddens else [], []
        for layer in self.layers:
            output = layer(x, encoder_padding_mask=mask, **of_layers)
            x, result = output if isinstance(output, tuple) else (output, None)
            if return_all_hiddens:  # else each would stay in memory to the end
                states.append(x)
                results.append(result)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [padding],
            "encoder_embedding": [embedding],
            "encoder_states": states,
            "fc_results": results,
            "src_tokens": [],
            "src_lengths": [lengths.unsqueeze(1)],
        }
