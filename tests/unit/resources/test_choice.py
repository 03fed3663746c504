"""What is no choice of an endpoint is refused, with the field that says it."""

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse


def policy(spec: str) -> str:
    return f"kind: RoutePolicy\nmetadata: {{tenant: platform, name: a}}\nspec: {{service: orders, {spec}}}\n"


GOOD = [
    "loadBalancing: {roundRobin: {}}",
    "loadBalancing: {leastRequest: {choiceCount: 100}}",
    "loadBalancing: {random: {}}",
    "loadBalancing: {ringHash: {header: x-user, minimumRingSize: 4096}}",
    "loadBalancing: {ringHash: {cookie: {name: at, ttl: 60s, path: /shop}}}",
    "loadBalancing: {ringHash: {sourceIdentity: true}}",
    "affinity: {cookie: {name: at}}",
    "outlierDetection: {consecutive5xx: 5, interval: 0.1s, baseEjectionTime: 1s, maxEjectionPercent: 100}",
    "outlierDetection: {failurePercentage: {threshold: 99, requestVolume: 1, minimumHosts: 1}}",
    "circuitBreaker: {maxRequests: 1}",
    "locality: {}",
    "locality: {healthyPercent: 100}",
]
BAD = [
    ("rules: []", "says nothing"),
    ("loadBalancing: {}", "spec.loadBalancing"),
    ("loadBalancing: {roundRobin: {}, random: {}}", "spec.loadBalancing"),
    ("loadBalancing: {leastRequest: {choiceCount: 1}}", "spec.loadBalancing.leastRequest.choiceCount"),
    ("loadBalancing: {leastRequest: {choiceCount: 101}}", "spec.loadBalancing.leastRequest.choiceCount"),
    ("loadBalancing: {ringHash: {}}", "spec.loadBalancing.ringHash: is required: give one of header, cookie"),
    ("loadBalancing: {ringHash: {header: X-User}}", "spec.loadBalancing.ringHash.header"),
    ("loadBalancing: {ringHash: {header: ':path'}}", "spec.loadBalancing.ringHash.header"),
    ("loadBalancing: {ringHash: {header: ''}}", "spec.loadBalancing.ringHash.header"),
    ("loadBalancing: {ringHash: {header: trace-bin}}", "spec.loadBalancing.ringHash.header: is a binary header"),
    ("loadBalancing: {ringHash: {sourceIdentity: false}}", "spec.loadBalancing.ringHash.sourceIdentity"),
    ("loadBalancing: {ringHash: {header: x, minimumRingSize: 4097}}", "spec.loadBalancing.ringHash.minimumRingSize"),
    ("loadBalancing: {ringHash: {cookie: {name: 'a.*'}}}", "spec.loadBalancing.ringHash.cookie.name"),
    ("loadBalancing: {ringHash: {cookie: {name: a, path: 'x;y'}}}", "spec.loadBalancing.ringHash.cookie.path"),
    ("affinity: {}", "spec.affinity.cookie"),
    ("affinity: {cookie: {}}", "spec.affinity.cookie.name"),
    ("affinity: {cookie: {name: at, ttl: 0.5s}}", "spec.affinity.cookie.ttl"),
    ("affinity: {cookie: {name: at}}, loadBalancing: {ringHash: {header: x}}", "spec.affinity: loadBalancing.ringHash"),
    ("outlierDetection: {}", "spec.outlierDetection: give consecutive5xx or failurePercentage"),
    ("outlierDetection: {consecutive5xx: 1001}", "spec.outlierDetection.consecutive5xx"),
    ("outlierDetection: {failurePercentage: {}}", "spec.outlierDetection.failurePercentage.threshold"),
    ("outlierDetection: {failurePercentage: {threshold: 100}}", "spec.outlierDetection.failurePercentage.threshold"),
    ("outlierDetection: {consecutive5xx: 1, interval: 0.01s}", "spec.outlierDetection.interval"),
    ("outlierDetection: {consecutive5xx: 1, interval: -1s}", "spec.outlierDetection.interval"),
    ("outlierDetection: {consecutive5xx: 1, baseEjectionTime: 400s}", "spec.outlierDetection.maxEjectionTime"),
    ("outlierDetection: {consecutive5xx: 1, maxEjectionPercent: 101}", "spec.outlierDetection.maxEjectionPercent"),
    ("circuitBreaker: {}", "spec.circuitBreaker: give maxConnections"),
    ("circuitBreaker: {maxRequests: -1}", "spec.circuitBreaker.maxRequests"),
    ("circuitBreaker: {maxRequests: 1000001}", "spec.circuitBreaker.maxRequests"),
    ("locality: {healthyPercent: 0}", "spec.locality.healthyPercent"),
    ("locality: {healthyPercent: 101}", "spec.locality.healthyPercent"),
]


@pytest.mark.parametrize("spec", GOOD)
def test_what_says_something_is_taken(spec: str) -> None:
    assert len(parse(policy(spec), "x")) == 1


@pytest.mark.parametrize(("spec", "fault"), BAD)
def test_what_is_no_choice_is_refused(spec: str, fault: str) -> None:
    with pytest.raises(ManifestFaults) as caught:
        parse(policy(spec), "x")
    assert fault in str(caught.value)
