"""Ways through a map: plans, policies, navigation from a belief, two levels."""

from .hierarchy import Hierarchy, communities
from .navigation import Journey, distinguishing_actions, navigate
from .plans import Plan, States, UnreachableError, bridge, plan, plan_from_belief
from .policies import Policy, shortest_policy

__all__ = [
    "Hierarchy",
    "Journey",
    "Plan",
    "Policy",
    "States",
    "UnreachableError",
    "bridge",
    "communities",
    "distinguishing_actions",
    "navigate",
    "plan",
    "plan_from_belief",
    "shortest_policy",
]
