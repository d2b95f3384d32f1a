import pytest

from ray_jobs.orpo.packing import pack, split_by_budget
from ray_jobs.orpo.tokens import PairTokens

PAIRS = [PairTokens("a", (10, 11), (12, 13, 14), (15, 16)), PairTokens("b", (20,), (21,), (22, 23))]


def test_row_holds_each_prompt_once_and_no_padding() -> None:
    packed = pack(PAIRS)
    assert packed.input_ids_T.tolist() == [10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23]
    assert packed.num_tokens == 11
    assert packed.num_unshared_tokens == 11 + 2 + 1


def test_positions_of_rejected_answers_restart_after_the_prompt() -> None:
    assert pack(PAIRS).position_ids_T.tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 1, 2]


def test_every_label_is_predicted_by_the_token_before_it() -> None:
    packed = pack(PAIRS)
    predictors = packed.input_ids_T[packed.predictor_N].tolist()
    pairs = list(zip(predictors, packed.label_N.tolist(), packed.answer_N.tolist(), strict=True))
    prompt_a, chosen_a, rejected_a, chosen_b, rejected_b = 4, 0, 2, 1, 3
    assert pairs == [
        (10, 11, prompt_a), (11, 12, chosen_a), (12, 13, chosen_a), (13, 14, chosen_a), (11, 15, rejected_a),
        (15, 16, rejected_a), (20, 21, chosen_b), (20, 22, rejected_b), (22, 23, rejected_b),
    ]  # fmt: skip
    assert packed.num_nll_tokens == 4 + 1


@pytest.mark.parametrize("budget", [1, 7, 10, 1000])
def test_groups_hold_every_pair_once_and_keep_to_the_budget(budget: int) -> None:
    lengths = [5, 3, 8, 2, 2, 7, 1]
    groups = split_by_budget(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or sum(lengths[i] for i in group) <= budget for group in groups)


def test_groups_are_full_where_lengths_allow_it() -> None:
    assert len(split_by_budget([6, 5, 5, 4, 3, 3, 2, 2], 10)) == 3


def test_prompts_that_are_not_learnt_have_no_labels_and_the_same_positions() -> None:
    packed, whole = pack(PAIRS, learns_prompts=False), pack(PAIRS)
    answers = whole.answer_N < 2 * len(PAIRS)
    for name in ("predictor_N", "label_N", "answer_N"):
        assert getattr(packed, name).tolist() == getattr(whole, name)[answers].tolist()
    assert packed.input_ids_T.tolist() == whole.input_ids_T.tolist()
    assert packed.num_nll_tokens == 3 + 1 == sum(pair.num_likelihood(learns_prompts=False) for pair in PAIRS)
    assert whole.num_nll_tokens == sum(pair.num_likelihood() for pair in PAIRS)
