"""Control: environments, policies that act in them, and what is measured about both."""

ENVIRONMENTS = {
    "multigoal": "flows.control.multigoal:MultiGoal",
    "multigoal4": "flows.control.displacement:MultiGoal4",
    "gridworld": "flows.control.gridworld:GridWorld",
    "gym": "flows.control.gym:Gym",
    "pointmaze": "flows.control.goals:PointMaze",
    "mujoco": "flows.control.goals:MuJoCo",
    "isaaclab": "flows.control.simulators:IsaacLab",
    "playground": "flows.control.simulators:Playground",
}
