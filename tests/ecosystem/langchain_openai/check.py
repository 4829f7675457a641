"""langchain-openai: knows no field for thoughts, so they are left in the text."""

from typing import Any

from langchain_openai import ChatOpenAI

from tests.ecosystem.contract import thoughts_in_text
from tests.ecosystem.langchain_chat import ChatModel


def thoughts(message: Any) -> str:
    return thoughts_in_text(message.content)


ChatModel(ChatOpenAI, thoughts).tell(
    "langchain-openai", "drops every field for thoughts; they are in the text unless split off"
)
