import pytest
from pydantic import ValidationError

from ray_jobs.orpo.memory import Shape, training_memory
from ray_jobs.orpo.settings import LoraSettings, TrainingSettings
from ray_jobs.orpo.training import deepspeed_config


def test_defaults_are_valid_and_survive_json() -> None:
    settings = TrainingSettings()
    assert TrainingSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": "1e-4"},
        {"step": "fast"},
        {"unknown": 1},
        {"qlora": True, "lora": None},
        {"likelihood": "answer", "step": "trl"},
        {"lora": {"rank": 4, "dora": True, "dropout": 0.1}},
        {"lora": {"target_modules": ("q_proj", "lm_head")}},
        {"lora": {"target_modules": ("model.embed_tokens",)}},
        {"deepspeed": {"zero_optimization": {"stage": True}}},
        {"deepspeed": {"zero_optimization": {"stage": None}}},
        {"deepspeed": {"zero_optimization": {"offload_optimizer": ["cpu"]}}},
    ],
)
def test_wrong_fields_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingSettings.model_validate(changes)


def test_target_modules_may_be_names() -> None:
    text = '{"lora": {"target_modules": ["q_proj", "v_proj"]}}'
    assert TrainingSettings.model_validate_json(text).lora == LoraSettings(
        target_modules=("q_proj", "v_proj")
    )


@pytest.mark.parametrize(
    "block", [{}, {"zero_optimization": {}}, {"zero_optimization": {"stage": 3, "offload_param": None}}]
)
def test_deepspeed_blocks_of_their_form_are_taken(block: dict[str, object]) -> None:
    settings = TrainingSettings.model_validate({"deepspeed": block})
    assert settings.deepspeed == block
    shape = Shape("llama", 64, 2, 128, 64, 32, 1000, tied=True)
    assert training_memory(shape, settings).total > 0
    assert deepspeed_config(settings) is not None


def test_deepspeed_block_keeps_what_the_user_wrote() -> None:
    block = {"zero_optimization": {"stage": 3}, "gradient_clipping": 0.5}
    filled = deepspeed_config(TrainingSettings(deepspeed=block))
    assert filled is not None
    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    assert filled["zero_optimization"] == {"stage": 3} | gathers
    kept = block | {"zero_optimization": {"stage": 3, **dict.fromkeys(gathers, False)}}
    assert (deepspeed_config(TrainingSettings(deepspeed=kept)) or {})["zero_optimization"] == kept[
        "zero_optimization"
    ]
    assert filled["gradient_clipping"] == 0.5
    assert filled["train_batch_size"] == "auto"
    assert deepspeed_config(TrainingSettings()) is None
