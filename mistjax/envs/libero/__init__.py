"""LIBERO (arXiv 2306.03310) and LIBERO-PRO (arXiv 2510.03827) as gymnasium environments.

`make libero` installs the simulator. Everything here imports without it; what needs it says so.

- `env`: `mistjax/Libero-v0`, with openpi's observation keys
- `suites`, `bddl`, `init_states`: tasks as data, read without running any of LIBERO's code
- `perturbations`: the five dimensions of LIBERO-PRO, made from a task's own BDDL
- `simulator`, `cameras`: one scene in robosuite, and its pictures
- `expert`, `demos`: a scripted expert for pick-and-place, and demonstrations by it
- `installation`: finds the package and its assets
"""
