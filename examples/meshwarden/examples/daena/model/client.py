"""How an agent calls the model: one client span a call, with the tokens that the provider counted."""

import time
from collections.abc import Callable
from typing import Final

import grpc

from meshwarden.examples import trace
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.error import Away
from meshwarden.examples.daena.metric import SECONDS, TOKENS, Meter
from meshwarden.examples.daena.model import extract, genai

TIMEOUT_S: Final = 5.0


class ModelClient:
    """Calls the model in an agent's name."""

    def __init__(
        self,
        stub: daena_pb2_grpc.ModelStub,
        agent: str,
        meter: Meter,
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._stub = stub
        self._agent = agent
        self._monotonic_s = monotonic_s
        self._usage = meter.histogram(genai.TOKEN_USAGE, "{token}", TOKENS)
        self._duration = meter.histogram(genai.OPERATION_DURATION, "s", SECONDS)

    def generate(self, prompt: str, max_tokens: int) -> str:
        """Returns the model's answer.

        Raises:
            Away: there is none.
        """
        asked = {
            genai.OPERATION_NAME: genai.CHAT,
            genai.PROVIDER_NAME: extract.PROVIDER,
            genai.REQUEST_MODEL: extract.ALIAS,
        }
        more: dict[str, str | int] = {genai.REQUEST_MAX_TOKENS: max_tokens, genai.AGENT_NAME: self._agent}
        begun_s = self._monotonic_s()
        with trace.span(f"{genai.CHAT} {extract.ALIAS}", attributes={**more, **asked}) as span:
            request = daena_pb2.GenerateRequest(model=extract.ALIAS, prompt=prompt, max_tokens=max_tokens)
            try:
                made = self._stub.Generate(request, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
                span.set({genai.ERROR_TYPE: code})
                self._duration.record(self._monotonic_s() - begun_s, {**asked, genai.ERROR_TYPE: code})
                raise Away(f"the model does not answer: {code}") from None
            span.set(
                {
                    genai.RESPONSE_MODEL: made.model,
                    genai.RESPONSE_FINISH_REASONS: (made.finish_reason,),
                    genai.USAGE_INPUT_TOKENS: made.input_tokens,
                    genai.USAGE_OUTPUT_TOKENS: made.output_tokens,
                }
            )
        answered = {**asked, genai.RESPONSE_MODEL: made.model}
        self._usage.record(made.input_tokens, {**answered, genai.TOKEN_TYPE: "input"})
        self._usage.record(made.output_tokens, {**answered, genai.TOKEN_TYPE: "output"})
        self._duration.record(self._monotonic_s() - begun_s, answered)
        return made.text
