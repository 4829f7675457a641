"""The mathematics: Qwen2 and the tensor-parallel layers it is made of."""
