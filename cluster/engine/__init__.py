"""The deciding half of the engine: who computes what, in which blocks, until when."""
