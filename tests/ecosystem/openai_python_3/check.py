"""openai-python 3, the official SDK."""

from tests.ecosystem.contract import tell
from tests.ecosystem.openai_sdk import CHECKS, NOTE

tell("openai-python 3", "openai", CHECKS, NOTE)
