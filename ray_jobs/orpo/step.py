"""The packed ORPO step: pairs in, mean log-probabilities and the loss out.

Legend: T tokens of a row, B pairs in it, N predicted tokens, D hidden channels.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ray_jobs.orpo import attention
from ray_jobs.orpo.logprobs import token_logps
from ray_jobs.orpo.packing import PackedPairs


@dataclass
class PairLogps:
    """What the loss needs of a row of pairs.

    `chosen_B` and `rejected_B` are mean log-probabilities per answer token; `nll_sum_B` is the negative
    log-likelihood summed over the predicted tokens of a prompt and its chosen answer.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    nll_sum_B: Tensor


def enable_packed_step(causal_lm: nn.Module) -> None:
    """Teach a transformers causal language model to answer `model(packed=pairs)` with PairLogps.

    Calls without `packed` work as before, except that the model's attention then needs spans. The
    call goes through the model's own forward, so wrappers (PEFT, DDP, DeepSpeed) see it as any other.
    """
    attention.register()
    causal_lm.set_attn_implementation(attention.ATTENTION_NAME)
    output_layer = causal_lm.get_output_embeddings()
    output_layer.forward = MethodType(_output_forward, output_layer)
    causal_lm.forward = MethodType(_packed_forward, causal_lm)


def _packed_forward(self: Any, packed: PackedPairs, **_kwargs: Any) -> PairLogps:
    joined = getattr(self, "joined_linears", None)  # of fused layers
    options = (
        {} if joined is None else {"linears": joined.prepare(_dtype(self.get_input_embeddings().weight))}
    )
    hidden_1TD = self.get_decoder()(
        input_ids=packed.input_ids_T[None],
        position_ids=packed.position_ids_T[None],
        use_cache=False,
        spans=packed.spans,
        **options,
    ).last_hidden_state
    logps_N = self.get_output_embeddings()(hidden_1TD[0], packed)
    return summarize(logps_N, packed)


def _output_forward(self: nn.Linear, hidden_TD: Tensor, packed: PackedPairs) -> Tensor:
    # inside the output layer's own forward, where ZeRO-3 has gathered its weight
    dtype = _dtype(self.weight)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        return token_logps(hidden_TD.to(dtype)[packed.predictor_N], self.weight, packed.label_N)


def _dtype(weight: Tensor) -> torch.dtype:
    """The type that matrix products run in: autocast's, else the weights' own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def summarize(logps_N: Tensor, packed: PackedPairs) -> PairLogps:
    """Sum token log-probabilities over answers and over the chosen sequences."""
    num_pairs = packed.num_pairs
    sums_3B = torch.zeros(3 * num_pairs, dtype=logps_N.dtype, device=logps_N.device)
    sums_3B = sums_3B.index_add(0, packed.answer_N, logps_N)
    chosen_B, rejected_B, prompt_B = sums_3B.split(num_pairs)
    num_chosen_B, num_rejected_B = packed.num_answer_tokens_2B.split(num_pairs)
    return PairLogps(chosen_B / num_chosen_B, rejected_B / num_rejected_B, -(prompt_B + chosen_B))
