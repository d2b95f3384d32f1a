"""The judge, as a config states it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_jobs.judging.presets import PRESETS
from ray_jobs.settings import Section

InputPart = Literal["conversation", "last_turn", "earlier_turns", "system", "reference"]

PromptOrder = Literal["flow_judge", "rubric_first"]

FORCED = ("engine", "vllm")
"""Backends that are held to flow-judge's format, and tell probabilities."""

DEFAULT_INPUT_PARTS: dict[str, InputPart] = {
    "query": "conversation",
    "context": "earlier_turns",
    "reference_answer": "reference",
}
"""Where the presets' inputs come from. A metric that takes both `query` and `context` gets the last turn as
its query."""


class OpenAIJudge(Section):
    """An OpenAI-compatible endpoint that judges."""

    base_url: str | None = None
    """Such as http://host:8000/v1; unset: the openai client's default."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server that needs none may leave it unset when base_url is
    given."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=1000)] = 8
    """Requests in flight, of each process that judges (`engine.actors`)."""
    max_retries: Annotated[int, Field(ge=0, le=100)] = 8
    """Times that a request is sent again, at growing intervals, when there is no connection, the endpoint has
    too many requests or is in trouble. What lasts longer fails the stage, which goes on later."""
    logprobs: bool = True
    """Ask for token probabilities, which expected scores are made of; off for servers that refuse the
    field."""


class TrustSettings(Section):
    """When the judge's word counts."""

    num_pairs: Annotated[int, Field(ge=1)] = 100
    """Held-out pairs of known order that are judged before the verdict. 100 tell 61 % from chance half of
    the time and 65 % four times in five; fewer than 6 (at a level of 0.95) can tell nothing."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of the agreement's interval."""
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Trusted when the interval's lower end is above one half plus this."""
    num_repeats: Annotated[int, Field(ge=0)] = 20
    """Pairs that are judged again under another seed, for the self-consistency rate."""
    reference: Literal["other", "chosen"] = "other"
    """For metrics that compare with a reference. `other`: another pair's different right answer to the same
    prompt; pairs without one are left out. `chosen`: the right answer itself where there is no other, as fair
    as the evaluation is when a prompt has one right answer, and counted in the report as
    `self_referenced`."""


class JudgeSettings(Section):
    """Who judges, by which metrics, and how."""

    model: str
    """`run:base` (the run's own base model), `bundled:smollm2-135m-instruct`, a GGUF file's path, or
    `owner/repo:file.gguf` on the hub; for the backends hf and vllm the hub's model (vllm: or a folder), for
    llamafile the executable file, or flowaicom/Flow-Judge-v0.1-Llamafile, for openai the endpoint's name of
    it."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    adapter: str | None = None
    """A LoRA adapter (GGUF) that the model judges with: `bundled:judge-adapter`, made for the bundled model,
    or a file's path (backend: engine)."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("RESPONSE_CORRECTNESS_5POINT",)
    """flow-judge's preset names, or paths of YAML files with metrics of one's own."""
    inputs: dict[str, InputPart] = {}
    """What a metric's inputs are made of, where it is not the default: input name -> conversation (all turns
    before the answer), last_turn, earlier_turns, system, or reference. The defaults are query: conversation,
    context: earlier_turns, reference_answer: reference."""
    prompt_order: PromptOrder = "flow_judge"
    """`flow_judge` is its own text, which its models were trained on: inputs and answer, then rubric and
    instructions. `rubric_first` puts what all rows share first, so that it is computed once and a judgement
    costs its inputs and answer alone: for judges that were not trained on the other order."""
    feedback: bool = True
    """The judge writes its reasons before the score; false forces the score at once, several times
    cheaper."""
    max_feedback_tokens: Annotated[int, Field(ge=16, le=100_000)] = 600
    """Tokens for the reasons; a judge that needs more gives no score (`too_long`)."""
    long_feedback: Literal["fail", "score"] = "fail"
    """A judge that is not at the end of its reasons by then: no score (`too_long`), or it has to score from
    what it has written (backend: engine)."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.1
    """Of feedback and score; flow-judge's own default. The retry samples at `retry_temperature` if that is
    higher."""
    retry_temperature: Annotated[float, Field(gt=0, le=5)] = 0.5
    """Of the second try: at temperature 0 it would repeat the first."""
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    """Further tries, each with another seed, before a row has no score."""
    context_tokens: Annotated[int, Field(ge=512)] = 8192
    """The judge's context: prompt, answer, rubric and feedback together."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """For each step of a judgement, feedback and score, after which it fails (`timeout`)."""
    backend: Literal["engine", "openai", "hf", "vllm", "llamafile"] = "engine"
    """`engine` judges in this process with a GGUF, `vllm` with vLLM where that is installed; `openai` is an
    endpoint; `hf` and `llamafile` are flow-judge's own."""
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs that each judge asks Ray for; `auto`: with the backends vllm and hf one, where the cluster has
    any, with the others none. A fraction lets judges share one; with vllm, two or more spread the model."""
    openai: OpenAIJudge = OpenAIJudge()
    """The endpoint, for backend: openai."""
    cache: bool = True
    """Judge the same prompt, answer, metric and judge once, ever."""
    trust: TrustSettings = TrustSettings()
    """The check against pairs of known order."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for metric in self.metrics:
            if metric not in PRESETS and not metric.endswith((".yaml", ".yml")):
                raise ValueError(
                    f"metrics: {metric!r} is neither a .yaml file nor one of {', '.join(PRESETS)}"
                )
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: the same metric stands twice")
        named_gguf = self.model.startswith(("run:", "bundled:")) or self.model.endswith(".gguf")
        if named_gguf and self.backend in ("hf", "vllm", "llamafile"):
            raise ValueError(f"model: {self.model} is a GGUF, which backend: {self.backend} does not read")
        if self.adapter is not None and self.backend != "engine":
            raise ValueError(f"adapter: needs backend: engine; {self.backend} takes its model whole")
        if not self.feedback and self.backend not in FORCED:
            raise ValueError(
                f"feedback: false needs backend: engine or vllm; {self.backend} cannot be made to score at"
                " once"
            )
        if not isinstance(self.gpus, str) and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError("gpus: a fraction of one, or a whole number")
        if self.feedback and self.max_feedback_tokens >= self.context_tokens:
            raise ValueError("max_feedback_tokens: must be below context_tokens")
        return self

    @property
    def max_verdict_tokens(self) -> int:
        """Tokens that one judgement may take: the feedback, the tags around it, and the score."""
        return 32 + (self.max_feedback_tokens if self.feedback else 0)
