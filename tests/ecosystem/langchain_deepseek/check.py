"""langchain-deepseek: the chat model that keeps thoughts, for LangChain's users."""

from typing import Any

from langchain_deepseek import ChatDeepSeek

from tests.ecosystem.contract import SPLIT, thoughts_apart
from tests.ecosystem.langchain_chat import ChatModel


def thoughts(message: Any) -> str:
    return thoughts_apart(message.additional_kwargs["reasoning_content"], message.content)


ChatModel(ChatDeepSeek, thoughts, extra_body=SPLIT).tell(
    "langchain-deepseek",
    '`ChatDeepSeek(extra_body={"reasoning_format": "split"})`, then '
    '`additional_kwargs["reasoning_content"]`',
)
