"""Speed and memory of the packed ORPO step against TRL's ORPOTrainer on one GPU.

    python -m benchmarks.orpo_gpu [--quick] [--lengths FILE] [--json FILE] [--profile]

A randomly initialised model of Llama-3.2-1B's shape and vocabulary: what it says means nothing, what it
costs is what the real one costs. TRL runs with FlashAttention's kernel. Both run as whole trainers, in
turns, on the same pairs: of the lengths of real ones (FILE: a JSON list of [prompt, chosen, rejected], made
by `--write-lengths` where $SHARED_DATA has pairs), and of 2,048 tokens with prompts of a quarter, a half and
three quarters of them. Tokens are counted as TRL sees them unpadded. Needs no hub, no Ray and no data.
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.orpo_trainers import make_trainer, plans_in_order
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.tokens import PairTokens

LONGEST = 2048
PAIRS_PER_STEP = 4
REAL_PAIRS_PER_STEP = 8
CONTESTANTS = ("trl", "packed")
SHAPE = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}
"""Of https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct, its config.json."""


def main() -> None:
    import torch

    arguments = _arguments()
    if arguments.write_lengths:
        Path(arguments.write_lengths).write_text(json.dumps(real_lengths()))
        return
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU here; benchmarks.orpo_step compares both on CPU")
    steps, rounds = (2, 1) if arguments.quick else (4, 2)
    with tempfile.TemporaryDirectory(prefix="orpo-gpu-", dir=_fast_folder()) as folder:
        save_model(folder)
        race = Race(folder, steps)
        results = {
            name: race.run(name, batches, rounds) for name, batches in cases(arguments.lengths, steps).items()
        }
        if arguments.profile:
            print(race.profile(cases(None, steps)["prompt 50 %"]))
    report = {"figures": results, "machine": machine(), "work": {"steps": steps, "rounds": rounds}}
    print_report(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of two timed steps each")
    parser.add_argument("--lengths", metavar="FILE", help="lengths of real pairs in tokens, as JSON")
    parser.add_argument("--write-lengths", metavar="FILE", help="only write that file")
    parser.add_argument("--json", metavar="FILE", help="write the report here")
    parser.add_argument(
        "--profile", action="store_true", help="also print what the packed step spends its time on"
    )
    return parser.parse_args()


def real_lengths() -> list[tuple[int, int, int]]:
    from benchmarks.orpo_step import read_pairs, tokenized

    pairs = tokenized(read_pairs(), LONGEST).pairs
    return [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs]


def cases(lengths_file: str | None, steps: int) -> dict[str, list[PairTokens]]:
    """Pairs for all steps of a round and one to warm up, by the name of the case."""
    found = {}
    if lengths_file:
        lengths = json.loads(Path(lengths_file).read_text())
        random.Random(0).shuffle(lengths)
        count = REAL_PAIRS_PER_STEP * (steps + 1)
        found["real lengths"] = [random_pair(index, *lengths[index]) for index in range(count)]
    count = PAIRS_PER_STEP * (steps + 1)
    for share in (0.25, 0.5, 0.75):
        found[f"prompt {share:.0%}".replace("%", " %")] = [long_pair(index, share) for index in range(count)]
    return found


def long_pair(index: int, prompt_share: float) -> PairTokens:
    """A pair of which one answer reaches 2,048 tokens, and the other half to all of that."""
    num_prompt = int(prompt_share * LONGEST)
    longer = LONGEST - num_prompt
    shorter = int(longer * random.Random(index).uniform(0.5, 1.0))
    answers = (longer, shorter) if index % 2 else (shorter, longer)
    return random_pair(index, num_prompt, *answers)


def random_pair(index: int, *lengths: int) -> PairTokens:
    draw = random.Random(f"pair {index}")
    prompt, chosen, rejected = (tuple(draw.choices(range(10, SHAPE["vocab_size"]), k=n)) for n in lengths)
    return PairTokens(f"pair-{index}", prompt, chosen, rejected)


@dataclass
class Turn:
    """Of a round's timed steps; the loss is the first, untimed one's, before anything is learnt."""

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    first_loss: float = 0.0


class Race:
    """Both trainers in this process, on one GPU."""

    def __init__(self, folder: str, steps: int) -> None:
        import torch

        self.device, self.steps = torch.device("cuda"), steps
        self.trainers: dict[str, Any] = {}
        self.held_bytes: dict[str, int] = {}
        pairs = [random_pair(index, 8, 8, 8) for index in range(PAIRS_PER_STEP)]
        for name in CONTESTANTS:
            before = torch.cuda.memory_allocated()
            self.trainers[name] = make_trainer(name, folder, pairs, settings_of(steps + 1), self.device)
            self.held_bytes[name] = torch.cuda.memory_allocated() - before
            self.trainers[name].add_callback(_clock(self.trainers[name]))
        use_flash_attention(self.trainers["trl"].model.get_base_model())

    def run(self, case: str, pairs: list[PairTokens], rounds: int) -> dict[str, Any]:
        """Rounds of both in turns; with half the pairs a step where one does not fit into memory."""
        name = CONTESTANTS[0]
        import torch

        size = len(pairs) // (self.steps + 1)
        while True:
            try:
                turns = {name: [] for name in CONTESTANTS}
                for _ in range(rounds):
                    for name in CONTESTANTS:
                        turns[name].append(self.take_turn(name, pairs, size))
                return self.figures(case, pairs, size, turns)
            except torch.OutOfMemoryError:
                print(f"{case}: {name} runs out of memory with {size} pairs a step", flush=True)
                size //= 2
                if not size:
                    raise
            torch.cuda.empty_cache()

    def take_turn(self, name: str, pairs: list[PairTokens], size: int) -> Turn:
        import torch

        from ray_jobs.orpo.trainer import TrlRows

        trainer = self.trainers[name]
        used = pairs[: size * (self.steps + 1)]
        if name == "trl":
            trainer.args.per_device_train_batch_size = trainer._train_batch_size = size
            trainer.train_dataset = TrlRows(used)
        else:
            trainer.job = trainer.job.__class__(**{**vars(trainer.job), "train_pairs": used})
            trainer.plans = plans_in_order(used, settings_of(self.steps + 1, pairs_per_step=size))
        (clock,) = [one for one in trainer.callback_handler.callbacks if hasattr(one, "turn")]
        clock.turn = Turn()
        try:
            trainer.train()
        finally:
            trainer.model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        turn: Turn = clock.turn
        turn.peak_bytes -= sum(held for other, held in self.held_bytes.items() if other != name)
        return turn

    def figures(
        self, case: str, pairs: list[PairTokens], size: int, turns: dict[str, list[Turn]]
    ) -> dict[str, Any]:
        from ray_jobs.orpo.packing import pack

        used = pairs[size : size * (self.steps + 1)]
        packed = self.trainers["packed"]
        rows = [pack(used[start : start + size]) for start in range(0, len(used), size)]
        flops = sum(packed.flops.of_rows(row.spans, len(row.label_N)) for row in rows)
        seconds = {name: statistics.median(sum(turn.seconds) for turn in of) for name, of in turns.items()}
        tokens = sum(row.num_unshared_tokens for row in rows)
        rate = packed.meter.matrix_rate
        print(f"{case} done: {seconds}", flush=True)
        return {
            "pairs_per_step": size,
            "speedup": seconds["trl"] / seconds["packed"],
            "tokens_per_s": {name: tokens / spent for name, spent in seconds.items()},
            "mfu": {name: flops / spent / rate for name, spent in seconds.items()},
            "peak_gib": {name: max(turn.peak_bytes for turn in of) / 2**30 for name, of in turns.items()},
            "first_loss": {name: of[0].first_loss for name, of in turns.items()},
            "matrix_rate": rate,
            "seconds": {name: [turn.seconds for turn in of] for name, of in turns.items()},
        }

    def profile(self, pairs: list[PairTokens]) -> str:
        """Where the GPU's time of the packed step goes, kernel by kernel."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            self.take_turn("packed", pairs, len(pairs) // (self.steps + 1))
        return str(
            found.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90)
        )


def _clock(trainer: Any) -> Any:
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds and peak memory of every step but the first."""

        turn = Turn()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
            del args, control
            torch.cuda.synchronize()
            if state.global_step == 1:
                torch.cuda.reset_peak_memory_stats()
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
            del args, control
            torch.cuda.synchronize()
            if state.global_step == 1:
                self.turn.first_loss = float(trainer._tr_loss)
            else:
                self.turn.seconds.append(time.perf_counter() - self.started)
                self.turn.peak_bytes = torch.cuda.max_memory_allocated()

    return Clock()


def settings_of(steps: int, **changes: Any) -> TrainingSettings:
    fields: dict[str, Any] = {
        "num_steps": steps,
        "pairs_per_step": PAIRS_PER_STEP,
        "max_pair_tokens": LONGEST,
        "max_batch_tokens": 4 * PAIRS_PER_STEP * LONGEST,
        "lora": LoraSettings(rank=16),
        "precision": "bf16",
        "compile": "on",
        "warmup_share": 0.0,
        "logging_steps": 10**6,
    }
    return TrainingSettings(**(fields | changes))


def use_flash_attention(causal_lm: Any) -> None:
    """Let a transformers model attend by FlashAttention's kernel.

    TRL pads at the end, so that with a causal mask no token sees padding, and the kernel, which takes no
    other mask, does what it would do on the sequences without padding.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def flash(
        _module: Any,
        query: Any,
        key: Any,
        value: Any,
        _mask: Any,
        scaling: float | None = None,
        **_kwargs: Any,
    ) -> tuple[Any, None]:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("unpadded_kernel", flash)
    AttentionMaskInterface.register("unpadded_kernel", lambda *_args, **_kwargs: None)
    causal_lm.set_attn_implementation("unpadded_kernel")


def save_model(folder: str) -> None:
    """Random weights and a tokenizer that knows its control tokens and nothing else."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=0, eos_token_id=1, pad_token_id=2))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    words = {word: number for number, word in enumerate(("<bos>", "<eos>", "<pad>", "<unk>"))}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def _fast_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def machine() -> dict[str, Any]:
    import torch
    import transformers
    import trl

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "gpu": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def print_report(report: dict[str, Any]) -> None:
    print(report["machine"])
    print(f"{'case':14}{'pairs':>6}{'tokens/s':>18}{'':10}{'MFU':>8}{'peak GiB':>18}{'first loss':>20}")
    for case, found in report["figures"].items():
        rates, mfu, peaks, losses = (found[key] for key in ("tokens_per_s", "mfu", "peak_gib", "first_loss"))
        print(
            f"{case:14}{found['pairs_per_step']:6}{rates['trl']:9,.0f}{rates['packed']:9,.0f}"
            f" ({found['speedup']:.2f}x) {mfu['packed']:8.1%}{peaks['trl']:8.1f}{peaks['packed']:6.1f}"
            f" ({peaks['packed'] / peaks['trl']:.0%}){losses['trl']:11.4f}{losses['packed']:9.4f}"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
