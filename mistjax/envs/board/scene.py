"""The board scene: how it looks (`BoardScene`), where things are, and its MuJoCo model.

A 5x5 board lies on a table; a gantry gripper (slides x, y, z and two fingers) carries Go stones to
it. All lengths are metres. Rows run along +x (row 1 is far from the front camera), columns along +y
(column 1 is left in its picture).

Physics settings were chosen by sweeping a scripted grasp: an elliptic cone with impratio 10 holds a
stone; a pyramidal cone with impratio 1 never does, and fewer than about 10 solver iterations fling
stones away. The table resists rolling (condim 6), which keeps dropped stones in reach.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import mujoco

Rgb = tuple[float, float, float]
Vec = tuple[float, float, float]

CELLS = 5
SPACING = 0.04
BOARD_TOP = 0.012
BOARD_HALF = 0.11
LINE_HALF_WIDTH = 0.001
STONE_RADIUS = 0.013
STONE_HALF_HEIGHT = 0.55 * STONE_RADIUS
STONE_SIZE = (STONE_RADIUS, STONE_RADIUS, STONE_HALF_HEIGHT)
BOARD_SIZE = (BOARD_HALF, BOARD_HALF, BOARD_TOP / 2)
PALM_SIZE, PALM_Z = (0.009, 0.030, 0.006), 0.026
FINGER_SIZE, FINGER_Y, FINGER_Z = (0.009, 0.003, 0.016), 0.003, 0.004
ROD_SIZE, ROD_Z = (0.006, 0.05), 0.08
FINGER_OPEN = 0.020
TIMESTEP = 0.004
CONTROL_STEPS = 25
CONTROL_HZ = 10
MAX_STONES = 10
SHININESS = 24
WORKSPACE_LOW = (-0.13, -0.15, 0.013)
WORKSPACE_HIGH = (0.215, 0.15, 0.13)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera by where it stands, the point it looks at, and its vertical field of view in
    degrees."""

    position: Vec
    target: Vec
    fovy: float

    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rotation whose columns are the camera's right, up and backward axes."""
        back = np.subtract(self.position, self.target)
        back = back / np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(back, right), back], axis=1)


@dataclasses.dataclass(frozen=True)
class BoardScene:
    """Everything about the scene that a camera sees and physics ignores.

    Colours are linear RGB in [0, 1]. `table_contrast` darkens every second table tile by that
    share. A reflectivity is the strength of the highlight. `gain` multiplies the picture per
    channel. The wrist camera is in the gripper's frame.
    """

    table_rgb: Rgb = (0.30, 0.42, 0.36)
    table_contrast: float = 0.0
    table_tile: float = 0.04
    board_rgb: Rgb = (0.85, 0.68, 0.38)
    line_rgb: Rgb = (0.10, 0.08, 0.05)
    black_rgb: Rgb = (0.03, 0.03, 0.03)
    white_rgb: Rgb = (0.97, 0.97, 0.97)
    gripper_rgb: Rgb = (0.75, 0.75, 0.78)
    finger_rgb: Rgb = (0.30, 0.30, 0.35)
    board_reflectivity: float = 0.0
    stone_reflectivity: float = 0.3
    light: Vec = (-0.35, -0.25, 1.0)
    ambient: float = 0.35
    diffuse: float = 0.60
    headlight: float = 0.30
    shadow: bool = False
    gain: Rgb = (1.0, 1.0, 1.0)
    front: Camera = Camera((0.40, 0.0, 0.47), (0.045, 0.0, 0.02), 30.0)
    wrist: Camera = Camera((0.06, 0.0, 0.06), (0.0, 0.0, -0.02), 70.0)


def cell_xy(row: int, column: int) -> Float[np.ndarray, "2"]:
    """Centre of the cell at `row`, `column` (both 1 to 5), in metres."""
    if not (1 <= row <= CELLS and 1 <= column <= CELLS):
        raise ValueError(
            f"row {row} column {column} is not on the board: both run from 1 to {CELLS}"
        )
    middle = (CELLS + 1) / 2
    return np.array([(row - middle) * SPACING, (column - middle) * SPACING])


def support_height(xy: Float[np.ndarray, "2"]) -> float:
    """Height of the surface under `xy`: the board's top, or 0 for the table."""
    return BOARD_TOP if np.abs(xy).max() < BOARD_HALF else 0.0


def build_model(scene: BoardScene, stones: tuple[str, ...]) -> mujoco.MjModel:
    """Compile the scene with one free stone per colour in `stones` ("black" or "white").

    MuJoCo is imported here: everything else about a scene is there without it.
    """
    import mujoco

    if not hasattr(mujoco.MjOption, "ls_iterations"):
        raise ImportError(
            f"the board needs MuJoCo 3, this is {mujoco.__version__}: play on it in an environment "
            "without the packages that hold MuJoCo back, such as openpi's."
        )
    if len(stones) > MAX_STONES:
        raise ValueError(f"{len(stones)} stones asked for, at most {MAX_STONES} fit the scene")
    return mujoco.MjModel.from_xml_string(scene_xml(scene, stones))


def _numbers(values) -> str:
    return " ".join(f"{v:.9g}" for v in values)


def _camera(name: str, camera: Camera) -> str:
    axes = camera.axes()
    return (
        f'<camera name="{name}" pos="{_numbers(camera.position)}" fovy="{camera.fovy:.9g}" '
        f'xyaxes="{_numbers(axes[:, 0])} {_numbers(axes[:, 1])}"/>'
    )


def _lines() -> str:
    half, reach = LINE_HALF_WIDTH, (CELLS - 1) / 2 * SPACING + LINE_HALF_WIDTH
    geoms = []
    for i in range(CELLS):
        at = (i - (CELLS - 1) / 2) * SPACING
        for name, size, pos in (("r", (half, reach), (at, 0)), ("c", (reach, half), (0, at))):
            geoms.append(
                f'<geom name="line_{name}{i}" class="visual" type="box" material="line" '
                f'size="{_numbers(size)} 0.0002" pos="{_numbers(pos)} {BOARD_TOP}"/>'
            )
    return "".join(geoms)


def _stone(index: int, colour: str) -> str:
    return (
        f'<body name="stone{index}"><freejoint name="stone{index}"/>'
        f'<geom name="stone{index}" class="stone" material="{colour}" type="ellipsoid" '
        f'size="{_numbers(STONE_SIZE)}"/></body>'
    )


def _finger(name: str, side: int) -> str:
    return (
        f'<body name="{name}" pos="0 {FINGER_Y * side} {FINGER_Z}" gravcomp="1">'
        f'<joint name="{name}" type="slide" axis="0 {side} 0" range="0 0.022" damping="2"/>'
        f'<geom name="{name}" class="finger" type="box" size="{_numbers(FINGER_SIZE)}"/>'
        "</body>"
    )


def _materials(scene: BoardScene) -> str:
    # OpenGL clamps the light on a texture at 1, so the material takes a share of the brightness.
    dim = 0.8
    light = np.minimum(np.divide(scene.table_rgb, dim), 1.0)
    dark = light * (1 - scene.table_contrast)
    plain = {
        "board": (scene.board_rgb, scene.board_reflectivity),
        "line": (scene.line_rgb, scene.board_reflectivity),
        "black": (scene.black_rgb, scene.stone_reflectivity),
        "white": (scene.white_rgb, scene.stone_reflectivity),
        "gripper": (scene.gripper_rgb, 0.0),
        "finger": (scene.finger_rgb, 0.0),
    }
    repeat = 1 / (2 * scene.table_tile)
    return (
        f'<texture name="table" type="2d" builtin="checker" width="64" height="64" '
        f'rgb1="{_numbers(dark)}" rgb2="{_numbers(light)}"/>'
        f'<material name="table" texture="table" texrepeat="{repeat:.9g} {repeat:.9g}" '
        f'texuniform="true" specular="0" rgba="{dim} {dim} {dim} 1"/>'
    ) + "".join(
        f'<material name="{name}" rgba="{_numbers(rgb)} 1" '
        f'specular="{shine:.9g}" shininess="{SHININESS / 128}"/>'
        for name, (rgb, shine) in plain.items()
    )


def scene_xml(scene: BoardScene, stones: tuple[str, ...]) -> str:
    """What `build_model` compiles, in MuJoCo's language."""
    slides = "".join(
        f'<joint name="{name}" type="slide" axis="{axis}" range="{low} {high}" damping="5"/>'
        for name, axis, low, high in zip(
            "xyz", ("1 0 0", "0 1 0", "0 0 1"), (-0.2, -0.2, 0.0), (0.25, 0.2, 0.3), strict=True
        )
    )
    return f"""
<mujoco model="board">
 <option timestep="{TIMESTEP}" cone="elliptic" impratio="10" iterations="20" ls_iterations="20"
  integrator="implicitfast"><flag eulerdamp="disable"/></option>
 <visual>
  <headlight ambient="{_numbers([scene.ambient] * 3)}" specular="0 0 0"
   diffuse="{_numbers([scene.headlight] * 3)}"/>
  <global offwidth="512" offheight="512"/><map znear="0.01" zfar="30"/>
 </visual>
 <asset>{_materials(scene)}</asset>
 <default>
  <geom condim="4" friction="1.5 0.02 0.001" solref="0.008 1" solimp="0.9 0.95 0.001"/>
  <default class="visual"><geom contype="0" conaffinity="0"/></default>
  <default class="support">
   <geom contype="0" conaffinity="3" condim="6" friction="1.5 0.02 0.001"/></default>
  <default class="stone"><geom contype="1" conaffinity="1" mass="0.008"/></default>
  <default class="finger">
   <geom contype="2" conaffinity="1" mass="0.05" material="finger"/></default>
 </default>
 <worldbody>
  <light directional="true" pos="{_numbers(scene.light)}" dir="{_numbers(-np.array(scene.light))}"
   diffuse="{_numbers([scene.diffuse] * 3)}" specular="1 1 1"
   castshadow="{str(scene.shadow).lower()}"/>
  {_camera("front", scene.front)}
  <geom name="table" class="support" type="plane" size="2 2 0.05" material="table"/>
  <geom name="board" class="support" type="box" material="board"
   size="{_numbers(BOARD_SIZE)}" pos="0 0 {BOARD_TOP / 2}"/>
  {_lines()}
  <body name="gripper" gravcomp="1">{slides}
   <geom name="palm" class="visual" type="box" size="{_numbers(PALM_SIZE)}" pos="0 0 {PALM_Z}"
    material="gripper" mass="0.3"/>
   <geom name="rod" class="visual" type="capsule" size="{_numbers(ROD_SIZE)}" pos="0 0 {ROD_Z}"
    material="gripper" mass="0.05"/>
   {_camera("wrist", scene.wrist)}
   {_finger("left_finger", 1)}{_finger("right_finger", -1)}
  </body>
  {"".join(_stone(i, colour) for i, colour in enumerate(stones))}
 </worldbody>
 <actuator>
  {"".join(f'<position joint="{axis}" kp="2000" kv="50"/>' for axis in "xyz")}
  <position joint="left_finger" kp="150" kv="4" forcerange="-3 3"/>
  <position joint="right_finger" kp="150" kv="4" forcerange="-3 3"/>
 </actuator>
</mujoco>"""
