"""The model as a service, which counts what each caller uses."""

import time
from collections.abc import Callable

import grpc

from meshwarden import sdk
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.metric import SECONDS, Meter
from meshwarden.examples.daena.model import extract, genai
from meshwarden.examples.daena.serve import Identify, answering


class Model(daena_pb2_grpc.ModelServicer):
    """Completes prompts."""

    def __init__(
        self, meter: Meter, identify: Identify = sdk.peer_identity, monotonic_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._meter = meter
        self._identify = identify
        self._monotonic_s = monotonic_s
        self._tokens = meter.counter("model.tokens", "{token}")
        self._duration = meter.histogram("gen_ai.server.request.duration", "s", SECONDS)

    def Generate(  # noqa: N802
        self, request: daena_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> daena_pb2.GenerateResponse:
        caller, begun_s = str(self._identify(context)), self._monotonic_s()
        with answering(context):
            made = extract.complete(request.model, request.prompt, request.max_tokens)
        sdk.report_cost(made.input_tokens + made.output_tokens)
        self._tokens.add(made.input_tokens, {genai.TOKEN_TYPE: "input", "mesh.source": caller})
        self._tokens.add(made.output_tokens, {genai.TOKEN_TYPE: "output", "mesh.source": caller})
        self._duration.record(self._monotonic_s() - begun_s, {genai.RESPONSE_MODEL: extract.NAME})
        return daena_pb2.GenerateResponse(
            model=extract.NAME,
            text=made.text,
            input_tokens=made.input_tokens,
            output_tokens=made.output_tokens,
            finish_reason=made.finish_reason,
        )

    def Stats(  # noqa: N802
        self, request: daena_pb2.StatsRequest, context: grpc.ServicerContext
    ) -> daena_pb2.StatsResponse:
        return self._meter.stats()
