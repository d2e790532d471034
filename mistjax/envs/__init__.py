"""Gymnasium environments, their perturbations and scripted experts. Importing this registers
`mistjax/Board-v0`."""

import gymnasium as gym

gym.register("mistjax/Board-v0", "mistjax.envs.board:BoardEnv", disable_env_checker=True)
