"""The mathematics: the decoder of Qwen2 and Llama, and the tensor-parallel layers it is made of."""
