"""The board's physics without a contact solver: a pure function that one program can batch.

The gantry is exact: without contact C MuJoCo's implicitfast step is a recurrence of two linear
slides (x and z) and a third (y) that shares its momentum with the fingers, whose 3 N motors
saturate. What touches follows rules: fingers close on a stone and carry it, an edge grasp creeps
until it is lost, open fingers push stones aside or stand on them, stones fall, rest and move out of
each other's way. Stones stay upright. The rules' constants were read off C MuJoCo.

A control step is five sub-steps of 20 ms, each of five exact substeps of the gantry followed by the
rules once. Every quantity is an array of its own (x, y and z too), so that a batch under
`jax.vmap` becomes a few fused loops. Cost: some 10 microseconds a control step on one CPU core at
batch 64.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mistjax.envs.board import scene as s

Numbers = Any  # jax.Array, or what becomes one
Triple = tuple[Numbers, ...]  # x, y, z

STONES: int = s.MAX_STONES
STEP = 0.020
ROUNDS = 5
SUBSTEPS = s.CONTROL_STEPS // ROUNDS
ROUND_SECONDS = SUBSTEPS * s.TIMESTEP
GRAVITY = 9.81

GANTRY_MASS, FINGER_MASS, STONE_MASS = 0.45, 0.05, 0.008
GANTRY_KP, GANTRY_DAMPING = 2000.0, 55.0
FINGER_KP, FINGER_KV, FINGER_DAMPING, FINGER_FORCE = 150.0, 4.0, 2.0, 3.0
OPEN, CLOSED, TOUCHING = s.FINGER_OPEN, -0.010, -8e-4
WIDEST = 0.0217

SINK = 7e-5  # how deep a resting stone lies in its support
SQUEEZE = 1.28e-3  # how deep each finger presses into a held stone
GIVE = 3e-3  # how far an open finger yields before it pushes a stone
PAD_X, PAD_Y = s.FINGER_SIZE[0], 2 * s.FINGER_SIZE[1]
PAD_LOW, PAD_HIGH = s.FINGER_Z - s.FINGER_SIZE[2], s.FINGER_Z + s.FINGER_SIZE[2]
STEEPEST = 1.4  # slope of the stone's side at which friction no longer holds it
LOWEST_GRASP = 3.4e-3  # a stone gripped this far above its centre is lost
OUTERMOST_GRASP = 0.0105  # and so is one whose centre is this far beyond the pads' side
SAG = STONE_MASS * GRAVITY / GANTRY_KP


class Body(NamedTuple):
    """Everything that moves. Metres and seconds; stones are arrays [n].

    Attributes:
        gripper, velocity: of the gantry.
        opening, opening_speed: mean of both fingers.
        shift, shift_speed: what the left finger is further out, and the right one further in.
        command: 1 open, -1 closed.
        stones, speeds: of the stones' centres.
        held: index of the stone between the fingers, or -1.
        grip: where it sits in the gripper's frame, along x and z.
    """

    gripper: Triple
    velocity: Triple
    opening: Numbers
    opening_speed: Numbers
    shift: Numbers
    shift_speed: Numbers
    command: Numbers
    stones: Triple
    speeds: Triple
    held: Numbers
    grip: tuple[Numbers, Numbers]

    rotation = None  # stones are upright


def at_rest(gripper: Triple, stones: Triple) -> Body:
    """Open fingers at `gripper`, and stones that have settled where they are."""
    zero, none = jnp.zeros(()), jnp.zeros_like(stones[0])
    x, y, z = stones
    return Body(
        gripper=gripper,
        velocity=(zero,) * 3,
        opening=zero + OPEN,
        opening_speed=zero,
        shift=zero,
        shift_speed=zero,
        command=zero + 1.0,
        stones=(x, y, z - SINK),
        speeds=(none,) * 3,
        held=jnp.int32(-1),
        grip=(zero, zero),
    )


def control_step(body: Body, action: jax.Array, present: jax.Array) -> Body:
    """One 0.1 s step.

    Args:
        body: one world; use `jax.vmap` for more.
        action: [dx, dy, dz, gripper], each clipped to [-1, 1]; a negative gripper value closes.
        present: [n], which stones there are.
    """
    action = jnp.clip(action, -1.0, 1.0)
    target = tuple(
        jnp.clip(body.gripper[i] + action[i] * STEP, s.WORKSPACE_LOW[i], s.WORKSPACE_HIGH[i])
        for i in range(3)
    )
    closing = action[3] < 0
    body = body._replace(
        command=jnp.where(closing, -1.0, 1.0), held=jnp.where(closing, body.held, -1)
    )

    def turn(body: Body, _):
        return _round(body, target, closing, present), None

    return jax.lax.scan(turn, body, None, length=ROUNDS)[0]


def _round(body: Body, target: Triple, closing: Numbers, present: Numbers) -> Body:
    """Five substeps of the motors, then the rules once."""
    width, reachable = _grasps(body, present)
    stop = _stop(body, width, reachable, closing)
    driven = _motors(body, target, closing, stop)
    moved = _stand_on_stones(body, _stand_on_board(body, driven), present)
    moved = _stopped(driven, moved)
    moved = _carry(body, moved, target)
    moved = _grasp(moved, closing, stop, present, reachable)
    moved = _creep(moved)
    return _free_stones(moved, closing, present)


def _is(index: Numbers, stones: Triple) -> Numbers:
    return jnp.arange(stones[0].shape[0]) == index


def _only(mask: Numbers, values: Numbers) -> Numbers:
    """The value where the mask is True at one place; 0 where it is nowhere."""
    return jnp.where(mask, values, 0.0).sum()


def _first(mask: Numbers, score: Numbers) -> Numbers:
    """The mask of the smallest score among the masked."""
    score = jnp.where(mask, score, jnp.inf)
    return mask & (score <= score.min())


def _offsets(body: Body) -> Triple:
    return tuple(body.stones[i] - body.gripper[i] for i in range(3))


def _side(dx: Numbers, dz: Numbers) -> tuple[Numbers, Numbers]:
    """Half width of a stone where the pads meet it, and whether friction holds it there."""
    ex = jnp.maximum(jnp.abs(dx) - PAD_X, 0.0)
    ez = jnp.maximum(jnp.maximum(PAD_LOW - dz, dz - PAD_HIGH), 0.0)
    share = 1 - (ex / s.STONE_RADIUS) ** 2 - (ez / s.STONE_HALF_HEIGHT) ** 2
    width = s.STONE_RADIUS * jnp.sqrt(jnp.maximum(share, 1e-6))
    slope2 = (ex / s.STONE_RADIUS**2) ** 2 + (ez / s.STONE_HALF_HEIGHT**2) ** 2
    steep2 = (STEEPEST * width / s.STONE_RADIUS**2) ** 2
    return width, (share > 0) & (slope2 < steep2)


def _at_pads(dz: Numbers) -> Numbers:
    return (dz > PAD_LOW - s.STONE_HALF_HEIGHT) & (dz < PAD_HIGH + s.STONE_HALF_HEIGHT)


def _grasps(body: Body, present: Numbers) -> tuple[Numbers, Numbers]:
    """Half width of each stone at the pads, and the mask of the free one that they would close
    on."""
    dx, dy, dz = _offsets(body)
    width, grips = _side(dx, dz)
    within = jnp.abs(dy) < body.opening + 1e-3
    free = present & ~_is(body.held, body.stones)
    return width, _first(free & within & grips & _at_pads(dz), jnp.abs(dx) + jnp.abs(dy))


def _stop(body: Body, width: Numbers, reachable: Numbers, closing: Numbers) -> Numbers:
    """Where the closing fingers come to a halt."""
    held = _is(body.held, body.stones)
    on = jnp.where(body.held >= 0, held, reachable)
    halt = jnp.where(on.any(), _only(on, width) - SQUEEZE, TOUCHING)
    return jnp.where(closing, halt, TOUCHING)


def _motors(body: Body, target: Triple, closing: Numbers, stop: Numbers) -> Body:
    """Implicitfast substeps of the gantry and both fingers, halting the fingers at `stop`."""
    dt, hold = s.TIMESTEP, body.held >= 0
    extra = jnp.where(hold, STONE_MASS, 0.0)
    setpoint = jnp.where(closing, CLOSED, OPEN)
    mass, fingers = GANTRY_MASS + extra, 2 * FINGER_MASS + extra
    drag = mass + dt * GANTRY_DAMPING
    drag_fingers = fingers + 2 * dt * FINGER_DAMPING
    det = drag * drag_fingers - fingers * fingers
    (x, y, z), (vx, vy, vz) = body.gripper, body.velocity
    tx, ty, tz = target[0], target[1], target[2] - jnp.where(hold, SAG, 0.0)
    opening, speed, shift, shift_speed = (
        body.opening,
        body.opening_speed,
        body.shift,
        body.shift_speed,
    )
    halts = hold & closing

    def motor(position: Numbers, velocity: Numbers) -> Numbers:
        force = FINGER_KP * (setpoint - position) - FINGER_KV * velocity
        return jnp.clip(force, -FINGER_FORCE, FINGER_FORCE)

    for _ in range(SUBSTEPS):
        left = motor(opening + shift, speed + shift_speed)
        right = motor(opening - shift, speed - shift_speed)
        push = mass * vy + fingers * shift_speed + dt * GANTRY_KP * (ty - y)
        pull = fingers * (vy + shift_speed) + dt * (left - right)
        vx = (mass * vx + dt * GANTRY_KP * (tx - x)) / drag
        vz = (mass * vz + dt * GANTRY_KP * (tz - z)) / drag
        vy = (drag_fingers * push - fingers * pull) / det
        shift_speed = (drag * pull - fingers * push) / det
        speed = (FINGER_MASS * speed + dt * 0.5 * (left + right)) / (
            FINGER_MASS + dt * FINGER_DAMPING
        )
        x, y, z = x + dt * vx, y + dt * vy, z + dt * vz
        shift, opening = shift + dt * shift_speed, opening + dt * speed
        hit = (opening < stop) | halts
        opening, speed = jnp.where(hit, stop, opening), jnp.where(hit, 0.0, speed)
        wide = opening > WIDEST
        speed = jnp.where(wide, jnp.minimum(speed, 0.0), speed)
        opening = jnp.minimum(opening, WIDEST)
    return body._replace(
        gripper=(x, y, z),
        velocity=(vx, vy, vz),
        opening=opening,
        opening_speed=speed,
        shift=shift,
        shift_speed=shift_speed,
    )


def _stand_on_board(before: Body, body: Body) -> Body:
    """Low fingers come to stand on the board, or halt at its side."""
    x, y, z = body.gripper
    reach = s.BOARD_HALF + PAD_X, s.BOARD_HALF + body.opening + jnp.abs(body.shift) + PAD_Y
    was = [jnp.abs(before.gripper[i]) < reach[i] - 1e-4 for i in (0, 1)]
    now = (jnp.abs(x) < reach[0] - 1e-4) & (jnp.abs(y) < reach[1] - 1e-4)
    top = s.BOARD_TOP - PAD_LOW
    enters = (z < top - 4e-4) & now & ~(was[0] & was[1])
    blocked = enters & (before.gripper[2] < top - 2e-3)
    x = jnp.where(blocked & ~was[0], jnp.sign(x) * (reach[0] - 1.2e-4), x)
    y = jnp.where(blocked & ~was[1], jnp.sign(y) * (reach[1] - 1.2e-4), y)
    z = jnp.where(now & ~blocked, jnp.maximum(z, top - 1.5e-4), z)
    return body._replace(gripper=(x, y, z))


def _finger_centres(body: Body) -> tuple[tuple[float, Numbers], tuple[float, Numbers]]:
    """(side, y of the pad's centre in the gripper's frame) of both fingers."""
    half = PAD_Y / 2
    return (1.0, body.opening + body.shift + half), (-1.0, -(body.opening - body.shift + half))


def _stand_on_stones(before: Body, body: Body, present: Numbers) -> Body:
    """Fingers that come down on the flat part of a free stone stand on it."""
    x, y, z = body.gripper
    free = present & ~_is(body.held, body.stones)
    low = before.gripper[2] + PAD_LOW
    for _, centre in _finger_centres(body):
        gap_x = jnp.maximum(jnp.abs(body.stones[0] - x) - PAD_X, 0.0)
        gap_y = jnp.maximum(jnp.abs(body.stones[1] - y - centre) - PAD_Y / 2, 0.0)
        share = (gap_x**2 + gap_y**2) / s.STONE_RADIUS**2
        top = body.stones[2] + s.STONE_HALF_HEIGHT * jnp.sqrt(jnp.maximum(1 - share, 1e-12))
        under = free & (share < 0.6) & (low > top - 1.5e-3)
        z = jnp.maximum(z, jnp.where(under, top - PAD_LOW - 3e-4, -1.0).max())
    return body._replace(gripper=(x, y, z))


def _stopped(driven: Body, body: Body) -> Body:
    """What was blocked along an axis has no speed left along it."""
    moved = zip(driven.gripper, body.gripper, body.velocity, strict=True)
    return body._replace(
        velocity=tuple(jnp.where(jnp.abs(a - b) > 1e-6, 0.0, v) for a, b, v in moved)
    )


def _carry(before: Body, body: Body, target: Triple) -> Body:
    """A held stone goes along; pressed down, it lifts the gripper or slips through the fingers."""
    mask, hold = _is(body.held, body.stones), body.held >= 0
    (x, y, z), (grip_x, grip_z) = body.gripper, body.grip
    place = x + grip_x, y + body.shift
    rest = _support(*place) + s.STONE_HALF_HEIGHT - 2e-4
    deep = jnp.maximum(rest - (z + grip_z), 0.0)
    pressed = hold & (deep > 0)
    z = jnp.where(pressed, jnp.minimum(z + deep, jnp.maximum(target[2] + 4.5e-3, z)), z)
    grip_z = jnp.where(pressed, rest - z, grip_z - 2e-6)
    along = tuple((b - a) / ROUND_SECONDS for a, b in zip(before.gripper, (x, y, z), strict=True))
    return body._replace(
        gripper=(x, y, z),
        stones=_where(mask, (*place, z + grip_z), body.stones),
        speeds=_where(mask, along, body.speeds),
        grip=(grip_x, grip_z),
    )


def _grasp(
    body: Body, closing: Numbers, stop: Numbers, present: Numbers, reachable: Numbers
) -> Body:
    """Fingers that have come to their halt on a stone hold it, and centre it in part."""
    dx, dy, dz = _offsets(body)
    _, grips = _side(dx, dz)
    free = present & ~_is(body.held, body.stones)
    still = reachable & free & grips & _at_pads(dz) & (jnp.abs(dy) < body.opening + s.STONE_RADIUS)
    takes = closing & (body.held < 0) & (body.opening <= stop + 2e-4) & (stop > 0)
    taken = still & takes
    any_taken = taken.any()
    off = _only(taken, dy)
    shift = jnp.sign(off) * _piecewise(jnp.abs(off), _CENTRED)
    edge = jnp.maximum(PAD_LOW - _only(taken, dz), 0.0)
    x, y, z = body.stones
    index = jnp.where(taken, jnp.arange(x.shape[0]), 0).sum()
    return body._replace(
        stones=(x, jnp.where(taken, y + shift - dy, y), z),
        shift=jnp.where(any_taken, shift, body.shift),
        grip=(
            jnp.where(any_taken, _only(taken, dx), body.grip[0]),
            jnp.where(any_taken, _only(taken, dz) - _piecewise(edge, _PULLED_DOWN), body.grip[1]),
        ),
        held=jnp.where(any_taken, index.astype(jnp.int32), body.held),
    )


# Metres: how far off centre a stone stays, by where it was; how far an edge grasp pulls it down, by
# how far the pads' lower side is above its centre.
_CENTRED = (
    (0.0, 0.0),
    (1e-3, 1.6e-3),
    (2e-3, 1.7e-3),
    (3.2e-3, 1.5e-3),
    (5e-3, 1.2e-3),
    (7.5e-3, 0.6e-3),
    (10e-3, 0.3e-3),
)
_PULLED_DOWN = (
    (0.0, -0.15e-3),
    (0.5e-3, 0.5e-3),
    (1.5e-3, 1.2e-3),
    (2.5e-3, 1.9e-3),
    (3.5e-3, 1.3e-3),
)


def _creep(body: Body) -> Body:
    """A stone that is gripped near its edge creeps out of the fingers until they lose it."""
    hold, (grip_x, grip_z) = body.held >= 0, body.grip
    high = jnp.maximum(PAD_LOW - grip_z, 0.0)
    grip_z = grip_z - jnp.where(hold & (high > 0), 4e-5 + 0.012 * high, 0.0)
    out = jnp.maximum(jnp.abs(grip_x) - PAD_X, 0.0)
    grip_x = grip_x + jnp.where(hold, jnp.sign(grip_x) * 0.0133 * out, 0.0)
    lost = (high > LOWEST_GRASP) | (out > OUTERMOST_GRASP)
    return body._replace(grip=(grip_x, grip_z), held=jnp.where(lost, -1, body.held))


def _free_stones(body: Body, closing: Numbers, present: Numbers) -> Body:
    """Stones fall, rest, and are moved by the fingers, by each other and by the board's side."""
    dt = ROUND_SECONDS
    held = _is(body.held, body.stones)
    free = present & ~held
    x, y, z = body.stones
    vx, vy, vz = body.speeds
    floor = _support(x, y) + s.STONE_HALF_HEIGHT - SINK
    falling = vz - GRAVITY * dt
    lower = z + 0.5 * (vz + falling) * dt
    landed = lower <= floor
    moving = free & ~landed
    x, y = x + jnp.where(moving, vx * dt, 0.0), y + jnp.where(moving, vy * dt, 0.0)
    z = jnp.where(free, jnp.where(landed, jnp.where(z < floor - 3e-3, z, floor), lower), z)
    stop = free & landed
    speeds = (
        jnp.where(stop, 0.0, vx),
        jnp.where(stop, 0.0, vy),
        jnp.where(stop, 0.0, jnp.where(free, falling, vz)),
    )
    gripper_x, gripper_y, gripper_z = body.gripper
    pads = gripper_z + PAD_LOW, gripper_z + PAD_HIGH
    for _ in range(2):
        for side, centre in _finger_centres(body):
            at = gripper_x, gripper_y + centre
            dx, dy = _pushed((x, y, z), free, at, (PAD_X, PAD_Y / 2), pads)
            inward = (dy * side < 0) & ~closing
            given = jnp.where(inward, -side * jnp.maximum(jnp.abs(dy) - GIVE, 0.0), dy)
            x = x + jnp.where(inward & (given == 0), 0.0, dx)
            y = y + given
    dx, dy = _separated((x, y, z), free, held)
    x, y = x + dx, y + dy
    beside = jnp.maximum(jnp.abs(x), jnp.abs(y)) >= s.BOARD_HALF
    low = z < s.BOARD_TOP + 2e-3
    side = s.BOARD_HALF, s.BOARD_HALF
    dx, dy = _pushed((x, y, z), free & beside & low, (0.0, 0.0), side, (-1.0, s.BOARD_TOP))
    return body._replace(stones=(x + dx, y + dy, z), speeds=speeds)


def _pushed(
    stones: Triple,
    free: Numbers,
    centre: tuple[Numbers, Numbers],
    half: tuple[Numbers, Numbers],
    between: tuple[Numbers, Numbers],
) -> tuple[Numbers, Numbers]:
    """How far free stones move out of an upright box.

    Args:
        stones: their centres.
        free: which can move.
        centre, half: the box's middle and half size along x and y.
        between: the heights of its lower and upper side.
    """
    x, y, z = stones
    above = jnp.maximum(jnp.maximum(between[0] - z, z - between[1]), 0.0)
    share = 1 - (above / s.STONE_HALF_HEIGHT) ** 2
    radius = s.STONE_RADIUS * jnp.sqrt(jnp.maximum(share, 1e-12))
    dx, dy = x - centre[0], y - centre[1]
    gap_x, gap_y = dx - jnp.clip(dx, -half[0], half[0]), dy - jnp.clip(dy, -half[1], half[1])
    distance = jnp.sqrt(gap_x**2 + gap_y**2 + 1e-14)
    outside = distance > 1e-6
    push = jnp.maximum(radius - distance, 0.0) / distance
    through = jnp.where(dy >= 0, 1.0, -1.0) * (half[1] - jnp.abs(dy) + radius)
    hit = free & (radius > 1e-4) & ((distance < radius) | ~outside)
    return (
        jnp.where(hit & outside, gap_x * push, 0.0),
        jnp.where(hit, jnp.where(outside, gap_y * push, through), 0.0),
    )


def _separated(stones: Triple, free: Numbers, held: Numbers) -> tuple[Numbers, Numbers]:
    """How far free stones move out of each other; one beside a held stone goes all the way."""
    x, y, z = stones
    dx, dy, dz = (a[:, None] - a[None] for a in (x, y, z))
    share = 1 - (dz / (2 * s.STONE_HALF_HEIGHT)) ** 2
    wanted = 2 * s.STONE_RADIUS * jnp.sqrt(jnp.maximum(share, 1e-12))
    distance = jnp.sqrt(dx**2 + dy**2 + 1e-14)
    apart = ~jnp.eye(x.shape[0], dtype=bool)
    push = jnp.where(apart, jnp.maximum(wanted - distance, 0.0) / distance, 0.0)
    push = jnp.where(free[:, None], push * jnp.where(held[None], 1.0, 0.5), 0.0)
    return (dx * push).sum(1), (dy * push).sum(1)


def _support(x: Numbers, y: Numbers) -> Numbers:
    on_board = jnp.maximum(jnp.abs(x), jnp.abs(y)) < s.BOARD_HALF
    return jnp.where(on_board, s.BOARD_TOP, 0.0)


def _where(mask: Numbers, new: Triple, old: Triple) -> Triple:
    return tuple(jnp.where(mask, a, b) for a, b in zip(new, old, strict=True))


def _piecewise(x: Numbers, points: tuple[tuple[float, float], ...]) -> Numbers:
    """The polyline through `points`, constant beyond its ends, without a search."""
    value, slope = points[0][1], 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        value, slope = (
            value + ((y1 - y0) / (x1 - x0) - slope) * jnp.maximum(x - x0, 0.0),
            (y1 - y0) / (x1 - x0),
        )
    return value - slope * jnp.maximum(x - points[-1][0], 0.0)
