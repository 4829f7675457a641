"""The arithmetic of the dense layers, and which implementation of it serves on this machine."""
