"""Words: the chat template, the tokenizer, and the text side of a running request.

Owns state machines that can be tested with strings and ids alone. Refuses to know torch,
transformers, HTTP and the engine.
"""
