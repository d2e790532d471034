"""Go stones on a board: MuJoCo physics, a JAX ray-caster, perturbations and a scripted expert."""
