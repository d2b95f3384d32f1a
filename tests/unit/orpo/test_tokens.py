import dataclasses

import pytest

from ray_jobs.errors import ModelError
from ray_jobs.orpo.settings import TrainingSettings
from ray_jobs.orpo.tokens import PairTokens, Skipped, prompt_tokens, tokenize_pair, tokenize_pairs
from ray_jobs.records import Message, Pair
from tests.unit.orpo.tiny import CHATML, tiny_tokenizer

SETTINGS = TrainingSettings(max_pair_tokens=200)
TOKENIZER = tiny_tokenizer()
START, END = 1, 2


def make_pair(prompt: str = "Hi", chosen: str = "Yes", rejected: str = "No") -> Pair:
    return Pair("1", "made", (Message("user", prompt),), chosen, rejected)


def tokens_of(pair: Pair, tokenizer: object = TOKENIZER, settings: TrainingSettings = SETTINGS) -> PairTokens:
    result = tokenize_pair(tokenizer, pair, settings)
    assert isinstance(result, PairTokens)
    return result


def test_prompt_ends_where_generation_starts_and_answers_end_with_their_turn() -> None:
    tokens = tokens_of(make_pair())
    assert TOKENIZER.decode(tokens.prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert TOKENIZER.decode(tokens.chosen) == "Yes<|im_end|>"
    assert TOKENIZER.decode(tokens.rejected) == "No<|im_end|>"


def test_prompt_is_what_the_template_gives_at_inference() -> None:
    messages = [{"role": "user", "content": "Grüße, 你好\n\n x"}]
    inference = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(tokens_of(make_pair(prompt="Grüße, 你好\n\n x")).prompt) == list(inference)


def test_control_strings_in_messages_stay_text() -> None:
    pair = make_pair("a<|im_end|>b", "c<|im_start|>user\nd", "<|endoftext|>")
    tokens = tokens_of(pair)
    assert [token for token in tokens.prompt if token < 3] == [START, END, START]
    assert [token for token in tokens.chosen if token < 3] == [END]
    assert [token for token in tokens.rejected if token < 3] == [END]
    assert TOKENIZER.decode(tokens.chosen) == "c<|im_start|>user\nd<|im_end|>"
    plain = tokens_of(make_pair("a", "c", "d"))
    assert tokens.prompt[:7] == plain.prompt[:7]


def test_one_bos_whether_the_template_or_the_tokenizer_writes_it() -> None:
    from tokenizers import processors

    adds_bos = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    adds_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    tokens = tokens_of(make_pair(), adds_bos)
    assert tokens.prompt[0] == START
    assert list(tokens.prompt).count(START) == 1
    assert START not in tokens.chosen
    assert adds_bos.decode(tokens.chosen) == "Yes<|im_end|>"
    both = tiny_tokenizer(CHATML)
    both.backend_tokenizer.post_processor = adds_bos.backend_tokenizer.post_processor
    assert list(tokens_of(make_pair(), both).prompt) == list(tokens_of(make_pair()).prompt)


def test_a_turn_that_the_template_leaves_open_is_closed_once() -> None:
    open_ended = tiny_tokenizer("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
                                "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    tokens = tokens_of(make_pair(), open_ended)
    assert tokens.chosen[-1] == END
    assert tokens.chosen.count(END) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": "Y\0es"}, "nul"),
        ({"rejected": "\ud800"}, "bad_unicode"),
        ({"chosen": " \n"}, "empty_chosen"),
        ({"rejected": ""}, "empty_rejected"),
        ({"rejected": "Yes"}, "identical"),
        ({"prompt": (Message("user", "  "),)}, "empty_prompt"),
    ],
)
def test_unusable_rows_are_skipped_with_a_reason(change: dict[str, object], reason: str) -> None:
    pair = dataclasses.replace(make_pair(), **change)  # type: ignore[arg-type]
    assert tokenize_pair(TOKENIZER, pair, SETTINGS) == Skipped("1", reason)


def test_answers_that_the_template_makes_equal_are_identical() -> None:
    trimming = tiny_tokenizer(CHATML.replace("m['content']", "m['content'] | trim"))
    assert tokenize_pair(trimming, make_pair(rejected="Yes "), SETTINGS) == Skipped("1", "identical")


def test_overlong_pairs_are_dropped_or_cut_from_the_left_and_counted() -> None:
    long_prompt, long_answer = make_pair(prompt="x" * 300), make_pair(chosen="y" * 300)
    dropped = tokenize_pairs(TOKENIZER, [long_prompt, long_answer, make_pair()], SETTINGS)
    assert (len(dropped.pairs), dropped.reasons) == (1, {"too_long": 2})
    cutting = SETTINGS.model_copy(update={"overlong": "cut_prompt"})
    cut = tokenize_pairs(TOKENIZER, [long_prompt, long_answer, make_pair()], cutting)
    assert cut.reasons == {"answer_too_long": 1}
    assert cut.num_cut_prompts == 1
    whole = tokens_of(long_prompt, settings=TrainingSettings(max_pair_tokens=1000))
    assert len(cut.pairs[0].prompt) + len(cut.pairs[0].chosen) == 200
    assert cut.pairs[0].prompt == whole.prompt[-len(cut.pairs[0].prompt) :]
    assert cut.pairs[0].chosen == whole.chosen


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ModelError, match="no chat template"):
        prompt_tokens(tiny_tokenizer(None), (Message("user", "a"),))


TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SYSTEM = (Message("system", "Be brief."), Message("user", "Hi"))
SYSTEM_IN_LAST_TURN = (  # as Mistral's: before the user's turn if that is the last, else not at all
    "{% set first = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}"
    "{% if m['role'] == 'user' %}<|im_start|>{% if loop.last and first %}{{ first }}\n{% endif %}"
    "{{ m['content'] }}<|im_start|>{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
NO_SYSTEM = (  # as Gemma's
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns here') }}{% endif %}"
)
TWO_SIDES = (  # as older ones of Mistral
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must take turns') }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (SYSTEM_IN_LAST_TURN, "no place to start"),
        (NO_SYSTEM + TURN + ASKS, "No system turns here"),
        (TWO_SIDES + TURN + ASKS, "Turns must take turns"),
    ],
)
def test_pairs_that_the_template_refuses_are_skipped_and_counted(template: str, says: str) -> None:
    tokenizer = tiny_tokenizer(template)
    refused = dataclasses.replace(make_pair(), id="2", prompt=SYSTEM)
    both = tokenize_pairs(tokenizer, [refused, make_pair()], SETTINGS)
    assert ([pair.id for pair in both.pairs], both.reasons) == (["1"], {"template": 1})
    assert tokenizer.decode(both.pairs[0].chosen).strip() == "Yes<|im_end|>"
    with pytest.raises(ModelError, match=f"of 2 pairs none is usable; 2 do not fit .*{says}"):
        tokenize_pairs(tokenizer, [refused, refused], SETTINGS)


def test_what_a_template_writes_after_the_end_of_a_turn_is_not_learnt() -> None:
    # as Phi-3's: a line break and the token that ends a text
    ends_text = tiny_tokenizer(
        TURN.replace("<|im_end|>", "<|im_end|>\n")
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
    )
    tokens = tokens_of(make_pair(chosen="end <|im_end|> end"), ends_text)
    assert ends_text.decode(tokens.chosen) == "end <|im_end|> end<|im_end|>"
    assert [token for token in (*tokens.chosen, *tokens.rejected) if token < 3] == [END, END]


def test_a_turn_ends_behind_the_answer_not_behind_what_stands_before_it() -> None:
    thinks_first = tiny_tokenizer(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{{ m['content'] | trim }}<|im_end|>\n"
        "{% endfor %}" + ASKS
    )
    tokens = tokens_of(make_pair(chosen=" Yes "), thinks_first)
    assert thinks_first.decode(tokens.chosen) == "<|endoftext|>Yes<|im_end|>"


def test_added_tokens_are_listed_once_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    calls: list[int] = []
    listed = type(tokenizer).added_tokens_decoder.fget
    monkeypatch.setattr(
        type(tokenizer), "added_tokens_decoder", property(lambda self: (calls.append(1), listed(self))[1])
    )
    tokenize_pairs(tokenizer, [make_pair(), make_pair(prompt="<|im_end|>")], SETTINGS)
    of_two = len(calls)
    tokenize_pairs(tokenizer, [make_pair(prompt="<|im_end|>")] * 5, SETTINGS)
    assert of_two < 10
    assert len(calls) == of_two
