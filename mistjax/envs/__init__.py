"""Gymnasium environments, their perturbations and scripted experts. Importing this registers
`mistjax/Board-v0`, `mistjax/Libero-v0` and one for each suite, such as
`mistjax/LiberoObject-v0`.
"""

import gymnasium as gym

gym.register("mistjax/Board-v0", "mistjax.envs.board.env:BoardEnv", disable_env_checker=True)
for _name in ("", "Spatial", "Object", "Goal", "10", "90"):
    gym.register(
        f"mistjax/Libero{_name}-v0",
        "mistjax.envs.libero.env:LiberoEnv",
        disable_env_checker=True,
        kwargs={"suite": f"libero_{_name.lower()}"} if _name else {},
    )
