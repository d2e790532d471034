"""One LIBERO scene: robosuite's physics and LIBERO's success test, without their renderer.

What robosuite leaves open is settled here. Placements are drawn from NumPy's global generator: it
is seeded for a reset and put back afterwards, so that a seed always means the same start. A reset
keeps the compiled scene, and clears what robosuite forgets (the gripper's last command, the
recent-value buffers); state and pictures are then those of a newly built scene. A diverging
simulation, which MuJoCo resets silently, raises `SimulationError`.

An observation is not taken at the end of a control step: robosuite samples its sensors one or two
of the 25 physics steps earlier, depending on how the episode was started. `seen` is the world at
that moment, so that states and pictures equal those that published policies were trained on.

Cost on one busy CPU core: 2 to 5 s to build (more the first time, when numba compiles), 0.1 to
0.5 s per reset, 7 to 13 ms per step; 0.7 GB of memory, 2 to 3 GB with pictures. `check_memory`
refuses more scenes than fit.
"""

# MuJoCo and robosuite ship no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mujoco
import numpy as np
from jaxtyping import Float

from mistjax.envs.libero.appearances import Appearances
from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.installation import Libero

ACTIONS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
MEMORY_BYTES = 2.5e9  # of one simulator with pictures
CONTROL_HZ = 20
REST = np.array([0.0] * 6 + [-1.0])
DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class SimulationError(RuntimeError):
    """The physics diverged: neither a success nor a failure of the policy."""


class Simulator:
    """See the module."""

    def __init__(
        self, libero: Libero, problem: Problem, style: Mapping[str, str] | None = None
    ) -> None:
        """Builds the scene.

        Args:
            libero: the imported simulator.
            problem: the task.
            style: the arena's "floor_style" and "wall_style"; None takes its own.

        Raises:
            ValueError: an object, texture or region that this installation does not have.
        """
        self.problem = problem
        with tempfile.TemporaryDirectory() as folder, seeded(0):
            path = Path(folder) / "problem.bddl"
            path.write_text(problem.text())
            try:
                self._env = libero.problems[problem.kind.lower()](
                    str(path),
                    robots=["Panda"],
                    controller_configs=libero.controller,
                    initialization_noise=None,
                    use_camera_obs=False,
                    has_renderer=False,
                    has_offscreen_renderer=False,
                    control_freq=CONTROL_HZ,
                    ignore_done=True,
                    hard_reset=False,
                    scene_properties=None if style is None else dict(style),
                )
            except (KeyError, FileNotFoundError, AssertionError) as error:
                raise ValueError(
                    f"no scene can be built of {problem.language!r}: {error!r}. Expected objects "
                    f"and textures that LIBERO defines and {libero.assets} holds."
                ) from error
        # Published policies saw textures' bytes as they are; MuJoCo 3.9 would take those of PNGs
        # with an sRGB chunk for gamma-compressed, and draw them darker.
        self.model.tex_colorspace[:] = mujoco.mjtColorSpace.mjCOLORSPACE_LINEAR
        self._bodies = {
            name: self._env.obj_body_id[name]
            for name, _ in problem.objects + problem.fixtures
            if name in self._env.obj_body_id
        }
        self._owner = {geom: name for name, _ in problem.objects for geom in self.geoms(name)}
        self._fingers = [
            {self.model.geom(name).id for name in names}
            for names in (
                ("gripper0_finger1_collision", "gripper0_finger1_pad_collision"),
                ("gripper0_finger2_collision", "gripper0_finger2_pad_collision"),
            )
        ]
        self.appearances = Appearances(
            self.model, {name: self.geoms(name) for name in self.objects}
        )
        self.seen = mujoco.MjData(self.model)
        self._env._observables.clear()
        self._env._observables["seen"] = self._observable()

    def close(self) -> None:
        """Frees the scene: robosuite's objects refer to each other in cycles and would stay, and
        the C library keeps what is freed.
        """
        self._env.close()
        del self._env, self.seen
        gc.collect()
        if sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)  # of the GNU C library alone

    @property
    def model(self) -> mujoco.MjModel:
        return self._env.sim.model._model

    @property
    def data(self) -> mujoco.MjData:
        return self._env.sim.data._data

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of what has a pose: all objects and fixtures but the table or floor."""
        return tuple(self._bodies)

    def reset(self, seed: int) -> None:
        """A start drawn from the problem's regions."""
        from robosuite.utils.errors import RandomizationError

        with seeded(seed):
            for _ in range(100):
                with contextlib.suppress(RandomizationError):
                    self._unplace_fixtures()
                    self._env.reset()
                    break
            else:
                raise SimulationError(
                    f"no start without overlaps in 100 draws for {self.problem.language!r}."
                )
        robot = self._env.robots[0]
        robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)
        self._refresh()

    def _unplace_fixtures(self) -> None:
        """LIBERO places things on fixtures by where their sites are in a scene newly built."""
        for fixture in self._env.fixtures_dict.values():
            body, at = self.model.body(fixture.root_body), fixture.get_obj()
            body.pos[:] = np.fromstring(at.get("pos", "0 0 0"), sep=" ")
            body.quat[:] = np.fromstring(at.get("quat", "1 0 0 0"), sep=" ")

    def set_state(self, state: Float[np.ndarray, " size"]) -> None:
        """Takes a start state (time, qpos, qvel) of LIBERO's init files.

        Raises:
            ValueError: it has the size of another scene's.
        """
        expected = 1 + self.model.nq + self.model.nv
        if state.shape != (expected,):
            raise ValueError(
                f"the start state has shape {state.shape}, this scene's has ({expected},): it "
                "belongs to another scene."
            )
        self._env.sim.set_state_from_flattened(state)
        self._env.sim.forward()
        self._refresh()
        self._env._update_observables(force=True)

    def state(self) -> Float[np.ndarray, " size"]:
        """The present state, as `set_state` takes it."""
        return self._env.sim.get_state().flatten()

    def step(self, action: Float[np.ndarray, "7"]) -> None:
        """One control step of 0.05 s.

        Raises:
            SimulationError: the physics diverged.
        """
        self._env.step(action)
        broken = [kind.name for kind in DIVERGED if self.data.warning[kind].number]
        if broken or not np.isfinite(self.data.qpos).all():
            raise SimulationError(
                f"the simulation diverged after step {self.data.time:.2f} s: "
                f"{', '.join(broken) or 'a position is not finite'}."
            )

    def success(self) -> bool:
        """Whether every fact of the goal holds."""
        return bool(self._env._check_success())

    def robot_state(self) -> Float[np.ndarray, "8"]:
        """The robot in `seen`, as openpi reads it: grip position (m), the hand's rotation as axis
        times angle, and both fingers' joints (about 0.04 and -0.04 open, 0 closed)."""
        robot = self._env.robots[0]
        hand = self.seen.body(robot.robot_model.eef_name).xquat
        grip = self.seen.site_xpos[robot.eef_site_id]
        fingers = self.seen.qpos[robot._ref_gripper_joint_pos_indexes]
        return np.concatenate([grip, _axis_angle(hand), fingers])

    def grip_position(self) -> Float[np.ndarray, "3"]:
        """Between the fingertips, now."""
        return self.data.site_xpos[self._env.robots[0].eef_site_id].copy()

    def grip_rotation(self) -> Float[np.ndarray, "3 3"]:
        """How the gripper is turned, now: its axes are the columns, x from one finger to the
        other, z out of the palm."""
        return self.data.site_xmat[self._env.robots[0].eef_site_id].reshape(3, 3).copy()

    def position(self, name: str) -> Float[np.ndarray, "3"]:
        """Where an object or fixture is."""
        return self.data.xpos[self._bodies[name]].copy()

    def rotation(self, name: str) -> Float[np.ndarray, "3 3"]:
        """How an object or fixture is turned: its axes are the columns."""
        return self.data.xmat[self._bodies[name]].reshape(3, 3).copy()

    def geoms(self, name: str) -> list[int]:
        """Ids of the geoms that belong to an object or fixture."""
        tree = {self._bodies[name]}
        for body in range(self._bodies[name] + 1, self.model.nbody):
            if self.model.body_parentid[body] in tree:
                tree.add(body)
        return [geom for geom in range(self.model.ngeom) if self.model.geom_bodyid[geom] in tree]

    def gap(self) -> float:
        """Between the fingers, in metres."""
        return float(np.ptp(self.data.qpos[self._env.robots[0]._ref_gripper_joint_pos_indexes]))

    def held(self) -> str | None:
        """The object that both fingers touch; the first, should they touch several."""
        pairs = self.data.contact.geom
        touched = [
            {int(b if a in finger else a) for a, b in pairs if a in finger or b in finger}
            for finger in self._fingers
        ]
        both = [{self._owner[g] for g in geoms if g in self._owner} for geoms in touched]
        return min(both[0] & both[1], default=None)

    def _observable(self):
        """A robosuite sensor that stores the world's state whenever observations are sampled."""
        from robosuite.utils.observables import Observable, sensor

        @sensor(modality="world")
        def keep(_cache):
            mujoco.mj_copyData(self.seen, self.model, self.data)
            return np.zeros(1)

        return Observable("seen", keep, sampling_rate=CONTROL_HZ)

    def _refresh(self) -> None:
        """Makes lamps and buttons show the state that was set."""
        self.success()
        self._env._post_process()


def check_memory(scenes: int, meminfo: Path = Path("/proc/meminfo")) -> None:
    """ValueError where so many scenes with pictures do not fit in free memory (on Linux)."""
    if not meminfo.exists():
        return
    free = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    taken, most = scenes * MEMORY_BYTES, max(1, int(free / MEMORY_BYTES))
    if scenes > most:
        raise ValueError(
            f"{scenes} LIBERO scenes at a time take about {taken / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free: give at most {most} workers."
        )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator inside the block and restores it afterwards."""
    before = np.random.get_state()  # noqa: NPY002 (robosuite draws from it)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _axis_angle(quaternion: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3"]:
    """Axis times angle (0 to 2 pi) of a quaternion (w, x, y, z), zero for no turn."""
    w, axis = np.clip(quaternion[0], -1.0, 1.0), quaternion[1:]
    length = np.sqrt(1.0 - w * w)
    return axis * (2 * np.arccos(w) / length) if length > 0 else np.zeros(3)
