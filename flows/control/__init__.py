"""Control: environments, policies that act in them, and what is measured about both."""

ENVIRONMENTS = {
    "multigoal": "flows.control.multigoal:MultiGoal",
}
