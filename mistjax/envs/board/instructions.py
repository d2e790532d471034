"""Tasks and the sentences that ask for them: no two tasks share one."""

import dataclasses
import itertools

COLOURS = ("black", "white")
SPEEDS = ("", "slowly", "quickly")
HEIGHTS = ("", "low", "high")
MASK_WORD = "_"
_PHRASES = (
    "place the {colour} stone at row {row} column {column}",
    "put the {colour} stone on row {row} column {column}",
    "move the {colour} stone to row {row} column {column}",
)
PHRASINGS = 2 * len(_PHRASES)


@dataclasses.dataclass(frozen=True)
class Task:
    """Which stone goes where, and how. Rows and columns run from 1 to 5; "" means no modifier."""

    colour: str
    row: int
    column: int
    speed: str = ""
    height: str = ""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("colour", self.colour, COLOURS),
            ("speed", self.speed, SPEEDS),
            ("height", self.height, HEIGHTS),
            ("row", self.row, range(1, 6)),
            ("column", self.column, range(1, 6)),
        ):
            if value not in allowed:
                raise ValueError(f"task {name} is {value!r}, expected one of {list(allowed)}")


def instruct(task: Task, phrasing: int = 0) -> str:
    """The prompt for `task`; `phrasing` (0 to PHRASINGS - 1) picks the paraphrase and where the
    speed word stands."""
    if not 0 <= phrasing < PHRASINGS:
        raise ValueError(f"phrasing {phrasing} is unknown, expected 0 to {PHRASINGS - 1}")
    speed_first, phrase = divmod(phrasing, len(_PHRASES))
    words = [_PHRASES[phrase].format(**dataclasses.asdict(task))]
    if task.speed:
        words.insert(0 if speed_first else 1, task.speed)
    if task.height:
        words.append(f", carry it {task.height}")
    return " ".join(words)


def _vocabulary() -> tuple[str, ...]:
    prompts = (
        instruct(Task(colour, row, row, speed, height), phrasing)
        for colour, row, speed, height, phrasing in itertools.product(
            COLOURS, range(1, 6), SPEEDS, HEIGHTS, range(PHRASINGS)
        )
    )
    return tuple(sorted({word for prompt in prompts for word in prompt.split()} | {MASK_WORD}))


INSTRUCTION_WORDS = _vocabulary()
