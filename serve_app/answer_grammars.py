"""AnswerGrammars: what a chat asks of its answer, as a grammar that was tried.

Owns which field is told to be at fault when it cannot be had. Knows no HTTP and no engine.
"""

from cluster.request import MAX_GRAMMAR_CHARS
from cluster.text.json_grammar import json_answer
from cluster.text.tool_calls import answer_with_calls
from cluster.text.trial_process import OUT_OF_TIME
from serve_app.grammar_gate import GrammarGate
from serve_app.openai.answer_form import Form
from serve_app.openai.errors import ApiError
from serve_app.openai.json_schema import refusal
from serve_app.openai.schema import ChatCompletionRequest

_TOO_LARGE = "exceeds the limits"


class AnswerGrammars:
    """Makes the grammars of one ingress."""

    def __init__(self, gate: GrammarGate) -> None:
        self._gate = gate

    async def grammar(self, request: ChatCompletionRequest) -> str | None:
        """What the answer is held to; None: nothing.

        Raises:
            ApiError: no answer can be held to it; the error names the field.
        """
        form, calling = request.form, request.calling
        if calling is not None:
            schema = form.schema if form is not None else None
            grammar, param = answer_with_calls(*calling, schema), "tools"
        elif form is not None:
            grammar, param = json_answer(form.schema), form.param
        else:
            return None
        if report := await self._report(grammar):
            raise await self._at_fault(request, report) or refusal(report, param)
        return grammar

    async def _at_fault(self, request: ChatCompletionRequest, report: str) -> ApiError | None:
        """The only schema, or the first that cannot be had by itself, if there is one. Where
        finding out took too long already, nobody looks for it among many."""
        schemas = [] if request.form is None else [request.form]
        for index, tool in enumerate(request.calling.tools if request.calling else ()):
            schemas.append(Form(tool.parameters, f"tools[{index}].function.parameters"))
        if len(schemas) == 1:
            return refusal(report, schemas[0].param)
        for schema, param in () if report.startswith(OUT_OF_TIME) else schemas:
            if own_report := await self._report(json_answer(schema)):
                return refusal(own_report, param)
        return None

    async def _report(self, grammar: str) -> str:
        if len(grammar) > MAX_GRAMMAR_CHARS:
            return _TOO_LARGE
        return await self._gate.report(grammar)
