"""Which services of a large mesh are shown one by one, and which are folded together. Pure.

    places = fold({"acme/web": rank, …}, most=300, shown={"acme/web"})
    places["acme/old"]      # "acme/*"

Each tenant has its share of what can be shown, by max-min fairness: whoever has few services is shown whole. Of a
tenant that has more those are shown that matter most; those that are shown stay while others matter as much, so that a
picture does not jump. Where there are more tenants than can be shown, each is one, and those beyond are "*/*".
"""

from collections.abc import Callable, Mapping, Set
from typing import Any, Final

REST: Final = "*"


def fold(ranks: Mapping[str, Any], most: int, shown: Set[str] = frozenset()) -> Callable[[str], str]:
    """Says of each service where it is shown: by itself or in which fold.

    Args:
        ranks: {"<tenant>/<service>": what it is sorted by, the greatest first}.
        most: how many can be shown, folds among them; one at least.
        shown: those that were shown by themselves before.
    """
    if len(ranks) <= most:
        return lambda service: service
    by_tenant: dict[str, list[str]] = {}
    for service in ranks:
        by_tenant.setdefault(service.partition("/")[0], []).append(service)
    if len(by_tenant) > most:
        return _tenants_alone(by_tenant, most)
    alone: set[str] = set()
    left, waiting = most, len(by_tenant)
    for _, services in sorted(by_tenant.items(), key=lambda item: (len(item[1]), item[0])):
        share = left // waiting
        if len(services) > share:
            services.sort(key=lambda service: (ranks[service], service in shown, service), reverse=True)
            alone.update(services[: share - 1])
            left -= share
        else:
            alone.update(services)
            left -= len(services)
        waiting -= 1
    return lambda service: service if service in alone else f"{service.partition('/')[0]}/{REST}"


def _tenants_alone(by_tenant: Mapping[str, list[str]], most: int) -> Callable[[str], str]:
    large = sorted(by_tenant, key=lambda tenant: (-len(by_tenant[tenant]), tenant))[: most - 1]
    kept = frozenset(large)

    def place(service: str) -> str:
        tenant = service.partition("/")[0]
        return f"{tenant}/{REST}" if tenant in kept else f"{REST}/{REST}"

    return place
