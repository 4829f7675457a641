"""openai-python 2, the official SDK."""

from tests.ecosystem.contract import tell
from tests.ecosystem.openai_sdk import CHECKS, NOTE

tell("openai-python 2", "openai", CHECKS, NOTE)
