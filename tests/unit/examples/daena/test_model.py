"""The local model: deterministic, computed from its prompt, counted."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden import sdk
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc
from meshwarden.examples.daena.error import Away, DaenaError
from meshwarden.examples.daena.metric import Meter
from meshwarden.examples.daena.model import extract
from meshwarden.examples.daena.model.client import ModelClient
from meshwarden.examples.daena.model.service import Model
from meshwarden.examples.daena.words import sentences, tokens

MATERIAL = (
    "Leases end. A lease names its holder and an hour at which it ends. Cats sleep. "
    "A holder renews its lease before the hour. Rain fell on the harbour."
)
PROMPT = f"When does a holder renew a lease?\n\n{MATERIAL}"


def complete(prompt: str, max_tokens: int = 100) -> extract.Completion:
    return extract.complete(extract.ALIAS, prompt, max_tokens)


def test_the_answer_is_made_of_the_material_and_is_about_the_question() -> None:
    made = complete(PROMPT)
    assert "A holder renews its lease before the hour." in made.text
    assert set(sentences(made.text)) <= set(sentences(MATERIAL))
    assert "Rain" not in made.text
    assert "Cats" not in made.text
    assert made.finish_reason == "stop"


def test_another_question_has_another_answer() -> None:
    assert "Rain fell on the harbour." in complete(f"Where did rain fall, on which harbour?\n\n{MATERIAL}").text


def test_without_material_the_question_itself_is_all_there_is() -> None:
    assert complete("Who holds the lease?").text == "Who holds the lease?"


def test_the_tokens_are_counted_and_the_answer_is_cut_at_its_bound() -> None:
    made = complete(PROMPT, max_tokens=5)
    assert (made.input_tokens, made.output_tokens) == (len(tokens(PROMPT)), 5)
    assert made.finish_reason == "length"


@given(st.text(max_size=400), st.integers(1, extract.MAX_TOKENS))
def test_whatever_the_prompt_the_answer_is_the_same_again_and_within_bounds(prompt: str, max_tokens: int) -> None:
    try:
        made = complete(prompt, max_tokens)
    except DaenaError:
        assert not tokens(prompt) or not prompt.strip()
        return
    assert made == complete(prompt, max_tokens)
    assert made.output_tokens == len(tokens(made.text)) <= max_tokens
    assert made.input_tokens == len(tokens(prompt))


def test_the_longest_prompt_of_the_shortest_sentences_is_answered() -> None:
    many = "x y? a. " * (extract.MAX_PROMPT_BYTES // 8 - 1)
    assert complete(f"x?\n\n{many}").output_tokens


@pytest.fixture
def model(dial: Any, callers: Any) -> tuple[daena_pb2_grpc.ModelStub, Meter]:
    meter = Meter()
    servicer = Model(meter, callers.identify)
    channel = dial(lambda server: daena_pb2_grpc.add_ModelServicer_to_server(servicer, server))
    return daena_pb2_grpc.ModelStub(channel), meter


@pytest.mark.parametrize(
    ("field", "code", "request_"),
    [
        ("model", grpc.StatusCode.NOT_FOUND, {"model": "", "prompt": "a", "max_tokens": 1}),
        ("model", grpc.StatusCode.NOT_FOUND, {"model": "x" * 9000, "prompt": "a", "max_tokens": 1}),
        ("model", grpc.StatusCode.NOT_FOUND, {"model": "\x00\n\u202e", "prompt": "a", "max_tokens": 1}),
        ("prompt", grpc.StatusCode.INVALID_ARGUMENT, {"model": "stand-in", "prompt": " \n", "max_tokens": 1}),
        ("prompt", grpc.StatusCode.INVALID_ARGUMENT, {"model": "stand-in", "prompt": "ä" * 20_000, "max_tokens": 1}),
        ("max_tokens", grpc.StatusCode.INVALID_ARGUMENT, {"model": "stand-in", "prompt": "a", "max_tokens": 0}),
        ("max_tokens", grpc.StatusCode.INVALID_ARGUMENT, {"model": "stand-in", "prompt": "a", "max_tokens": 2**32 - 1}),
    ],
)
def test_bad_fields_are_named_and_counted_for_nothing(
    model: Any, refused: Callable[..., str], field: str, code: grpc.StatusCode, request_: dict[str, Any]
) -> None:
    stub, meter = model
    said = refused(code, stub.Generate, daena_pb2.GenerateRequest(**request_))
    assert said.startswith(f"{field}: ")
    assert said.isascii()
    assert len(said) < 300
    assert not [point for point in meter.stats().points if point.value]


def test_a_call_costs_its_caller_the_tokens(model: Any, callers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, _ = model
    costs: list[int] = []
    monkeypatch.setattr(sdk, "report_cost", costs.append)
    callers.become("acme", "analyst")
    made = stub.Generate(daena_pb2.GenerateRequest(model=extract.ALIAS, prompt=PROMPT, max_tokens=40))
    assert costs == [made.input_tokens + made.output_tokens]


def test_the_client_counts_what_the_service_counted(model: Any, callers: Any) -> None:
    stub, served = model
    meter = Meter()
    callers.become("acme", "analyst")
    client = ModelClient(stub, "analyst", meter)
    for number in range(5):
        client.generate(PROMPT + f" {number}.", 40)
    counted = {
        point.attributes["gen_ai.token.type"]: point.value
        for point in served.stats().points
        if point.name == "model.tokens"
    }
    used = {
        point.attributes["gen_ai.token.type"]: (point.value, point.count)
        for point in meter.stats().points
        if point.name == "gen_ai.client.token.usage"
    }
    assert counted["input"] > 0
    assert used == {kind: (value, 5) for kind, value in counted.items()}
    assert {point.attributes["mesh.source"] for point in served.stats().points if point.name == "model.tokens"} == {
        "spiffe://mesh.test/tenant/acme/service/analyst"
    }


def test_a_model_that_refuses_is_away_and_its_time_is_counted_as_an_error(model: Any) -> None:
    stub, _ = model
    meter = Meter()
    with pytest.raises(Away, match="INVALID_ARGUMENT"):
        ModelClient(stub, "analyst", meter).generate(" ", 40)
    (point,) = meter.stats().points
    assert (point.attributes["error.type"], point.count) == ("INVALID_ARGUMENT", 1)
