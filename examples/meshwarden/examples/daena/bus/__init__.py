"""The message bus: `subscription` is the state of one queue, `broker` all topics and queues, `service` their edge."""
