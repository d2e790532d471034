"""Short descriptions of a coming motion, the text that co-trains a board policy's language head.

A caption has at most six words: what moves ("move" with open, "carry" with closed fingers)
and where, up to two directions, how high a carried stone is and how fast ("carry left high
slowly"); or a motion and what the fingers do, in their order ("lower and close", "open and raise").
Left, right, back and forward are those of the front camera's picture: forward is towards the camera
(+x), right is +y.
"""

import numpy as np
from jaxtyping import Bool, Float

CAPTION_WORDS = (
    "and",
    "back",
    "carry",
    "close",
    "forward",
    "high",
    "hold",
    "left",
    "low",
    "lower",
    "move",
    "open",
    "quickly",
    "raise",
    "right",
    "slowly",
    "wait",
)
_STILL, _SLOW, _FAST, _SHARE = 0.08, 0.45, 0.80, 0.45
_LOW, _HIGH = 0.062, 0.095


def caption(chunk: Float[np.ndarray, "h 4"], height: float) -> str:
    """Say in words what a chunk of clean actions does.

    Args:
        chunk: actions [dx, dy, dz, gripper] in [-1, 1], a negative gripper value closes.
        height: the gripper's height in metres where the chunk starts.
    """
    motion, closed = chunk[:, :3], chunk[:, 3] < 0
    change = int((closed != closed[0]).argmax())
    if not change:
        return " ".join(_move(motion, bool(closed[0]), height)) or ("hold" if closed[0] else "wait")
    finger = "close" if closed[change] else "open"
    before, after = motion[:change], motion[change:]
    if _moving(before).any():
        return " ".join([*_directions(before.sum(0), bool(closed[0])), "and", finger])
    if _moving(after).any():
        return " ".join([finger, "and", *_directions(after.sum(0), bool(closed[change]))])
    return finger


def _moving(motion: Float[np.ndarray, "t 3"]) -> Bool[np.ndarray, "t"]:
    return np.linalg.norm(motion, axis=1) > _STILL


def _move(motion: Float[np.ndarray, "t 3"], closed: bool, height: float) -> list[str]:
    moving = _moving(motion)
    if not moving.any():
        return []
    words = _directions(motion.sum(0), closed)
    speed = float(np.linalg.norm(motion[moving], axis=1).mean())
    pace = ["slowly"] if speed < _SLOW else ["quickly"] if speed > _FAST else []
    return [*words, *_level(words, closed, height), *pace]


def _directions(total: Float[np.ndarray, "3"], closed: bool) -> list[str]:
    """The directions that carry most of the motion, at most two, sideways ones first."""
    words = (("back", "forward"), ("left", "right"), ("lower", "raise"))
    size = np.abs(total)
    order = [int(i) for i in size.argsort()[::-1][:2] if size[i] >= _SHARE * size.max()]
    sideways = [words[i][int(total[i] > 0)] for i in sorted(order, reverse=True) if i < 2]
    vertical = [words[2][int(total[2] > 0)]] if 2 in order else []
    return ([("carry" if closed else "move"), *sideways] if sideways else []) + vertical


def _level(words: list[str], closed: bool, height: float) -> list[str]:
    """Words for a stone carried at a height that an instruction would call "low" or "high"."""
    if not closed or {"raise", "lower"} & set(words):
        return []
    return ["low"] if height < _LOW else ["high"] if height > _HIGH else []
