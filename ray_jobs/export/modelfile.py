"""A Modelfile beside an exported GGUF: `ollama create NAME -f Modelfile`."""

from pathlib import Path
from typing import Any

from ray_jobs.export.gguf_file import GgufFile
from ray_jobs.export.go_template import Chat, TurnTexts, derive
from ray_jobs.export.parity import CHATS
from ray_jobs.runs import write_whole

MODELFILE = "Modelfile"
BEGIN_WITH_BOS = ("llama-bpe", "llama-v3", "llama3", "tekken")
"""Byte-level vocabularies before whose texts llama.cpp puts the beginning token, if the file says nothing.
Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp."""
CHECKED: tuple[Chat, ...] = (
    *CHATS,
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ),
)


def write_modelfile(hf_dir: Path, out_dir: Path, context_tokens: int) -> Path:
    """Writes the Modelfile of `out_dir`/model.gguf, with the chat template of the base in `hf_dir`.

    A template that cannot be said in ollama's language is left to ollama, which knows the usual ones.
    """
    lines = ["# ollama create NAME -f Modelfile", "FROM ./model.gguf"]
    tokenizer = _tokenizer(hf_dir)
    texts = chat_texts(tokenizer, out_dir / "model.gguf")
    if texts is None:
        lines.append("# the chat template is the one in model.gguf")
    else:
        lines.append(f'TEMPLATE """{texts.go()}"""')
        stop = texts.assistant[1].strip() or tokenizer.eos_token
        if stop and '"' not in stop:
            lines.append(f'PARAMETER stop "{stop}"')
    lines.append(f"PARAMETER num_ctx {context_tokens}")
    path = out_dir / MODELFILE
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def chat_texts(tokenizer: Any, gguf: Path) -> TurnTexts | None:
    """The base's chat template without what llama.cpp puts before it, or None where it cannot be said so."""
    bos = (tokenizer.bos_token or "") if adds_bos(GgufFile(gguf)) else ""
    return derive(lambda chat, answer: _render(tokenizer, chat, answer), bos, CHECKED)


def adds_bos(gguf: GgufFile) -> bool:
    """Whether llama.cpp puts the beginning token before a text: as the file says, else by its vocabulary."""
    said = gguf.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    return gguf.get("tokenizer.ggml.model") == "llama" or gguf.get("tokenizer.ggml.pre") in BEGIN_WITH_BOS


def _tokenizer(hf_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)


def _render(tokenizer: Any, chat: Chat, answer: bool) -> str:
    """Raises ValueError where the template refuses the chat."""
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=answer))
    except TemplateError as error:
        raise ValueError(str(error)) from error
