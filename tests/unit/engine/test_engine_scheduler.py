"""The scheduler against a fake backend: order, fairness, reuse, and nothing left behind."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from engine_fakes import FakeBackend, FakeVocabulary, expected_answer, expected_token, job, run

from serving.engine.scheduler import Scheduler
from serving.engine.slots import Job


def scheduler_of(backend: FakeBackend, **options: object) -> Scheduler:
    return Scheduler(backend, FakeVocabulary(), **options)  # type: ignore[arg-type]


def prompt_that_lasts(length: int, tokens: int) -> list[int]:
    """A prompt whose expected answer is at least `tokens` long."""
    for first in range(1, 97):
        prompt = [first, *range(1, length)]
        if len(expected_answer(prompt, tokens)) == tokens:
            return prompt
    raise AssertionError("no such prompt")


def assert_nothing_left(scheduler: Scheduler, backend: FakeBackend, jobs: list[Job]) -> None:
    assert scheduler.num_jobs == 0
    assert scheduler.num_free == backend.num_slots
    for slot in scheduler.slots:
        assert slot.job is None
        assert backend.held[slot.index] == slot.tokens
        assert slot.num_computed == len(slot.tokens)
    assert all(each.sampler.num_closed == 1 for each in jobs)  # type: ignore[attr-defined]


@pytest.mark.parametrize("deterministic", [False, True])
def test_thousand_mixed_jobs_are_answered_and_nothing_leaks(deterministic: bool) -> None:
    rng = random.Random(7)
    backend = FakeBackend(num_slots=5, context_tokens=200, tile_tokens=20 if deterministic else None)
    scheduler = scheduler_of(backend, batch_tokens=32, deterministic=deterministic)
    shared = [rng.randrange(1, 97) for _ in range(60)]
    jobs = [
        job(
            shared[: rng.choice([0, 0, 20, 60])] + [rng.randrange(1, 97) for _ in range(rng.randint(1, 90))],
            name=str(index),
            max_tokens=rng.randint(1, 40),
            deadline_s=0.0 if rng.random() < 0.05 else None,
        )
        for index in range(1000)
    ]
    for each in jobs:
        scheduler.add(each)
        if rng.random() < 0.1:
            rng.choice(jobs).stream.cancel()
        if rng.random() < 0.5:
            backend.abort_next = rng.random() < 0.1
            scheduler.step()
    run(scheduler, 100_000)
    assert_nothing_left(scheduler, backend, jobs)
    for each in jobs:
        result = each.stream.result(0)
        expected = expected_answer(each.request.prompt, each.request.sampling.max_tokens)
        if result.finish_reason in ("stop", "length"):
            assert result.tokens == expected
            assert result.finish_reason == (
                "length" if len(expected) == each.request.sampling.max_tokens else "stop"
            )
        else:
            assert result.tokens == expected[: len(result.tokens)]
    counters = scheduler.counters
    assert counters.requests_done + counters.requests_cancelled == 1000
    assert counters.requests_done > 800
    assert counters.cached_tokens > 0


def test_a_job_joins_while_another_writes_and_both_share_passes() -> None:
    backend = FakeBackend()
    scheduler = scheduler_of(backend)
    first = job(prompt_that_lasts(5, 20), max_tokens=20)
    scheduler.add(first)
    for _ in range(4):
        scheduler.step()
    second = job([9] * 7, name="b", max_tokens=3)
    scheduler.add(second)
    scheduler.step()
    assert sorted(backend.passes[-1]) == [(0, 1), (1, 7)]
    run(scheduler)
    assert first.stream.result(0).num_answer_tokens == 20


def test_answers_go_on_while_a_long_prompt_is_computed_in_chunks() -> None:
    backend = FakeBackend(context_tokens=1000)
    scheduler = scheduler_of(backend, batch_tokens=50)
    writing = job(prompt_that_lasts(3, 30), max_tokens=30)
    scheduler.add(writing)
    scheduler.step()
    scheduler.add(job([5] * 200, name="long", max_tokens=1))
    for _ in range(4):
        scheduler.step()
        assert backend.passes[-1] == [(0, 1), (1, 49)]
    scheduler.step()
    assert backend.passes[-1] == [(0, 1), (1, 4)]


@pytest.mark.parametrize("tile_tokens", [None, 20, 0])
def test_a_prompt_is_scored_whole_whatever_is_beside_it(tile_tokens: int | None) -> None:
    """0: deterministic with a backend that has no tiles, one sequence a pass."""
    backend = FakeBackend(num_slots=3, context_tokens=200, tile_tokens=tile_tokens or None)
    scheduler = scheduler_of(backend, batch_tokens=32, deterministic=tile_tokens is not None)
    prompt = [index % 90 + 1 for index in range(150)]
    jobs = [
        job(prompt_that_lasts(5, 12), max_tokens=12),
        job(prompt, name="b", max_tokens=3, top_logprobs=2, scores_prompt=True),
        job(prompt, name="again", max_tokens=3, top_logprobs=0, scores_prompt=True),
        job(prompt, name="unscored", max_tokens=3),
    ]
    for each in jobs:
        scheduler.add(each)
    backend.abort_next = True
    run(scheduler)
    assert_nothing_left(scheduler, backend, jobs)
    results = [each.stream.result(0) for each in jobs]
    for result, num_top in ((results[1], 2), (results[2], 0)):
        assert result.prompt_logprobs is not None
        assert [entry.token_id for entry in result.prompt_logprobs] == prompt[1:]
        assert [entry.logprob for entry in result.prompt_logprobs] == [
            -float(expected_token(prompt[:end])) for end in range(1, len(prompt))
        ]
        assert {len(entry.top) for entry in result.prompt_logprobs} == {num_top}
        assert result.num_cached_tokens == 0
        assert result.tokens == expected_answer(prompt, 3)
    assert results[0].prompt_logprobs is results[3].prompt_logprobs is None
    assert results[3].tokens == expected_answer(prompt, 3)


def test_a_scored_prompt_takes_the_slot_that_was_least_recently_used() -> None:
    backend = FakeBackend(num_slots=2)
    scheduler = scheduler_of(backend)
    chat, other = [3, 5, 7, 11] * 10, [13, 17, 19, 23] * 10
    for prompt in (chat, other, [*chat, 1]):
        scheduler.add(job(prompt, max_tokens=1))
        run(scheduler)
    scheduler.add(job(chat[:20], top_logprobs=0, scores_prompt=True, max_tokens=1))
    run(scheduler)
    again = job([*chat, 1, 2], max_tokens=1)
    scheduler.add(again)
    run(scheduler)
    assert again.stream.result(0).num_cached_tokens >= len(chat), "the chat has kept its slot"


def test_a_next_turn_computes_only_what_is_new() -> None:
    backend = FakeBackend()
    scheduler = scheduler_of(backend)
    first = job([3, 5, 7, 11] * 10, max_tokens=5)
    scheduler.add(first)
    run(scheduler)
    answer = first.stream.result(0).tokens
    second = job([*first.request.prompt, *answer, 2, 2], name="b", max_tokens=1)
    scheduler.add(second)
    run(scheduler)
    result = second.stream.result(0)
    # The last sampled token was never computed: it is the one known token that is not in the cache.
    assert result.num_cached_tokens == len(first.request.prompt) + len(answer) - 1
    assert result.tokens == expected_answer(second.request.prompt, 1)


def test_prompts_that_share_a_start_compute_it_once() -> None:
    backend = FakeBackend(num_slots=4, context_tokens=512)
    scheduler = scheduler_of(backend, batch_tokens=256)
    rubric = [7] * 100
    jobs = [job([*rubric, index], name=str(index), max_tokens=2) for index in range(1, 5)]
    for each in jobs:
        scheduler.add(each)
    run(scheduler)
    assert backend.passes[0] == [(0, 101)]
    assert len(backend.copies) == 3
    assert [each.stream.result(0).num_cached_tokens for each in jobs] == [0, 100, 100, 100]
    for each in jobs:
        assert each.stream.result(0).tokens == expected_answer(each.request.prompt, 2)


def test_a_long_conversation_outlives_short_prompts() -> None:
    backend = FakeBackend(num_slots=2, context_tokens=512)
    scheduler = scheduler_of(backend)
    long = [1, 2, 3] + [4] * 200
    scheduler.add(job(long, max_tokens=1))
    run(scheduler)
    for index in range(5):
        scheduler.add(job([1, 2, 3, index + 10], name=str(index), max_tokens=1))
        run(scheduler)
    again = job([*long, 5], name="again", max_tokens=1)
    scheduler.add(again)
    run(scheduler)
    assert again.stream.result(0).num_cached_tokens >= len(long) - 1


def filled(num_slots: int) -> tuple[FakeBackend, Scheduler, list[list[int]]]:
    """Each slot holds a conversation of its own, the first slot's being the oldest."""
    backend = FakeBackend(num_slots=num_slots, context_tokens=512)
    scheduler = scheduler_of(backend)
    conversations = [[50 + index, *range(1, 60)] for index in range(num_slots)]
    for index, conversation in enumerate(conversations):
        for slot in scheduler.slots[:index]:
            slot.last_used += 1  # so that the next one is not theirs
        scheduler.slots[index].last_used = -1
        answered(scheduler, conversation, 1)
    for index, slot in enumerate(scheduler.slots):
        assert slot.tokens[:60] == conversations[index]
        slot.last_used = index + 1
    return backend, scheduler, conversations


def answered(scheduler: Scheduler, prompt: list[int], max_tokens: int) -> Job:
    each = job(prompt, name=str(prompt[0]), max_tokens=max_tokens)
    scheduler.add(each)
    run(scheduler)
    assert each.stream.result(0).tokens == expected_answer(prompt, max_tokens)
    return each


def test_a_job_gets_a_place_beside_the_busy_ones_and_no_conversation_is_lost_by_it() -> None:
    backend, scheduler, conversations = filled(8)
    scheduler.slots[1].last_used = 100  # the oldest are 0 and then 2
    writing = [job(prompt_that_lasts(30, 40), max_tokens=40), job([95, *range(1, 40)], max_tokens=30)]
    for each in writing:
        scheduler.add(each)
        scheduler.step()
    assert [slot.index for slot in scheduler.slots if slot.job] == [0, 1]
    assert backend.copies == [(1, 2)]
    run(scheduler)
    for each in writing:
        assert each.stream.result(0).tokens == expected_answer(
            each.request.prompt, each.request.sampling.max_tokens
        )
    cached = {
        index: answered(scheduler, [*conversations[index], 9], 1).stream.result(0).num_cached_tokens
        for index in (1, 3, 4, 5, 6, 7)
    }
    assert set(cached.values()) == {60}, "only the two oldest were given up"


def test_a_conversation_goes_on_beside_the_busy_ones_and_leaves_its_slot_to_others() -> None:
    backend, scheduler, conversations = filled(8)
    writing = job(prompt_that_lasts(30, 40), max_tokens=40)
    scheduler.add(writing)
    scheduler.step()
    turn = job([*conversations[5], 9], name="turn", max_tokens=30)
    scheduler.add(turn)
    scheduler.step()
    assert [slot.index for slot in scheduler.slots if slot.job] == [0, 1]
    assert backend.copies == [(5, 1)], "what the oldest one holds may be given up"
    assert scheduler.slots[5].is_spare
    run(scheduler)
    result = turn.stream.result(0)
    assert result.num_cached_tokens == 60
    assert result.tokens == expected_answer(turn.request.prompt, 30)


def test_a_short_answer_is_worth_no_copy() -> None:
    backend, scheduler, _ = filled(8)
    scheduler.slots[1].last_used = 100
    scheduler.add(job(prompt_that_lasts(30, 40), max_tokens=40))
    scheduler.step()
    scheduler.add(job([95, *range(1, 40)], max_tokens=2))
    scheduler.step()
    assert [slot.index for slot in scheduler.slots if slot.job] == [0, 2]
    assert backend.copies == []


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("busy", [3, 5, 8])
def test_few_busy_slots_of_many_lie_side_by_side(busy: int, chat: bool) -> None:
    backend = FakeBackend(num_slots=16, context_tokens=512)
    scheduler, draw = scheduler_of(backend), random.Random(busy)
    running: list[Job] = []
    histories = [[10 + number, *range(1, 40)] for number in range(24)]
    gaps, passes = 0, 0
    for turn in range(400):
        while len(running) < busy:
            history = draw.choice(histories) if chat else [*draw.choices(range(1, 97), k=50)]
            prompt = [*history, *draw.choices(range(1, 97), k=5)]
            running.append(job(prompt, name=str(turn), max_tokens=draw.randint(10, 60)))
            scheduler.add(running[-1])
        scheduler.step()
        places = [slot for slot, _ in backend.passes[-1]]
        gaps, passes = gaps + places[-1] - places[0] + 1 - len(places), passes + 1
        for each in [each for each in running if each.stream.done]:
            running.remove(each)
            result = each.stream.result(0)
            assert result.tokens == expected_answer(each.request.prompt, each.request.sampling.max_tokens)
    assert gaps / passes < 0.25


def test_who_is_left_writing_moves_together_and_what_was_computed_stays() -> None:
    backend = FakeBackend(num_slots=16, context_tokens=512)
    scheduler, draw = scheduler_of(backend), random.Random(0)
    jobs = [
        job([10 + index, *range(1, 40)], name=str(index), max_tokens=draw.randint(5, 120))
        for index in range(16)
    ]
    for each in jobs:
        scheduler.add(each)
    run(scheduler)
    gaps = [places[-1][0] - places[0][0] + 1 - len(places) for places in map(sorted, backend.passes)]
    assert len(gaps) > 60
    assert sum(gaps) < 0.1 * len(gaps)
    for each in jobs:
        result = each.stream.result(0)
        assert result.tokens == expected_answer(each.request.prompt, each.request.sampling.max_tokens)
    assert_nothing_left(scheduler, backend, jobs)
    assert [slot.index for slot in scheduler.slots] == list(range(16))
    kept = {tuple(slot.tokens[:40]) for slot in scheduler.slots if not slot.is_spare}
    assert len(kept) == 15, "one slot became the spare one"


def test_cancel_in_the_prompt_after_an_aborted_pass() -> None:
    backend = FakeBackend(context_tokens=500)
    scheduler = scheduler_of(backend, batch_tokens=64)
    writing = job(prompt_that_lasts(3, 10), max_tokens=10)
    leaving = job([5] * 300, name="b")
    scheduler.add(writing)
    scheduler.step()
    scheduler.add(leaving)
    scheduler.step()
    assert scheduler.computes(leaving.stream)
    backend.abort_next = True
    leaving.stream.cancel()
    scheduler.step()
    run(scheduler)
    assert leaving.stream.result(0).finish_reason == "cancelled"
    assert leaving.stream.result(0).num_answer_tokens == 0
    assert writing.stream.result(0).tokens == expected_answer(writing.request.prompt, 10)
    assert_nothing_left(scheduler, backend, [writing, leaving])


def test_deadline_returns_the_answer_so_far() -> None:
    now_s = [0.0]
    backend = FakeBackend()
    scheduler = scheduler_of(backend, clock=lambda: now_s[0])
    late = job(prompt_that_lasts(3, 50), max_tokens=50, deadline_s=5.0, now_s=0.0)
    scheduler.add(late)
    for _ in range(4):
        scheduler.step()
    now_s[0] = 5.0
    scheduler.step()
    result = late.stream.result(0)
    assert (result.finish_reason, result.num_answer_tokens, result.seconds) == ("timeout", 4, 5.0)


def test_the_context_ends_an_answer() -> None:
    backend = FakeBackend(context_tokens=20)
    scheduler = scheduler_of(backend)
    endless = job(prompt_that_lasts(15, 6), max_tokens=1000)
    scheduler.add(endless)
    run(scheduler)
    result = endless.stream.result(0)
    assert result.finish_reason == "length"
    assert result.num_answer_tokens == 20 - 15 + 1  # the last one is sampled, and needs no room of its own


@pytest.mark.parametrize("length", [12, 19, 20, 90])
def test_deterministic_passes_are_batched_share_prompts_and_tile_long_ones(length: int) -> None:
    backend = FakeBackend(tile_tokens=10)
    scheduler = scheduler_of(backend, deterministic=True, batch_tokens=64)
    starts = list(range(1, length - 4))
    prompts = [[*starts, index + 40, 2, 3, 4, 5] for index in range(12)]
    jobs = [job(prompt, name=str(index), max_tokens=8) for index, prompt in enumerate(prompts)]
    for each in jobs:
        scheduler.add(each)
    run(scheduler)
    assert max(len(chunks) for chunks in backend.passes) > 1
    for each in jobs:
        assert each.stream.result(0).tokens == expected_answer(each.request.prompt, 8)
    cached = sum(each.stream.result(0).num_cached_tokens for each in jobs)
    assert cached >= 8 * (min(len(starts), length - 10) if length >= 20 else len(starts))
    assert backend.num_tiled == (12 * length - cached if length >= 20 else 0)
    assert_nothing_left(scheduler, backend, jobs)


def test_prompts_that_differ_within_the_last_tile_wait_for_no_answer() -> None:
    """One system prompt and short questions: what two of them share ends within the tiles of both."""
    backend = FakeBackend(16, 600, tile_tokens=64)
    scheduler = scheduler_of(backend, deterministic=True)
    starts = [1 + index % 90 for index in range(300)]
    jobs = [job([*starts, *[40 + index] * 25], name=str(index), max_tokens=40) for index in range(16)]
    for each in jobs:
        scheduler.add(each)
    run(scheduler)
    num_tokens = [len(expected_answer(each.request.prompt, 40)) for each in jobs]
    assert len(backend.passes) < sum(num_tokens) / 4
    for each in jobs:
        assert each.stream.result(0).tokens == expected_answer(each.request.prompt, 40)
    assert_nothing_left(scheduler, backend, jobs)


def test_what_was_written_is_gone_on_with_from_the_cache_and_a_longer_prompt_is_not() -> None:
    backend = FakeBackend(tile_tokens=10)
    scheduler = scheduler_of(backend, deterministic=True)
    prompt = prompt_that_lasts(50, 6)
    answer = expected_answer(prompt, 6)
    first = job(prompt, max_tokens=6)
    scheduler.add(first)
    run(scheduler)
    for num_written, cached in ((7, 55), (0, 47)):
        asked = [*prompt, *answer, 11]
        again = job(asked, max_tokens=1)
        again.request = replace(again.request, num_written=num_written)
        scheduler.add(again)
        run(scheduler)
        assert again.stream.result(0).tokens == expected_answer(asked, 1)
        assert again.stream.result(0).num_cached_tokens == cached


def test_deterministic_passes_hold_one_sequence_where_rows_are_not_kept_apart() -> None:
    backend = FakeBackend(tile_tokens=None)
    scheduler = scheduler_of(backend, deterministic=True, batch_tokens=16)
    jobs = [job([index + 1] * 30, name=str(index), max_tokens=8) for index in range(4)]
    for each in jobs:
        scheduler.add(each)
    run(scheduler)
    assert all(len(chunks) == 1 for chunks in backend.passes)
    assert not backend.copies
    for each in jobs:
        assert each.stream.result(0).tokens == expected_answer(each.request.prompt, 8)


def test_a_pass_holds_one_adapter_and_all_get_their_turn() -> None:
    backend = FakeBackend()
    scheduler = scheduler_of(backend)
    jobs = [job([7, 8, index + 1], name=str(index), max_tokens=4) for index in range(4)]
    for index, each in enumerate(jobs):
        each.request = replace(each.request, adapter="x" if index % 2 else None)
        scheduler.add(each)
    run(scheduler)
    for each in jobs:
        assert each.stream.result(0).tokens == expected_answer(each.request.prompt, 4)
    for chunks in backend.passes:
        assert {slot % 2 for slot, _ in chunks} in ({0}, {1})


def test_deltas_add_up_to_the_result_and_hold_back_stop_strings() -> None:
    prompt = prompt_that_lasts(4, 12)
    answer = expected_answer(prompt, 12)
    stop = f"{answer[6]} {answer[7]}"  # crosses the border of two tokens
    backend = FakeBackend()
    scheduler = scheduler_of(backend)
    stopped = job(prompt, max_tokens=12, stop=(stop,))
    scheduler.add(stopped)
    run(scheduler)
    result = stopped.stream.result(0)
    deltas = list(stopped.stream)
    assert result.finish_reason == "stop"
    assert "".join(delta.text for delta in deltas) == result.text
    assert stop not in result.text
    assert result.text == "".join(f"{token} " for token in answer[:6])
    assert tuple(token for delta in deltas for token in delta.tokens) == result.tokens == answer[:8]


def test_a_failed_pass_ends_its_requests_and_the_next_ones_live() -> None:
    backend = FakeBackend()
    scheduler = scheduler_of(backend)
    failed = job([1, 2, 3])
    scheduler.add(failed)
    scheduler.step()
    scheduler.end_all("error", "boom")
    assert failed.stream.result(0).finish_reason == "error"
    assert failed.stream.result(0).error == "boom"
    after = job([1, 2, 3], name="b", max_tokens=2)
    scheduler.add(after)
    run(scheduler)
    assert after.stream.result(0).tokens == expected_answer([1, 2, 3], 2)
    assert_nothing_left(scheduler, backend, [failed, after])


@pytest.mark.parametrize("held", [[1], [50, 47]])
def test_stop_tokens_end_an_answer_and_are_not_part_of_it(held: list[int]) -> None:
    stops = job(held, max_tokens=9, stop_token_ids=(expected_token(held),))
    scheduler = scheduler_of(FakeBackend())
    scheduler.add(stops)
    run(scheduler)
    assert stops.stream.result(0).tokens == ()
    assert stops.stream.result(0).finish_reason == "stop"
