"""The bus as a service. Who publishes and who subscribes is read from certificates."""

from collections.abc import Iterable, Iterator
from typing import Final

import grpc

from meshwarden import sdk
from meshwarden.examples.daena import daena_pb2, daena_pb2_grpc, field
from meshwarden.examples.daena.bus.broker import Broker, Key
from meshwarden.examples.daena.error import Invalid
from meshwarden.examples.daena.metric import Attributes, Meter
from meshwarden.examples.daena.serve import Identify, answering

MAX_PAYLOAD_BYTES: Final = 64 << 10
MAX_IDS: Final = 256


class Bus(daena_pb2_grpc.BusServicer):
    """Takes messages and hands them on."""

    def __init__(self, broker: Broker, meter: Meter, identify: Identify = sdk.peer_identity) -> None:
        self._broker = broker
        self._meter = meter
        self._identify = identify
        self._published = meter.counter("bus.published", "{message}")
        self._sent = meter.counter("bus.sent", "{message}")
        self._acknowledged = meter.counter("bus.acknowledged", "{message}")
        meter.gauge("bus.queue.length", "{message}", lambda: self._queues(is_dropped=False))
        meter.gauge("bus.queue.dropped", "{message}", lambda: self._queues(is_dropped=True))
        meter.gauge("bus.forgotten", "{message}", lambda: [(broker.forgotten, {})])
        meter.gauge("bus.streams", "{stream}", lambda: [(broker.streams, {})])

    def Publish(  # noqa: N802
        self, request: daena_pb2.PublishRequest, context: grpc.ServicerContext
    ) -> daena_pb2.PublishResponse:
        with answering(context):
            if len(request.payload) > MAX_PAYLOAD_BYTES:
                raise Invalid(f"payload: {len(request.payload)} bytes; at most {MAX_PAYLOAD_BYTES} are taken")
            traceparent = field.traceparent("traceparent", request.traceparent)
            publisher = str(self._identify(context))
            number, reached = self._broker.publish(request.topic, request.payload, publisher, traceparent)
        self._published.add(1, {"topic": request.topic})
        return daena_pb2.PublishResponse(id=number, subscriptions=reached)

    def Subscribe(  # noqa: N802
        self, request: daena_pb2.SubscribeRequest, context: grpc.ServicerContext
    ) -> Iterator[daena_pb2.Message]:
        with answering(context):
            key = self._key(request.subscription, context)
            context.add_callback(self._broker.wake)
            for delivery in self._broker.stream(request.topic, key, context.is_active):
                self._sent.add(1, {"topic": request.topic})
                message = delivery.message
                yield daena_pb2.Message(
                    id=message.id,
                    topic=request.topic,
                    payload=message.payload,
                    publisher=message.publisher,
                    traceparent=message.traceparent,
                    attempt=delivery.attempt,
                    dropped=delivery.dropped,
                )

    def Acknowledge(  # noqa: N802
        self, request: daena_pb2.AcknowledgeRequest, context: grpc.ServicerContext
    ) -> daena_pb2.AcknowledgeResponse:
        with answering(context):
            field.count("ids", len(request.ids), 1, MAX_IDS)
            let_go = self._broker.acknowledge(request.topic, self._key(request.subscription, context), request.ids)
        self._acknowledged.add(let_go, {"topic": request.topic})
        return daena_pb2.AcknowledgeResponse(acknowledged=let_go)

    def Stats(  # noqa: N802
        self, request: daena_pb2.StatsRequest, context: grpc.ServicerContext
    ) -> daena_pb2.StatsResponse:
        return self._meter.stats()

    def _key(self, name: str, context: grpc.ServicerContext) -> Key:
        caller = self._identify(context)
        return Key(caller.tenant or "", str(caller), field.name("subscription", name))

    def _queues(self, is_dropped: bool) -> Iterable[tuple[float, Attributes]]:
        return [
            (dropped if is_dropped else queued, {"topic": topic, "owner": key.owner, "subscription": key.name})
            for topic, key, queued, dropped in self._broker.queues()
        ]
