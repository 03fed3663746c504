"""What can go wrong between a program and its node agent.

SdkError
├── NotStarted      the program wasn't started under an agent
├── AgentAway       the agent didn't say in time who the program is
└── SecretMissing   the agent has no such secret for the program
"""


class SdkError(Exception):
    """Something of the SDK failed; the message says what to do."""


class NotStarted(SdkError):
    """The program wasn't started as a workload."""


class AgentAway(SdkError):
    """The node agent didn't answer, or not in a way that could be used."""


class SecretMissing(SdkError):
    """The node agent has no such secret for the program, or none yet."""
