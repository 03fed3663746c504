"""Tells of calls of a model as a program's instrumented client does, and calls nobody: to see what they would cost."""

import argparse
import logging

from meshwarden.examples import trace
from meshwarden.examples.daena.model import genai
from meshwarden.sdk import telemetry
from meshwarden.sdk.stop import Stop


def tell(provider: str, model: str, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> None:
    """Makes the span of one call."""
    asked = {genai.OPERATION_NAME: genai.CHAT, genai.PROVIDER_NAME: provider, genai.REQUEST_MODEL: model}
    with trace.span(f"{genai.CHAT} {model}", attributes=asked) as span:
        span.set(
            {
                genai.RESPONSE_MODEL: model,
                genai.USAGE_INPUT_TOKENS: input_tokens,
                genai.USAGE_OUTPUT_TOKENS: output_tokens,
                **({genai.USAGE_CACHED_TOKENS: cached_tokens} if cached_tokens else {}),
            }
        )


def main() -> None:
    """Tells of some calls, one every while."""
    parser = argparse.ArgumentParser(prog="model_call", description=__doc__)
    parser.add_argument("--provider", default="openai", help="(default %(default)s)")
    parser.add_argument("--model", default="gpt-4o", help="(default %(default)s)")
    parser.add_argument("--input", type=int, default=1200, metavar="TOKENS", help="(default %(default)s)")
    parser.add_argument(
        "--cached", type=int, default=0, metavar="TOKENS", help="how many of them (default %(default)s)"
    )
    parser.add_argument("--output", type=int, default=300, metavar="TOKENS", help="(default %(default)s)")
    parser.add_argument("--calls", type=int, default=1, help="(default %(default)s; 0: until it is told to end)")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="(default %(default)s)")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    telemetry.configure()
    stop, made = Stop(), 0
    while not stop.wait(asked.every if made else 0.0) and (not asked.calls or made < asked.calls):
        tell(asked.provider, asked.model, asked.input, asked.output, asked.cached)
        made += 1
    logging.info("told of %d calls of %s", made, asked.model)


if __name__ == "__main__":
    main()
