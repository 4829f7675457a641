"""The catalogue of models against the parameter counts of their publisher."""

import pytest

from cluster.plan.memory import tensor_parallel_sizes
from cluster.plan.models import MODELS, find_model


@pytest.mark.parametrize(
    ("name", "params", "sizes"),
    [
        ("deepseek-r1-1.5b", 1_777_088_000, [1, 2]),
        ("deepseek-r1-7b", 7_615_616_512, [1, 2, 4]),
        ("deepseek-r1-14b", 14_770_033_664, [1, 2, 4, 8]),
        ("deepseek-r1-32b", 32_763_876_352, [1, 2, 4, 8]),
        ("deepseek-r1-llama-8b", 8_030_261_248, [1, 2, 4, 8]),
        ("deepseek-r1-llama-70b", 70_553_706_496, [1, 2, 4, 8]),
    ],
)
def test_parameters_are_those_of_the_publisher(name: str, params: int, sizes: list[int]) -> None:
    model = find_model(name)
    assert model is not None
    assert model.shape.num_params == params
    assert tensor_parallel_sizes(model.shape) == sizes
    assert model.max_position == 131_072


@pytest.mark.parametrize(
    "name",
    [
        "32b",
        "deepseek-r1-32b",
        "DeepSeek-R1-Distill-Qwen-32B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
    ],
)
def test_a_model_is_found_under_all_its_names(name: str) -> None:
    found = find_model(name)
    assert found is not None
    assert found.name == "deepseek-r1-32b"


def test_llama_and_qwen_of_one_size_are_told_apart() -> None:
    llama = find_model("llama-8b")
    assert llama is not None
    assert llama.published_as == "DeepSeek-R1-Distill-Llama-8B"
    assert find_model("8b") is None
    assert find_model("gpt-2") is None
    assert len({model.name for model in MODELS}) == len(MODELS)
